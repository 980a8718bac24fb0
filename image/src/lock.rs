//! The lock: every package that an image is made of or with, by version and digest.
//!
//! A lock is a TOML file meant for reading as a diff: one line per package, sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use polder_recipes::Digest;
use serde::Deserialize;

use crate::Arch;

/// What packages are for. They are resolved in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The file system that a box runs from.
    Root,
    /// On top of it, only while the initial file system is made.
    Initrd,
    /// NVIDIA's driver, taken apart.
    Driver,
    /// On top of the root, only while the driver's modules are built.
    DriverTools,
    /// NVIDIA's compiler, which makes the engine's kernels while an image with a driver is made.
    Kernels,
    /// Makes images.
    Builder,
    /// Boots them to see whether they work.
    Tester,
}

impl Layer {
    /// Every one there is.
    pub const ALL: [Self; 7] = [
        Self::Root,
        Self::Initrd,
        Self::Driver,
        Self::DriverTools,
        Self::Kernels,
        Self::Builder,
        Self::Tester,
    ];

    /// As lock and `packages.toml` call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Initrd => "initrd",
            Self::Driver => "driver",
            Self::DriverTools => "driver-tools",
            Self::Kernels => "kernels",
            Self::Builder => "builder",
            Self::Tester => "tester",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Debian's version: `257.13-1~deb13u1`; or PyPI's.
    pub version: String,
    /// `amd64`, `arm64` or `all`.
    pub arch: String,
    /// Of the file, in bytes.
    pub size: u64,
    /// Of the file.
    pub digest: Digest,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.version, self.arch, self.size, self.digest)
    }
}

/// Packages by name, or by `name:arch` where it is not the machine's own kind.
pub type Packages = BTreeMap<String, Package>;

/// Everything that images for one kind of machine are made of and with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// For which machines.
    pub arch: Arch,
    /// The Rust compiler's version: `1.95.0`.
    pub rustc: String,
    /// The time that everything in the image bears, in Unix seconds: when the lock was made.
    pub epoch: u64,
    /// The packages. A layer that builds on another does not repeat it.
    pub layers: BTreeMap<Layer, Packages>,
}

/// A lock that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// No TOML, or not of a lock's shape.
    #[error("it is not a lock that this version of Polder reads: {}", .0.message())]
    Shape(#[from] toml::de::Error),
    /// One line is wrong.
    #[error(
        "the line of {package} in [{layer}] is not VERSION ARCH SIZE SHA256; make the lock again with `polder image lock`"
    )]
    Line {
        /// Where.
        layer: Layer,
        /// Which.
        package: String,
    },
}

impl Lock {
    /// Reads a lock's text.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct Written {
            arch: Arch,
            rustc: String,
            epoch: u64,
            #[serde(default)]
            root: BTreeMap<String, String>,
            #[serde(default)]
            initrd: BTreeMap<String, String>,
            #[serde(default)]
            driver: BTreeMap<String, String>,
            #[serde(default)]
            driver_tools: BTreeMap<String, String>,
            #[serde(default)]
            kernels: BTreeMap<String, String>,
            #[serde(default)]
            builder: BTreeMap<String, String>,
            #[serde(default)]
            tester: BTreeMap<String, String>,
        }
        let written: Written = toml::from_str(text)?;
        let Written { arch, rustc, epoch, root, initrd, driver, driver_tools, .. } = written;
        let Written { kernels, builder, tester, .. } = written;
        let every = [root, initrd, driver, driver_tools, kernels, builder, tester];
        let mut layers = BTreeMap::new();
        for (layer, lines) in Layer::ALL.into_iter().zip(every) {
            let mut packages = Packages::new();
            for (name, line) in lines {
                let fault = || LockError::Line { layer, package: name.clone() };
                let package = package(&name, &line).ok_or_else(fault)?;
                packages.insert(name, package);
            }
            layers.insert(layer, packages);
        }
        Ok(Self { arch, rustc, epoch, layers })
    }

    /// The packages of one layer alone.
    pub fn layer(&self, layer: Layer) -> &Packages {
        static NONE: Packages = Packages::new();
        self.layers.get(&layer).unwrap_or(&NONE)
    }

    /// Every package, once.
    pub fn all(&self) -> BTreeMap<Digest, (&str, &Package)> {
        self.of(&Layer::ALL)
    }

    /// Every package of these layers, once.
    pub fn of(&self, layers: &[Layer]) -> BTreeMap<Digest, (&str, &Package)> {
        let every = layers.iter().flat_map(|layer| self.layer(*layer));
        every.map(|(name, package)| (package.digest, (name.as_str(), package))).collect()
    }

    /// Takes over an older lock's time where every image without a driver stays the same, so that it stays as
    /// it is, byte for byte.
    pub fn keep_time(&mut self, old: &Self) {
        let in_every_image = [Layer::Root, Layer::Initrd, Layer::Builder];
        if self.rustc == old.rustc && self.changes(old, &in_every_image).is_empty() {
            self.epoch = old.epoch;
        }
    }

    /// What became of an older lock, a line per package; empty when nothing did.
    pub fn diff(&self, old: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.rustc != old.rustc {
            lines.push(format!("rustc {} -> {}", old.rustc, self.rustc));
        }
        lines.extend(self.changes(old, &Layer::ALL));
        lines
    }

    fn changes(&self, old: &Self, layers: &[Layer]) -> Vec<String> {
        let mut lines = Vec::new();
        for &layer in layers {
            let (new, old) = (self.layer(layer), old.layer(layer));
            let names: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
            for name in names {
                match (old.get(name), new.get(name)) {
                    (None, Some(new)) => lines.push(format!("{layer}: + {name} {}", new.version)),
                    (Some(old), None) => lines.push(format!("{layer}: - {name} {}", old.version)),
                    (Some(old), Some(new)) if old.version != new.version => {
                        lines.push(format!("{layer}: {name} {} -> {}", old.version, new.version));
                    }
                    // The same version with other bytes is what a lock is there to notice.
                    (Some(old), Some(new)) if old.digest != new.digest => lines.push(format!(
                        "{layer}: {name} {} has other bytes than before",
                        new.version
                    )),
                    _ => {}
                }
            }
        }
        lines
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Made by `polder image lock --arch {}`; do not edit.", self.arch)?;
        writeln!(
            f,
            "arch = \"{}\"\nrustc = \"{}\"\nepoch = {}",
            self.arch, self.rustc, self.epoch
        )?;
        for layer in Layer::ALL {
            writeln!(f, "\n[{layer}]")?;
            for (name, package) in self.layer(layer) {
                writeln!(f, "\"{name}\" = \"{package}\"")?;
            }
        }
        Ok(())
    }
}

/// Names and versions end up in file names and on command lines.
fn package(name: &str, line: &str) -> Option<Package> {
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let mut words = line.split(' ');
    let (version, arch, size, digest) =
        (words.next()?, words.next()?, words.next()?, words.next()?);
    let good = words.next().is_none()
        && plain(name, "+-.:")
        && plain(version, "+-.:~")
        && ["amd64", "arm64", "all"].contains(&arch);
    let (size, digest) = (size.parse().ok()?, digest.parse().ok()?);
    good.then(|| Package { version: version.into(), arch: arch.into(), size, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(packages: &[(&str, &str)]) -> Lock {
        let digest = |text: &str| {
            Digest::from_bytes(
                <[u8; 32]>::try_from(text.repeat(32).as_bytes()[..32].to_vec()).unwrap(),
            )
        };
        let packages = packages.iter().map(|(name, version)| {
            let package = Package {
                version: (*version).into(),
                arch: "all".into(),
                size: 7,
                digest: digest(version),
            };
            ((*name).into(), package)
        });
        Lock {
            arch: Arch::X86_64,
            rustc: "1.95.0".into(),
            epoch: 1_760_000_000,
            layers: Layer::ALL
                .into_iter()
                .map(|layer| (layer, Packages::new()))
                .chain([(Layer::Root, packages.collect())])
                .collect(),
        }
    }

    #[test]
    fn a_lock_reads_as_it_was_written() {
        let lock = lock(&[("libc6", "2.41-12+deb13u4"), ("systemd-boot-efi:arm64", "257~1")]);
        assert_eq!(Lock::parse(&lock.to_string()).unwrap(), lock);
    }

    #[test]
    fn a_diff_names_what_came_went_and_changed() {
        let old = lock(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let new = lock(&[("b", "1"), ("c", "2"), ("d", "1")]);
        assert_eq!(new.diff(&old), ["root: - a 1", "root: c 1 -> 2", "root: + d 1"]);
        assert_eq!(new.diff(&new), Vec::<String>::new());
    }

    #[test]
    fn the_time_moves_with_what_is_in_every_image_and_with_nothing_else() {
        let old = lock(&[("a", "1")]);
        let newer = |layer, name: &str, version: &str| {
            let mut new = Lock { epoch: old.epoch + 1, ..old.clone() };
            let package = lock(&[(name, version)]).layers.remove(&Layer::Root).unwrap();
            new.layers.insert(layer, package);
            new.keep_time(&old);
            new.epoch - old.epoch
        };
        assert_eq!(newer(Layer::Root, "a", "1"), 0);
        assert_eq!(newer(Layer::Root, "a", "2"), 1);
        assert_eq!(newer(Layer::Initrd, "b", "1"), 1);
        assert_eq!(newer(Layer::Driver, "b", "1"), 0);
        assert_eq!(newer(Layer::Tester, "b", "1"), 0);
        let mut rust = Lock { epoch: 0, rustc: "2".into(), ..old.clone() };
        rust.keep_time(&old);
        assert_eq!(rust.epoch, 0);
    }

    #[test]
    fn the_same_version_with_other_bytes_is_noticed() {
        let old = lock(&[("a", "1")]);
        let mut new = old.clone();
        let package = new.layers.get_mut(&Layer::Root).unwrap().get_mut("a").unwrap();
        package.digest = Digest::from_bytes([9; 32]);
        assert_eq!(new.diff(&old), ["root: a 1 has other bytes than before"]);
    }

    #[test]
    fn a_line_that_could_be_more_than_a_package_is_refused_by_name() {
        let digest = "0".repeat(64);
        for (name, line) in [
            ("../x", format!("1 all 1 {digest}")),
            ("-o", format!("1 all 1 {digest}")),
            ("a", format!("1;x all 1 {digest}")),
            ("a", format!("1 mips 1 {digest}")),
            ("a", format!("1 all -1 {digest}")),
            ("a", "1 all 1 abc".into()),
            ("a", format!("1 all 1 {digest} more")),
        ] {
            let text = format!(
                "arch = \"x86_64\"\nrustc = \"1\"\nepoch = 1\n[root]\n\"{name}\" = \"{line}\"\n"
            );
            let error = Lock::parse(&text).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("[root]"), "{error}");
        }
    }
}
