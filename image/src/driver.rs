//! NVIDIA's driver in an image: where it comes from, for which kernel it is built, and which cards it drives.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use polder_recipes::{BoxSpec, Digest};
use serde::Deserialize;

use crate::debs::digest_of;
use crate::kernels::kinds;
use crate::keys::Keys;
use crate::lock::{Layer, Packages};
use crate::plan::{Inputs, Product, scripts};
use crate::room::Room;
use crate::workshop::{borrowed, read};
use crate::{Arch, ImageError, Order, Workshop};

/// Which driver an image gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// None: such an image computes on the processor, and says so.
    None,
    /// The one of the lock, from Debian's packages.
    Debian,
    /// The one in NVIDIA's own package, for cards that are newer than what Debian has.
    Bundle(Bundle),
}

impl Driver {
    /// The layers of a lock that an image with it is made of and with.
    pub fn layers(&self) -> Vec<Layer> {
        let without: &[Layer] = match self {
            Self::None => &[Layer::Driver, Layer::DriverTools, Layer::Kernels],
            Self::Debian => &[],
            Self::Bundle(_) => &[Layer::Driver],
        };
        Layer::ALL.into_iter().filter(|layer| !without.contains(layer)).collect()
    }
}

/// NVIDIA's own package for Linux, a file that somebody fetched: `NVIDIA-Linux-x86_64-580.95.05.run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its version: `580.95.05`.
    pub version: String,
    /// For which machines it is.
    pub arch: Arch,
    /// Where it is.
    pub file: PathBuf,
    /// What it must be.
    pub digest: Digest,
}

impl Bundle {
    /// Reads a description; `file` in it is relative to where the description is.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let text = fs::read_to_string(path).map_err(ImageError::file("read", path))?;
        let refused = |why: String| ImageError::Bundle { path: path.to_owned(), why };
        let Written { version, arch, file, sha256 } =
            toml::from_str(&text).map_err(|error| refused(error.message().to_owned()))?;
        // It names folders, and goes into scripts.
        let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if version.is_empty() || version.len() > 32 || !version.split('.').all(number) {
            return Err(refused(format!("{version:?} is no version such as 580.95.05")));
        }
        let file = path.parent().unwrap_or(Path::new("")).join(file);
        Ok(Self { version, arch, file, digest: sha256 })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: String,
    arch: Arch,
    file: PathBuf,
    sha256: Digest,
}

/// The package with the headers of the very kernel that a root has.
pub(crate) fn headers(root: &Packages) -> Option<String> {
    let kernel = root.keys().find_map(|name| {
        let kernel = name.strip_prefix("linux-image-")?;
        // `linux-image-amd64` only depends on the one of the day.
        kernel.starts_with(|c: char| c.is_ascii_digit()).then_some(kernel)
    });
    kernel.map(|kernel| format!("linux-headers-{kernel}"))
}

/// The cards that a driver's open modules drive, by the names that it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cards {
    names: BTreeSet<String>,
}

impl Cards {
    /// Reads a driver's own list, `supported-gpus.json`, which also has what only other drivers know.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct List {
            chips: Vec<Chip>,
        }
        #[derive(Deserialize)]
        struct Chip {
            name: String,
            features: Vec<String>,
        }
        let list: List = serde_json::from_str(json)?;
        let open = |chip: &Chip| chip.features.iter().any(|feature| feature == "kernelopen");
        Ok(Self { names: list.chips.into_iter().filter(open).map(|chip| chip.name).collect() })
    }

    /// Whether the driver drives the card in this machine; no machine without a card is asked about.
    pub fn drive(&self, machine: &BoxSpec) -> bool {
        self.names.iter().any(|name| machine.has_card(name))
    }
}

/// How many kinds of card, and which of the machines that Polder knows can be used.
impl fmt::Display for Cards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_cards = BoxSpec::builtin().iter().filter(|machine| !machine.is_cpu());
        let (yes, no): (Vec<_>, Vec<_>) = with_cards.partition(|machine| self.drive(machine));
        let names = |machines: &[&BoxSpec]| match machines {
            [] => "none".to_owned(),
            some => some.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        let (count, yes, no) = (self.names.len(), names(&yes), names(&no));
        write!(f, "{count} kinds of card; of the machines that Polder knows: {yes}; not: {no}")
    }
}

/// A driver as it is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Its version.
    pub version: String,
    /// Bytes of the packed root that are its own.
    pub size: u64,
    /// The same of the engine's kernels, which are there because of it.
    pub kernels: u64,
    /// The kinds of cards that they are for: `sm_90a`.
    pub kinds: &'static [&'static str],
    /// What it drives.
    pub cards: Cards,
}

impl Workshop {
    /// Builds the driver's modules for the kernel of the root, signed with the key that machines start it by.
    pub(crate) fn driver(
        &self,
        order: &Order,
        inputs: &Inputs<'_>,
        room: &Room,
        out: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        let lock = inputs.lock;
        let (tools, parts) = (self.cache.scratch("tools")?, self.cache.scratch("parts")?);
        let none = self.cache.scratch("keys")?;
        let keys = order.keys.as_ref().map_or(none.0.as_path(), Keys::folder);
        let lay_out = |layer, folder| {
            self.cache.debs().lay_out(&[lock.layer(layer)], &[], "driver", folder, log)
        };
        lay_out(Layer::DriverTools, &tools.0)?;
        if let Driver::Bundle(bundle) = &order.driver {
            let (found, _) = digest_of(&bundle.file)?;
            if found != bundle.digest {
                let (path, expected) = (bundle.file.clone(), bundle.digest);
                return Err(ImageError::WrongFile { path, expected, found });
            }
            let to = parts.0.join("driver.run");
            fs::copy(&bundle.file, &to).map_err(ImageError::file("write", &to))?;
        } else {
            lay_out(Layer::Driver, &parts.0)?;
        }
        let folders = [
            ("root", self.place(Product::Root, &inputs.key(Product::Root))),
            ("tools", tools.0.clone()),
            ("parts", parts.0.clone()),
            ("keys", keys.to_owned()),
            ("out", out.to_owned()),
        ];
        let settings = [
            ("MULTIARCH", lock.arch.multiarch().to_owned()),
            ("SIGNED", order.keys.iter().map(|_| "yes").collect()),
        ];
        let what = "building the driver";
        room.run(what, scripts::DRIVER, &borrowed(&folders), &settings, log)?;
        if let Driver::Bundle(bundle) = &order.driver {
            let found = read(&out.join("version"))?.trim().to_owned();
            if found != bundle.version {
                let (path, wanted) = (bundle.file.clone(), bundle.version.clone());
                return Err(ImageError::OtherDriver { path, wanted, found });
            }
        }
        Ok(())
    }

    /// What the driver in an image is, if it has one.
    pub(crate) fn built(&self, inputs: &Inputs<'_>) -> Result<Option<Built>, ImageError> {
        if *inputs.driver == Driver::None {
            return Ok(None);
        }
        let place = self.place(Product::Driver, &inputs.key(Product::Driver));
        let version = read(&place.join("version"))?.trim().to_owned();
        let size = |place: &Path| -> Result<u64, ImageError> {
            Ok(read(&place.join("size"))?.trim().parse().unwrap_or_default())
        };
        let kernels = self.place(Product::Kernels, &inputs.key(Product::Kernels));
        let (size, kernels) = (size(&place)?, size(&kernels)?);
        let kinds = kinds(inputs.lock, inputs.driver);
        let cards = Cards::parse(&read(&place.join("supported-gpus.json"))?);
        Ok(Some(Built { version, size, kernels, kinds, cards: cards.map_err(ImageError::Cards)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Package;

    const LIST: &str = r#"{"chips": [
        {"devid": "0x0020", "name": "RIVA TNT", "legacybranch": "71.86.xx", "features": []},
        {"devid": "0x2330", "subdevid": "0x16C0", "subvendorid": "0x10DE", "name": "NVIDIA H100 80GB HBM3",
         "features": ["runtimepm", "kernelopen"]},
        {"devid": "0x2330", "subdevid": "0x16C1", "subvendorid": "0x10DE", "name": "NVIDIA H100 80GB HBM3",
         "features": ["runtimepm", "kernelopen"]},
        {"devid": "0x2757", "name": "NVIDIA GeForce RTX 4090 Laptop GPU", "features": ["kernelopen"]},
        {"devid": "0x1B06", "name": "NVIDIA GeForce GTX 1080 Ti", "features": ["hdmi4k"]}
    ]}"#;

    #[test]
    fn a_drivers_list_says_which_known_machines_an_image_can_use() {
        let cards = Cards::parse(LIST).unwrap();
        assert!(cards.drive(BoxSpec::find("h100-80").unwrap()));
        // A laptop's chip of nearly that name is another one.
        assert!(!cards.drive(BoxSpec::find("rtx-4090-24").unwrap()));
        let told = cards.to_string();
        let known = "2 kinds of card; of the machines that Polder knows: h100-80; not: ";
        assert!(told.starts_with(known) && told.contains("dgx-station-gb300"), "{told}");
        assert!(!told.contains("cpu"), "{told}");
    }

    #[test]
    fn a_list_of_another_shape_is_refused() {
        for text in ["", "[]", r#"{"chips": [{"name": "x"}]}"#] {
            assert!(Cards::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_headers_are_those_of_the_kernel_that_the_root_has() {
        let package = Package {
            version: "1".into(),
            arch: "amd64".into(),
            size: 1,
            digest: Digest::from_bytes([1; 32]),
        };
        let root = |names: &[&str]| -> Packages {
            names.iter().map(|name| ((*name).to_owned(), package.clone())).collect()
        };
        let both = root(&["linux-base", "linux-image-6.12.117+deb13-amd64", "linux-image-amd64"]);
        assert_eq!(headers(&both).as_deref(), Some("linux-headers-6.12.117+deb13-amd64"));
        assert_eq!(headers(&root(&["linux-image-amd64"])), None);
    }

    #[test]
    fn a_bundle_is_a_file_beside_its_description_with_a_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("580.toml");
        let write = |version: &str, more: &str| {
            let digest = "0".repeat(64);
            let text = format!(
                "version = \"{version}\"\narch = \"aarch64\"\nfile = \"x.run\"\nsha256 = \"{digest}\"\n{more}"
            );
            fs::write(&path, text).unwrap();
            Bundle::open(&path)
        };
        let bundle = write("580.95.05", "").unwrap();
        assert_eq!(bundle.file, folder.path().join("x.run"));
        assert_eq!((bundle.version.as_str(), bundle.arch), ("580.95.05", Arch::Aarch64));
        for (version, more) in
            [("", ""), ("580;x", ""), ("../580", ""), ("580.", ""), ("580", "mirror = \"x\"\n")]
        {
            let error = write(version, more).unwrap_err().to_string();
            assert!(error.contains("580.toml"), "{error}");
        }
    }
}
