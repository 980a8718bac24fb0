//! The engine's kernels in an image with a driver: for which kinds of cards they are, and how they are compiled.

use std::path::{Path, PathBuf};

use crate::lock::{Layer, Lock};
use crate::plan::{Inputs, scripts};
use crate::room::Room;
use crate::workshop::borrowed;
use crate::{Arch, Driver, ImageError, Order, Workshop};

/// Who compiles the engine's kernels, and from which sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiling {
    /// A `polder` that runs on the machine that makes images.
    pub program: PathBuf,
    /// Digest of the sources in it, and of how it compiles them.
    pub sources: [u8; 32],
}

/// The first series of NVIDIA's driver that drives Blackwell.
const BLACKWELL: u32 = 570;

/// The kinds of cards that a machine of this kind may have and the driver drives, as the compiler names them. None without a driver.
pub(crate) fn kinds(lock: &Lock, driver: &Driver) -> &'static [&'static str] {
    let new = match series(lock, driver) {
        None => return &[],
        Some(series) => series >= BLACKWELL,
    };
    match (lock.arch, new) {
        (Arch::X86_64, false) => &["sm_80", "sm_89", "sm_90a"],
        (Arch::X86_64, true) => &["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120"],
        // Grace has had no older card at its side; GB10 runs what is for 12.0.
        (Arch::Aarch64, false) => &["sm_90a"],
        (Arch::Aarch64, true) => &["sm_90a", "sm_100a", "sm_103a", "sm_120"],
    }
}

/// 550 of 550.163.01. A driver that does not say counts as an old one.
fn series(lock: &Lock, driver: &Driver) -> Option<u32> {
    let version = match driver {
        Driver::None => return None,
        Driver::Debian => lock.layer(Layer::Driver).get("libcuda1").map(|p| p.version.as_str()),
        Driver::Bundle(bundle) => Some(bundle.version.as_str()),
    };
    let first = version.and_then(|version| version.split('.').next());
    Some(first.and_then(|first| first.parse().ok()).unwrap_or_default())
}

impl Workshop {
    /// Compiles them. Machine code of cards is the same whatever machine has made it: nothing is emulated.
    pub(crate) fn kernels(
        &self,
        order: &Order,
        inputs: &Inputs<'_>,
        room: &Room,
        out: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        let wheels = self.cache.scratch("wheels")?;
        for (name, package) in inputs.lock.layer(Layer::Kernels) {
            self.cache.debs().give(name, package, &wheels.0.join(format!("{name}.whl")))?;
        }
        let program = &order.compiling.program;
        let beside = program.parent().unwrap_or(Path::new("/"));
        let folders =
            [("wheels", wheels.0.clone()), ("maker", beside.to_owned()), ("out", out.to_owned())];
        let maker = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let settings = [("MAKER", maker), ("KINDS", kinds(inputs.lock, inputs.driver).join(" "))];
        let room = Room { emulates: None, ..room.clone() };
        room.run("compiling the kernels", scripts::KERNELS, &borrowed(&folders), &settings, log)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use polder_recipes::Digest;

    use super::*;
    use crate::{Bundle, Package, Packages};

    fn lock(arch: Arch) -> Lock {
        let (version, arch_) = ("550.163.01-2".into(), "amd64".into());
        let package =
            Package { version, arch: arch_, size: 1, digest: Digest::from_bytes([1; 32]) };
        let driver = Packages::from([("libcuda1".to_owned(), package)]);
        let layers = BTreeMap::from([(Layer::Driver, driver)]);
        Lock { arch, rustc: "1.95.0".into(), epoch: 1, layers }
    }

    fn bundle(version: &str, arch: Arch) -> Driver {
        let (file, digest) = ("x.run".into(), Digest::from_bytes([2; 32]));
        Driver::Bundle(Bundle { version: version.into(), arch, file, digest })
    }

    #[test]
    fn there_are_kernels_for_what_the_driver_drives_and_a_machine_may_have() {
        let (workstation, grace) = (lock(Arch::X86_64), lock(Arch::Aarch64));
        assert_eq!(kinds(&workstation, &Driver::None), [""; 0]);
        assert_eq!(kinds(&workstation, &Driver::Debian), ["sm_80", "sm_89", "sm_90a"]);
        let newer = kinds(&workstation, &bundle("580.95.05", Arch::X86_64)).to_vec();
        assert_eq!(newer[3..], ["sm_100a", "sm_103a", "sm_120"]);
        assert_eq!(kinds(&workstation, &bundle("565.57", Arch::X86_64)).len(), 3);
        assert_eq!(kinds(&grace, &Driver::Debian), ["sm_90a"]);
        assert!(kinds(&grace, &bundle("580.95.05", Arch::Aarch64)).contains(&"sm_103a"));
    }
}
