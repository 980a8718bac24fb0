//! Pure: what has to be done to have an image, in order. What is there already, from the same inputs, is
//! not made again.

use std::fmt;

use polder_control::{Plan, Step};
use sha2::{Digest as _, Sha256};

use crate::kernels::kinds;
use crate::keys::Digests;
use crate::lock::{Layer, Lock, Packages};
use crate::{Arch, Driver, Version};

/// Names something made by everything that it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

/// Bytes of a key: enough that no two builds ever meet, and short in a path.
const LENGTH: usize = 10;

impl Key {
    /// Of these inputs, in this order.
    pub fn of(inputs: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for input in inputs {
            // With the lengths, two lists of inputs never read alike.
            hash.update((input.len() as u64).to_le_bytes());
            hash.update(input);
        }
        let digest = hash.finalize();
        Self(digest[..LENGTH].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether this text is the form of a key.
    pub(crate) fn is_one(text: &str) -> bool {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        text.len() == 2 * LENGTH && text.bytes().all(digit)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing that is made once per [`Key`] and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// A small Debian in which images are made.
    Builder,
    /// The packages of the root file system, installed.
    Root,
    /// The initial file system.
    Initrd,
    /// NVIDIA's driver, built for the root's kernel.
    Driver,
    /// The engine's kernels, compiled for the cards that the driver drives.
    Kernels,
    /// `polder` itself, compiled for the image's machine.
    Program,
    /// The root file system, packed and sealed.
    Sealed,
    /// The boot entry and the disk.
    Disk,
}

impl Product {
    /// In the order in which they are made.
    pub const ALL: [Self; 8] = [
        Self::Builder,
        Self::Root,
        Self::Initrd,
        Self::Driver,
        Self::Kernels,
        Self::Program,
        Self::Sealed,
        Self::Disk,
    ];

    /// The first part of its folder's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Root => "root",
            Self::Initrd => "initrd",
            Self::Driver => "driver",
            Self::Kernels => "kernels",
            Self::Program => "program",
            Self::Sealed => "sealed",
            Self::Disk => "disk",
        }
    }

    fn title(self, arch: Arch) -> String {
        match self {
            Self::Builder => "Set up the builder, a small Debian of pinned packages".to_owned(),
            Self::Root => format!("Install the {arch} packages of the root file system"),
            Self::Initrd => "Make the initial file system".to_owned(),
            Self::Driver => "Build NVIDIA's driver for the kernel of the root".to_owned(),
            Self::Kernels => "Compile the engine's kernels for the cards that it drives".to_owned(),
            Self::Program => format!("Compile polder for {arch}"),
            Self::Sealed => "Pack the root file system and seal it with hashes".to_owned(),
            Self::Disk => "Make the boot entry and the disk".to_owned(),
        }
    }
}

/// Everything that an image is made from.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// Packages.
    pub lock: &'a Lock,
    /// The image's version.
    pub version: &'a Version,
    /// Digest of the sources that `polder` is compiled from, or of the program where one was given.
    pub program: [u8; 32],
    /// Digest of `image/tree`.
    pub tree: [u8; 32],
    /// Which driver it gets.
    pub driver: &'a Driver,
    /// Digest of `image/driver`.
    pub driver_tree: [u8; 32],
    /// Digest of the engine's kernels, and of how they are compiled.
    pub kernels: [u8; 32],
    /// Digests of the keys that it is signed with, if it is.
    pub keys: Option<Digests>,
    /// How large the partitions are.
    pub sizes: Sizes,
}

/// Partitions of a box's disk, as systemd-repart writes sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Boot loader and boot entries.
    pub esp: String,
    /// One root.
    pub root: String,
    /// Its hashes.
    pub verity: String,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { esp: "1G".into(), root: "2G".into(), verity: "64M".into() }
    }
}

/// The scripts that make things; a change in one makes what it makes anew.
pub(crate) mod scripts {
    pub(crate) const KEYS: &str = include_str!("../steps/keys.sh");
    pub(crate) const BOOTSTRAP: &str = include_str!("../steps/bootstrap.sh");
    pub(crate) const EMULATE: &str = include_str!("../steps/emulate.sh");
    pub(crate) const INITRD: &str = include_str!("../steps/initrd.sh");
    pub(crate) const DRIVER: &str = include_str!("../steps/driver.sh");
    pub(crate) const KERNELS: &str = include_str!("../steps/kernels.sh");
    pub(crate) const ROOT: &str = include_str!("../steps/root.sh");
    pub(crate) const DISK: &str = include_str!("../steps/disk.sh");
    /// The one file of the tree that the initial file system has too.
    pub(crate) const BOOT_DISK_RULES: &str =
        include_str!("../tree/usr/lib/udev/rules.d/70-polder-boot-disk.rules");
}

impl Inputs<'_> {
    /// The key of one product.
    pub fn key(&self, product: Product) -> Key {
        let Inputs { lock, version, program, tree, driver, driver_tree, kernels, keys, sizes } =
            self;
        let signed = |of: fn(&Digests) -> &[u8; 32]| keys.as_ref().map_or(&[][..], |keys| of(keys));
        let layer = |layer| packages(lock.layer(layer));
        let epoch = lock.epoch.to_le_bytes();
        let before = |product| self.key(product).0;
        let emulate = if lock.arch.emulated().is_some() { scripts::EMULATE } else { "" };
        match product {
            Product::Builder => builder(lock),
            Product::Root => Key::of(&[
                b"root",
                lock.arch.name().as_bytes(),
                layer(Layer::Root).as_bytes(),
                scripts::BOOTSTRAP.as_bytes(),
                emulate.as_bytes(),
                before(Product::Builder).as_bytes(),
                &epoch,
            ]),
            Product::Initrd => Key::of(&[
                b"initrd",
                layer(Layer::Initrd).as_bytes(),
                scripts::INITRD.as_bytes(),
                scripts::BOOT_DISK_RULES.as_bytes(),
                emulate.as_bytes(),
                before(Product::Root).as_bytes(),
            ]),
            Product::Driver => Key::of(&[
                b"driver",
                match driver {
                    Driver::None => String::new(),
                    Driver::Debian => layer(Layer::Driver),
                    Driver::Bundle(bundle) => format!("{} {}", bundle.version, bundle.digest),
                }
                .as_bytes(),
                layer(Layer::DriverTools).as_bytes(),
                scripts::DRIVER.as_bytes(),
                signed(|keys| &keys.boot),
                emulate.as_bytes(),
                before(Product::Root).as_bytes(),
            ]),
            // Not by the builder, which only unpacks the compiler: nothing of it goes in, and it takes minutes.
            Product::Kernels => Key::of(&[
                b"kernels",
                layer(Layer::Kernels).as_bytes(),
                kernels,
                kinds(lock, driver).join(" ").as_bytes(),
                scripts::KERNELS.as_bytes(),
            ]),
            Product::Program => Key::of(&[
                b"program",
                lock.arch.rust_target().as_bytes(),
                lock.rustc.as_bytes(),
                program,
            ]),
            Product::Sealed => Key::of(&[
                b"sealed",
                before(Product::Root).as_bytes(),
                before(Product::Program).as_bytes(),
                match driver {
                    Driver::None => String::new(),
                    _ => before(Product::Driver) + &before(Product::Kernels),
                }
                .as_bytes(),
                if **driver == Driver::None { &[] } else { driver_tree },
                tree,
                version.as_str().as_bytes(),
                signed(|keys| &keys.update),
                scripts::ROOT.as_bytes(),
            ]),
            Product::Disk => Key::of(&[
                b"disk",
                before(Product::Sealed).as_bytes(),
                before(Product::Initrd).as_bytes(),
                signed(|keys| &keys.boot),
                scripts::DISK.as_bytes(),
                format!("{sizes:?}").as_bytes(),
            ]),
        }
    }
}

/// The key of the builder, which follows from nothing but its packages.
pub(crate) fn builder(lock: &Lock) -> Key {
    let packages = packages(lock.layer(Layer::Builder));
    Key::of(&[b"builder", packages.as_bytes(), scripts::BOOTSTRAP.as_bytes()])
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fetch this many packages, of so many bytes.
    Fetch {
        /// How many.
        count: usize,
        /// All together.
        bytes: u64,
    },
    /// Make this.
    Make(Product),
    /// Lay the results out for the person who asked.
    HandOut,
}

impl Action {
    /// The step that people see.
    pub fn step(&self, arch: Arch) -> Step {
        let (id, title) = match self {
            Self::Fetch { count, bytes } => {
                let amount = bytes.div_ceil(1 << 20);
                ("fetch-packages", format!("Fetch {count} packages ({amount} MiB)"))
            }
            Self::Make(product) => (product.name(), product.title(arch)),
            Self::HandOut => {
                ("hand-out", "Write the image, its contents and its checksums".to_owned())
            }
        };
        Step { id: id.to_owned(), title }
    }
}

/// What has to be done. `missing` are the packages that are not here, by size; `there` says whether a
/// product is.
pub fn plan(
    inputs: &Inputs<'_>,
    missing: &[u64],
    there: &dyn Fn(Product, &Key) -> bool,
) -> (Plan, Vec<Action>) {
    // Both are handed out.
    let mut wanted = vec![Product::Disk, Product::Sealed];
    // What a product is made of is only needed where it has to be made.
    for product in Product::ALL.into_iter().rev() {
        if wanted.contains(&product) && !there(product, &inputs.key(product)) {
            wanted.extend(made_of(product, inputs.driver));
        }
    }
    let make: Vec<Product> = Product::ALL
        .into_iter()
        .filter(|product| wanted.contains(product) && !there(*product, &inputs.key(*product)))
        .collect();
    let packaged =
        [Product::Builder, Product::Root, Product::Initrd, Product::Driver, Product::Kernels];
    let mut actions = Vec::new();
    if !missing.is_empty() && make.iter().any(|product| packaged.contains(product)) {
        actions.push(Action::Fetch { count: missing.len(), bytes: missing.iter().sum() });
    }
    actions.extend(make.into_iter().map(Action::Make));
    actions.push(Action::HandOut);
    let arch = inputs.lock.arch;
    let title = format!("Make the {arch} image {}", inputs.version);
    (Plan { title, steps: actions.iter().map(|action| action.step(arch)).collect() }, actions)
}

fn made_of(product: Product, driver: &Driver) -> Vec<Product> {
    let mut parts = match product {
        Product::Builder | Product::Program => vec![],
        Product::Root | Product::Kernels => vec![Product::Builder],
        Product::Initrd | Product::Driver => vec![Product::Root, Product::Builder],
        Product::Sealed => vec![Product::Root, Product::Program, Product::Builder],
        Product::Disk => vec![Product::Sealed, Product::Initrd, Product::Builder],
    };
    if product == Product::Sealed && *driver != Driver::None {
        parts.extend([Product::Driver, Product::Kernels]);
    }
    parts
}

fn packages(packages: &Packages) -> String {
    packages.iter().map(|(name, package)| format!("{name} {package}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn lock() -> Lock {
        Lock { arch: Arch::X86_64, rustc: "1.95.0".into(), epoch: 1, layers: BTreeMap::new() }
    }

    fn version() -> Version {
        "0.1.0".parse().unwrap()
    }

    fn inputs<'a>(lock: &'a Lock, version: &'a Version) -> Inputs<'a> {
        Inputs {
            lock,
            version,
            program: [1; 32],
            tree: [2; 32],
            driver: &Driver::None,
            driver_tree: [3; 32],
            kernels: [4; 32],
            keys: None,
            sizes: Sizes::default(),
        }
    }

    #[test]
    fn the_first_image_is_made_from_nothing_in_this_order() {
        let (lock, version) = (lock(), version());
        let (plan, _) = plan(&inputs(&lock, &version), &[3 << 20, 1], &|_, _| false);
        assert_eq!(
            plan.to_string(),
            "Make the x86_64 image 0.1.0\n  \
             1. Fetch 2 packages (4 MiB)\n  \
             2. Set up the builder, a small Debian of pinned packages\n  \
             3. Install the x86_64 packages of the root file system\n  \
             4. Make the initial file system\n  \
             5. Compile polder for x86_64\n  \
             6. Pack the root file system and seal it with hashes\n  \
             7. Make the boot entry and the disk\n  \
             8. Write the image, its contents and its checksums"
        );
    }

    #[test]
    fn what_is_there_from_the_same_inputs_is_not_made_again() {
        let (lock, version) = (lock(), version());
        let first = inputs(&lock, &version);
        let there: BTreeSet<Key> = Product::ALL.map(|product| first.key(product)).into();
        let made = |inputs: &Inputs<'_>| {
            let (_, actions) = plan(inputs, &[], &|_, key| there.contains(key));
            actions
        };
        let make = Action::Make;
        assert_eq!(made(&first), [Action::HandOut]);
        // Another file in the tree: no package is installed again, and nothing compiled.
        let tree = Inputs { tree: [9; 32], ..first.clone() };
        assert_eq!(made(&tree), [make(Product::Sealed), make(Product::Disk), Action::HandOut]);
        // Another key for what a machine starts changes nothing in the root; one for updates does.
        let keys = |update, boot| Some(Digests { update: [update; 32], boot: [boot; 32] });
        let signed = Inputs { keys: keys(1, 1), ..first.clone() };
        assert_eq!(made(&signed), [make(Product::Sealed), make(Product::Disk), Action::HandOut]);
        let again = Inputs { keys: keys(1, 2), ..first.clone() };
        assert_eq!(signed.key(Product::Sealed), again.key(Product::Sealed));
        assert_ne!(signed.key(Product::Disk), again.key(Product::Disk));
        // A driver's modules are signed with it.
        assert_ne!(signed.key(Product::Driver), again.key(Product::Driver));
        let sizes = Sizes { root: "1G".into(), ..Sizes::default() };
        let larger = Inputs { sizes, ..first.clone() };
        assert_eq!(made(&larger), [make(Product::Disk), Action::HandOut]);
        let mut newer = lock.clone();
        newer.epoch = 2;
        let newer = Inputs { lock: &newer, ..first.clone() };
        assert!(!made(&newer).contains(&make(Product::Builder)));
        assert!(made(&newer).contains(&make(Product::Root)));
    }

    #[test]
    fn a_driver_costs_four_steps_and_is_not_built_again_for_another_program() {
        let (lock, version) = (lock(), version());
        let without = inputs(&lock, &version);
        let with = Inputs { driver: &Driver::Debian, ..without.clone() };
        let own = [Product::Driver, Product::Kernels];
        let made = Product::ALL.into_iter().filter(|product| !own.contains(product));
        let mut there: BTreeSet<Key> = made.map(|product| without.key(product)).collect();
        let make = Action::Make;
        let (_, actions) = plan(&with, &[], &|_, key| there.contains(key));
        let driver = [Product::Driver, Product::Kernels, Product::Sealed, Product::Disk].map(make);
        assert_eq!(actions, [&driver[..], &[Action::HandOut]].concat());
        there.extend(Product::ALL.map(|product| with.key(product)));
        let other = Inputs { program: [9; 32], ..with };
        let (_, actions) = plan(&other, &[], &|_, key| there.contains(key));
        assert!(!own.iter().any(|own| actions.contains(&make(*own))), "{actions:?}");
        let sources = Inputs { kernels: [9; 32], ..other };
        let (_, actions) = plan(&sources, &[], &|_, key| there.contains(key));
        assert!(actions.contains(&make(Product::Kernels)), "{actions:?}");
        assert!(!actions.contains(&make(Product::Driver)), "{actions:?}");
        // What only a driver needs is no part of an image without one.
        let files = Inputs { driver_tree: [9; 32], kernels: [9; 32], ..without };
        let (_, actions) = plan(&files, &[], &|_, key| there.contains(key));
        assert_eq!(actions, [Action::HandOut]);
    }

    #[test]
    fn a_lost_root_is_made_again_beside_a_disk_that_is_there() {
        let (lock, version) = (lock(), version());
        let inputs = inputs(&lock, &version);
        let (_, actions) = plan(&inputs, &[], &|product, _| product != Product::Sealed);
        assert_eq!(actions, [Action::Make(Product::Sealed), Action::HandOut]);
    }

    #[test]
    fn a_lost_builder_alone_is_no_reason_to_make_anything() {
        let (lock, version) = (lock(), version());
        let inputs = inputs(&lock, &version);
        let (_, actions) = plan(&inputs, &[1], &|product, _| product != Product::Builder);
        assert_eq!(actions, [Action::HandOut]);
    }
}
