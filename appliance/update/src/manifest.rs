//! What an update is: a small signed text that names its files by digest.

use polder_recipes::Digest;
use serde::{Deserialize, Serialize};

use crate::{Refusal, Version};

/// Longer than any manifest.
pub(crate) const LONGEST: usize = 64 * 1024;
/// A part of an image that is larger than this is none.
const LARGEST: u64 = 8 << 30;

/// The text beside an image that says what the image is: `polder_0.2.0_x86_64.toml`. Fields that a version does not
/// know are left out, not refused: boxes of today read what is written in years.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's version.
    pub version: Version,
    /// The machines that it is for: `x86_64`.
    pub arch: String,
    /// How old its packages are: Unix seconds.
    pub made: u64,
    /// The root hash: over every byte of the root file system, and in the boot entry.
    pub roothash: Digest,
    /// The packed root file system.
    pub root: Part,
    /// Its hashes.
    pub verity: Part,
    /// Kernel, initial file system and command line.
    pub entry: Part,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Beside the manifest.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub sha256: Digest,
}

impl Manifest {
    /// Reads and checks the text; nothing of it may be believed before its signature was.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let fail = |why: String| Refusal::Unreadable(why);
        let manifest: Self =
            toml::from_str(text).map_err(|error| fail(error.message().replace('\n', " ")))?;
        for (part, ending) in manifest.parts() {
            let expected = manifest.file_name(ending);
            if part.name != expected {
                return Err(fail(format!("its {ending} is not called {expected}")));
            }
            if part.size == 0 || part.size > LARGEST {
                return Err(fail(format!("{expected} has an impossible size")));
            }
        }
        Ok(manifest)
    }

    /// As a file. The same image has the same text.
    pub fn to_text(&self) -> String {
        let head = "# What this image is. Boxes take it as an update once it is signed.\n";
        let text = toml::to_string(self).expect("a manifest has only types that TOML can hold");
        format!("{head}{text}")
    }

    /// `polder_VERSION_ARCH.ENDING`.
    pub fn file_name(&self, ending: &str) -> String {
        format!("polder_{}_{}.{ending}", self.version, self.arch)
    }

    /// All bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().fold(0, |sum, (part, _)| sum.saturating_add(part.size))
    }

    pub(crate) fn parts(&self) -> [(&Part, &'static str); 3] {
        [(&self.verity, "verity"), (&self.root, "root"), (&self.entry, "efi")]
    }

    /// The UUIDs of the partitions in which its root and its hashes have to lie, so that its boot entry finds
    /// them: the two halves of the root hash.
    pub(crate) fn partition_uuids(&self) -> [String; 2] {
        let hex = self.roothash.to_string();
        let uuid = |h: &str| {
            format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..32])
        };
        [uuid(&hex[..32]), uuid(&hex[32..])]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn manifest(version: &str) -> Manifest {
        let version: Version = version.parse().unwrap();
        let part = |ending: &str, size| Part {
            name: format!("polder_{version}_x86_64.{ending}"),
            size,
            sha256: Digest::from_bytes([7; 32]),
        };
        Manifest {
            arch: "x86_64".into(),
            made: 1_795_641_866,
            roothash: "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef"
                .parse()
                .unwrap(),
            root: part("root", 300),
            verity: part("verity", 20),
            entry: part("efi", 10),
            version,
        }
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let manifest = manifest("0.2.0");
        assert_eq!(Manifest::parse(&manifest.to_text()).unwrap(), manifest);
        assert_eq!(manifest.bytes(), 330);
    }

    #[test]
    fn files_with_other_names_or_impossible_sizes_are_refused() {
        let good = manifest("0.2.0");
        let mut elsewhere = good.clone();
        elsewhere.root.name = "../../etc/passwd".into();
        let mut older = good.clone();
        older.entry.name = "polder_0.1.0_x86_64.efi".into();
        let mut empty = good.clone();
        empty.verity.size = 0;
        let mut huge = good;
        huge.root.size = u64::MAX >> 1;
        for bad in [elsewhere, older, empty, huge] {
            let error = Manifest::parse(&bad.to_text()).unwrap_err().to_string();
            assert!(error.contains("polder_0.2.0_x86_64"), "{error}");
        }
        assert!(Manifest::parse("version = 7").is_err());
    }

    #[test]
    fn the_halves_of_the_root_hash_are_the_partitions_numbers() {
        assert_eq!(
            manifest("1").partition_uuids(),
            ["00112233-4455-6677-8899-aabbccddeeff", "01234567-89ab-cdef-0123-456789abcdef"]
        );
    }
}
