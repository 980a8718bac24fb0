use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use polder_backend_cuda::arch::Arch;
use polder_backend_cuda::pack;

use crate::console::say;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Kernels {
    /// Compile every kernel into a folder: what an image carries, so that no box has to compile. Needs no card.
    #[command(
        after_help = "Examples:\n  polder engine kernels build --out kernels\n  polder engine kernels build --arch sm_90a --arch sm_103a --out kernels\n\nIt needs NVIDIA's run-time compiler (PyPI: nvidia-cuda-nvrtc-cu12). Where the system does not find it, set POLDER_NVRTC to the folder of its libraries."
    )]
    Build {
        /// For which kind of card; may be given again. All kinds that Polder knows, if not given.
        #[arg(long, value_name = "ARCH")]
        arch: Vec<Arch>,
        /// The folder; made if it is not there.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Tell for which kinds of cards a folder has every kernel of this program, whole. Fails where a kind that is named lacks any.
    #[command(
        after_help = "Examples:\n  polder engine kernels check\n  polder engine kernels check /usr/lib/polder/kernels sm_80 sm_90a"
    )]
    Check {
        /// The folder; the one that came with this program, if not given.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
        /// The kinds of cards that it must be whole for.
        #[arg(value_name = "ARCH")]
        arch: Vec<Arch>,
    },
}

impl Kernels {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Build { arch, out } => build(arch, &out),
            Self::Check { folder, arch } => check(folder, &arch),
        }
    }
}

fn build(arch: Vec<Arch>, out: &Path) -> anyhow::Result<()> {
    let arches = if arch.is_empty() { Arch::ALL.to_vec() } else { arch };
    let (mut files, mut bytes) = (0, 0);
    pack::build(&arches, out, |built| {
        (files, bytes) = (files + 1, bytes + built.bytes);
        say(format_args!("{} for {}: {} kernels", built.module, built.arch, built.kernels.len()));
    })?;
    say(format_args!("{files} files, {} KiB, in {}", bytes >> 10, out.display()));
    Ok(())
}

fn check(folder: Option<PathBuf>, needed: &[Arch]) -> anyhow::Result<()> {
    let own = || std::env::current_exe().ok().as_deref().and_then(shipped);
    let folder =
        folder.or_else(own).context("this program does not know where it lies; name the folder")?;
    let mut none = true;
    for arch in Arch::ALL {
        let lacking = pack::lacking(&folder, arch);
        if lacking.is_empty() {
            none = false;
            say(format_args!("{arch}: whole ({})", arch.cards()));
        } else if needed.contains(&arch) {
            bail!(
                "{} lacks kernels of this program for {arch} ({}): it was made by another version, or is damaged; make it \
                 again with `polder engine kernels build --arch {arch} --out DIR`",
                folder.display(),
                lacking.join(", ")
            );
        }
    }
    if none {
        say(format_args!("{} has kernels of this program for no kind of card", folder.display()));
    }
    Ok(())
}

/// Where the kernels lie that came with the program: beside it, or in `lib` where it is in a `bin`.
pub(crate) fn shipped(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    if folder.ends_with("bin") {
        Some(folder.parent()?.join("lib/polder/kernels"))
    } else {
        Some(folder.join("kernels"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_lie_where_the_image_puts_them_and_beside_a_program_that_was_unpacked() {
        let at = |program: &str| shipped(Path::new(program)).unwrap();
        // In the image /usr/bin/polder leads there, and a process is told where it leads.
        assert_eq!(at("/usr/lib/polder/polder"), Path::new("/usr/lib/polder/kernels"));
        assert_eq!(at("/usr/local/bin/polder"), Path::new("/usr/local/lib/polder/kernels"));
        assert_eq!(at("/home/me/polder/polder"), Path::new("/home/me/polder/kernels"));
    }

    #[test]
    fn a_kind_that_must_be_there_and_is_not_is_named_with_what_it_lacks() {
        let empty = tempfile::tempdir().unwrap();
        let folder = || Some(empty.path().to_owned());
        check(folder(), &[]).unwrap();
        let said = check(folder(), &["sm_90a".parse().unwrap()]).unwrap_err().to_string();
        assert!(said.contains("sm_90a (attention, basics"), "{said}");
    }
}
