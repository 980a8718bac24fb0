//! What is said of a card that nothing was compiled for: one that came later than the kernels, or than the driver.

use std::fmt;

use crate::arch::Arch;
use crate::backend::LoadError;
use crate::device::Device;
use crate::pack::{KernelError, Pack};

/// There is no machine code for a card, and nothing to make it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoCode {
    /// What its maker calls it.
    pub card: String,
    /// Its kind.
    pub arch: Arch,
    /// The kinds of cards that there is machine code for.
    pub has: Vec<Arch>,
}

impl NoCode {
    /// Of a pack that lacks what this card runs, that; of any other failure itself.
    pub(crate) fn or(why: KernelError, device: &Device, pack: &Pack) -> LoadError {
        match why {
            KernelError::Missing { .. } | KernelError::Unknown(_) => LoadError::NoCode(Self {
                card: device.name().to_owned(),
                arch: device.arch(),
                has: pack.kinds(),
            }),
            other => LoadError::Kernels(other),
        }
    }
}

impl fmt::Display for NoCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { card, arch, has } = self;
        let list =
            |kinds: &[Arch]| kinds.iter().map(|kind| kind.cards()).collect::<Vec<_>>().join(", ");
        if !arch.is_known() {
            let known = list(&Arch::ALL);
            return write!(
                f,
                "there are no kernels for the {card} ({arch}): this version of Polder runs on {known}"
            );
        }
        let some = if has.is_empty() { String::new() } else { format!(" but for {}", list(has)) };
        write!(
            f,
            "there is no machine code for the {card} ({arch}) here{some}: take an image whose driver is new enough for this card, \
             or, without an image, install NVIDIA's run-time compiler (PyPI: nvidia-cuda-nvrtc-cu12) and set {} to the folder of its libraries",
            crate::compiler::FOLDER
        )
    }
}

impl std::error::Error for NoCode {}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(number: u32, has: &[u32]) -> String {
        let kind = |number: &u32| Arch { number: *number };
        let card = "NVIDIA GeForce RTX 5090".to_owned();
        NoCode { card, arch: kind(&number), has: has.iter().map(kind).collect() }.to_string()
    }

    #[test]
    fn a_card_that_came_later_than_the_image_is_named_with_what_helps() {
        let said = said(120, &[80, 90]);
        let begins = "there is no machine code for the NVIDIA GeForce RTX 5090 (sm_120) here but for A100, RTX 30 and A6000, H100 and H200: take an image";
        assert!(said.starts_with(begins), "{said}");
    }

    #[test]
    fn without_an_image_there_is_a_compiler_to_install() {
        let said = said(120, &[]);
        assert!(said.contains("(sm_120) here: take") && said.contains("POLDER_NVRTC"), "{said}");
    }

    #[test]
    fn a_card_that_nobody_wrote_kernels_for_is_not_sent_to_a_compiler() {
        let said = said(75, &[80]);
        assert!(said.contains("(sm_75): this version of Polder runs on A100, RTX 30"), "{said}");
        assert!(!said.contains("nvrtc"), "{said}");
    }
}
