//! The kernels' sources. Each module is one file; all of them may include the headers.

use sha2::{Digest, Sha256};

/// One file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The file's name without its end.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! files {
    ($end:literal: $($name:literal),+ $(,)?) => {
        &[$(Module { name: $name, text: include_str!(concat!("../kernels/", $name, $end)) }),+]
    };
}

/// What is compiled.
pub const MODULES: &[Module] = files!(".cu":
    "attention",
    "basics",
    "carry",
    "dense",
    "heads",
    "linear",
    "moe_few",
    "moe_many",
    "moe_route",
    "sampling",
    "synthetic",
    "wide",
);
/// What they include.
pub const HEADERS: &[Module] = files!(".cuh":
    "attention_hopper",
    "common",
    "kv",
    "moe",
    "products",
    "tiles",
);

/// How everything is compiled, beside the kind of card. `--ptxas-options=-v` tells registers and spills.
pub const OPTIONS: &[&str] = &["--std=c++17", "--ptxas-options=-v", "--extra-device-vectorization"];

/// The module of that name.
///
/// # Panics
/// If there is none.
pub fn module(name: &str) -> &'static Module {
    MODULES.iter().find(|module| module.name == name).expect("a module of this crate")
}

impl Module {
    /// Sixteen hexadecimal digits that change with the text, the headers and the options.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        for text in HEADERS
            .iter()
            .map(|header| header.text)
            .chain([self.text])
            .chain(OPTIONS.iter().copied())
        {
            sha.update((text.len() as u64).to_le_bytes());
            sha.update(text);
        }
        short_hex(&sha.finalize())
    }
}

/// Changes with every kernel, and with how they are compiled.
pub fn digest() -> [u8; 32] {
    let mut sha = Sha256::new();
    for module in MODULES {
        sha.update(format!("{} {}\n", module.name, module.hash()));
    }
    sha.finalize().into()
}

/// The first eight bytes of a digest.
pub(crate) fn short_hex(digest: &[u8]) -> String {
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
