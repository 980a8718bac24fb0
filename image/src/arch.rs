use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kind of processor that an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// AMD and Intel: workstations.
    #[serde(rename = "x86_64")]
    X86_64,
    /// ARM: the DGX Station's Grace.
    Aarch64,
}

impl Arch {
    /// Every one there is.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The kind of machine that this program runs on.
    pub fn here() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }

    /// This kind, where it is not the one that this program runs on: its programs run here only in an emulator.
    pub fn emulated(self) -> Option<Self> {
        (Self::here() != Some(self)).then_some(self)
    }

    /// As Linux and Rust call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// As UEFI calls it in file names: `systemd-bootx64.efi`.
    pub const fn efi(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Aarch64 => "aa64",
        }
    }

    /// The partition types of a root file system and of its hashes, as systemd-repart calls them.
    /// Source: the UAPI group's Discoverable Partitions Specification.
    pub const fn partition_types(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("root-x86-64", "root-x86-64-verity"),
            Self::Aarch64 => ("root-arm64", "root-arm64-verity"),
        }
    }

    /// Rust's target for programs in the image.
    pub const fn rust_target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's name for the folder of libraries: `/usr/lib/x86_64-linux-gnu`.
    pub const fn multiarch(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
        }
    }

    /// The kernel's serial line.
    pub const fn serial(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No processor that Polder makes images for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of machine that Polder makes images for; it is x86_64 or aarch64")]
pub struct UnknownArch(String);

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        let is = |arch: &Self| [arch.name(), arch.debian()].contains(&text);
        Self::ALL.into_iter().find(is).ok_or_else(|| UnknownArch(text.chars().take(40).collect()))
    }
}
