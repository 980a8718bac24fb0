//! Where images are made: the cache of products, and the carrying out of plans.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use polder_control::Plan;
use polder_recipes::Digest;
use polder_update::{Manifest, Part};
use sha2::{Digest as _, Sha256};

use crate::apt::{Apt, Mirror};
use crate::cache::{Cache, TESTER, Times};
use crate::command::{answer, run};
use crate::debs::digest_of;
use crate::driver::{Built, Driver, headers};
use crate::kernels::{Compiling, kinds};
use crate::keys::Keys;
use crate::lock::{Layer, Lock, Package, Packages};
use crate::plan::{Action, Inputs, Key, Product, Sizes, builder, plan, scripts};
use crate::room::Room;
use crate::spdx::{Contents, TREE, crates, spdx};
use crate::uuid::hex;
use crate::wheels::{self, pinned};
use crate::{Arch, ImageError, Source, Version};

/// What image to make.
#[derive(Debug, Clone)]
pub struct Order {
    /// For which machines.
    pub arch: Arch,
    /// Its version.
    pub version: Version,
    /// How large the partitions are.
    pub sizes: Sizes,
    /// Which driver it gets.
    pub driver: Driver,
    /// What compiles the engine's kernels, where there is a driver.
    pub compiling: Compiling,
    /// What it is signed with. Without them it is not, and a box that runs it takes no updates.
    pub keys: Option<Keys>,
    /// This program instead of one compiled from the checkout.
    pub program: Option<PathBuf>,
    /// Files that are laid over the checkout's own tree: a collective's keys and units.
    pub also: Option<PathBuf>,
    /// Where the results go.
    pub out: PathBuf,
}

/// What happens while a plan is carried out.
#[derive(Debug)]
pub enum News<'a> {
    /// This will be done.
    Planned(&'a Plan),
    /// A step begins; so long it took last time.
    Begun(usize, Option<Duration>),
    /// A step is done.
    Done(usize, Duration),
}

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The disk, as it goes onto a stick.
    pub disk: PathBuf,
    /// The boot entry.
    pub entry: PathBuf,
    /// The packed root and its hashes.
    pub root: [PathBuf; 2],
    /// What is in it, as SPDX.
    pub contents: PathBuf,
    /// What it is, for boxes that take it as an update.
    pub manifest: PathBuf,
    /// Bytes of what an update of a box would fetch: the boot entry, the packed root and its hashes.
    pub size: u64,
    /// The driver in it.
    pub driver: Option<Built>,
}

impl Made {
    /// Every file whose bytes follow from the lock and the checkout.
    pub fn files(&self) -> [&Path; 6] {
        let [root, verity] = &self.root;
        [root, verity, &self.entry, &self.disk, &self.contents, &self.manifest]
            .map(PathBuf::as_path)
    }
}

/// A cache folder, a checkout, and where packages come from.
#[derive(Debug)]
pub struct Workshop {
    pub(crate) source: Source,
    pub(crate) cache: Cache,
    mirror: Option<Mirror>,
}

impl Workshop {
    /// Takes the cache folder for this process; waits for another one that has it.
    pub fn open(source: Source, cache: &Path, mirror: Option<Mirror>) -> Result<Self, ImageError> {
        if !is_root() {
            return Err(ImageError::NotRoot);
        }
        Ok(Self { source, cache: Cache::open(cache)?, mirror })
    }

    /// What would be done for this order.
    pub fn plan(&self, order: &Order) -> Result<Plan, ImageError> {
        let lock = self.lock(order.arch, &order.driver)?;
        Ok(self.steps(&self.inputs(order, &lock)?).0)
    }

    /// Makes an image.
    pub fn build(&self, order: &Order, tell: &mut dyn FnMut(News<'_>)) -> Result<Made, ImageError> {
        let lock = self.lock(order.arch, &order.driver)?;
        let inputs = self.inputs(order, &lock)?;
        let (plan, actions) = self.steps(&inputs);
        tell(News::Planned(&plan));
        let mut times = Times::of(&self.cache);
        let mut made = None;
        for (index, action) in actions.iter().enumerate() {
            let step = &plan.steps[index].id;
            tell(News::Begun(index, times.last(step)));
            let begun = Instant::now();
            match action {
                Action::Fetch { .. } => self.fetch(&lock, &order.driver.layers())?,
                Action::Make(product) => self.make(*product, order, &inputs)?,
                Action::HandOut => made = Some(self.hand_out(order, &inputs)?),
            }
            times.note(step, begun.elapsed());
            tell(News::Done(index, begun.elapsed()));
        }
        for product in Product::ALL {
            let place = self.place(product, &inputs.key(product));
            if place.is_dir() {
                self.cache.used(&place)?;
            }
        }
        self.cache.sweep()?;
        Ok(made.expect("every plan ends with the handing out"))
    }

    /// A workshop with another folder for its products, and the same packages.
    pub(crate) fn apart(&self, folder: &Path) -> Result<Self, ImageError> {
        let cache = self.cache.apart(folder)?;
        Ok(Self { source: self.source.clone(), cache, mirror: self.mirror.clone() })
    }

    /// Where a product of this order is; made if it is not there.
    pub(crate) fn product(&self, product: Product, order: &Order) -> Result<PathBuf, ImageError> {
        let lock = self.lock(order.arch, &order.driver)?;
        let inputs = self.inputs(order, &lock)?;
        let place = self.place(product, &inputs.key(product));
        if !place.is_dir() {
            self.make(product, order, &inputs)?;
        }
        Ok(place)
    }

    /// Where a product of this order is, or would be.
    pub(crate) fn place_of(&self, product: Product, order: &Order) -> Result<PathBuf, ImageError> {
        let lock = self.lock(order.arch, &order.driver)?;
        Ok(self.place(product, &self.inputs(order, &lock)?.key(product)))
    }

    /// The room in which images are made; set up if it is not there.
    pub(crate) fn builder(&self, arch: Arch) -> Result<Room, ImageError> {
        let lock = self.lock(arch, &Driver::None)?;
        let place = self.place(Product::Builder, &builder(&lock));
        if !place.is_dir() {
            if !self.cache.debs().missing(&lock, &[Layer::Builder]).is_empty() {
                self.fetch(&lock, &[Layer::Builder])?;
            }
            let (log, out) = (self.cache.log("builder")?, self.cache.scratch("builder")?);
            self.bootstrap(&lock, Layer::Builder, &out.0, &log)?;
            out.keep_at(&place)?;
        }
        self.cache.used(&place)?;
        Ok(Room { root: place, epoch: lock.epoch, emulates: None })
    }

    /// The room in which images are booted for tests; set up if it is not there.
    pub fn tester(&self, arch: Arch) -> Result<PathBuf, ImageError> {
        let lock = self.lock(arch, &Driver::None)?;
        let packages = lock.layer(Layer::Tester);
        let text: String = packages.iter().map(|(name, p)| format!("{name} {p}\n")).collect();
        let key = Key::of(&[b"tester", text.as_bytes(), scripts::BOOTSTRAP.as_bytes()]);
        let place = self.cache.folder().join(format!("{TESTER}-{key}"));
        if !place.is_dir() {
            self.fetch(&lock, &[Layer::Tester])?;
            let log = self.cache.log("tester")?;
            let out = self.cache.scratch("tester")?;
            self.bootstrap(&lock, Layer::Tester, &out.0, &log)?;
            out.keep_at(&place)?;
        }
        self.cache.used(&place)?;
        Ok(place)
    }

    /// Resolves what the checkout wants, fetches it, and says what the lock becomes. `now` is the time
    /// that everything in images from this lock will bear.
    pub fn resolve(&self, arch: Arch, now: u64) -> Result<Lock, ImageError> {
        let want = self.source.want()?;
        let log = self.cache.log("lock")?;
        let scratch = self.cache.scratch("apt")?;
        let rustc = rustc_version(&log)?;
        let provider = self.provider(&scratch.0, 0, &log)?;
        let also = scratch.0.join("own");
        self.cache.debs().lay_out(&[], &[provider], &want.suite, &also, &log)?;
        let mut layers: BTreeMap<Layer, Packages> = BTreeMap::new();
        for layer in Layer::ALL {
            if want.wheels(layer) {
                layers.insert(layer, self.wheels(&want.packages(layer, arch), &log)?);
                continue;
            }
            let own =
                if matches!(layer, Layer::Builder | Layer::Tester) { working() } else { arch };
            let (folder, parts) = (scratch.0.join(layer.name()), want.components(layer));
            let apt =
                Apt::new(&folder, own, &want.suite, parts, self.mirror()?, Some(&also), &log)?;
            let mut names = want.packages(layer, arch);
            if want.apart(layer) {
                layers.insert(layer, self.cache.debs().bring(&apt, &apt.alone(&names)?)?);
                continue;
            }
            let on_root = matches!(layer, Layer::Initrd | Layer::DriverTools);
            if on_root || layer == Layer::Root {
                names.push(PROVIDER.to_owned());
            }
            if layer == Layer::DriverTools {
                let root = layers.get(&Layer::Root);
                names.push(root.and_then(headers).ok_or(ImageError::NoKernel)?);
            }
            if on_root {
                names.extend(want.packages(Layer::Root, arch));
            }
            let mut found = apt.resolve(&names)?;
            found.retain(|package| package.name != PROVIDER);
            if on_root {
                let root = layers.get(&Layer::Root);
                found.retain(|package| root.is_none_or(|root| !root.contains_key(&package.name)));
            }
            layers.insert(layer, self.cache.debs().bring(&apt, &found)?);
        }
        Ok(Lock { arch, rustc, epoch: now, layers })
    }

    /// What PyPI has of these names and versions, for the machine that makes images.
    fn wheels(&self, names: &[String], log: &Path) -> Result<Packages, ImageError> {
        let mut packages = Packages::new();
        for wanted in names {
            let (name, version) =
                pinned(wanted).ok_or_else(|| ImageError::Loose(wanted.clone()))?;
            let scratch = self.cache.scratch("wheel")?;
            let (digest, size) =
                self.cache.debs().take(&wheels::fetch(name, version, &scratch.0, log)?)?;
            let (version, arch) = (version.to_owned(), working().debian().to_owned());
            packages.insert(name.to_owned(), Package { version, arch, size, digest });
        }
        Ok(packages)
    }

    fn lock(&self, arch: Arch, driver: &Driver) -> Result<Lock, ImageError> {
        let lock = self.source.lock(arch)?;
        for layer in driver.layers() {
            if lock.layer(layer).is_empty() {
                return Err(ImageError::EmptyLayer { path: self.source.lock_path(arch), layer });
            }
        }
        Ok(lock)
    }

    fn inputs<'a>(&self, order: &'a Order, lock: &'a Lock) -> Result<Inputs<'a>, ImageError> {
        let program = match &order.program {
            Some(path) => *digest_of(path)?.0.as_bytes(),
            None => self.source.program_digest()?,
        };
        let tree = match &order.also {
            None => self.source.tree_digest()?,
            Some(also) => {
                let own = self.source.tree_digest()?;
                Sha256::new_with_prefix(own)
                    .chain_update(Source::digest_of_tree(also)?)
                    .finalize()
                    .into()
            }
        };
        let keys = order.keys.as_ref().map(Keys::digests).transpose()?;
        if let Driver::Bundle(bundle) = &order.driver
            && bundle.arch != lock.arch
        {
            let (version, found, wanted) = (bundle.version.clone(), bundle.arch, lock.arch);
            return Err(ImageError::OtherBundle { version, found, wanted });
        }
        Ok(Inputs {
            lock,
            version: &order.version,
            program,
            tree,
            driver: &order.driver,
            driver_tree: self.source.driver_tree_digest()?,
            kernels: order.compiling.sources,
            keys,
            sizes: order.sizes.clone(),
        })
    }

    fn steps(&self, inputs: &Inputs<'_>) -> (Plan, Vec<Action>) {
        let missing = self.cache.debs().missing(inputs.lock, &inputs.driver.layers());
        let missing: Vec<u64> = missing.iter().map(|(_, package)| package.size).collect();
        plan(inputs, &missing, &|product, key| self.place(product, key).is_dir())
    }

    pub(crate) fn place(&self, product: Product, key: &Key) -> PathBuf {
        self.cache.place(product, key)
    }

    fn mirror(&self) -> Result<&Mirror, ImageError> {
        self.mirror.as_ref().ok_or(ImageError::NoMirror)
    }

    /// Fetches what is missing of these layers, each from the parts of the archive that it may be taken from.
    fn fetch(&self, lock: &Lock, layers: &[Layer]) -> Result<(), ImageError> {
        let (log, want) = (self.cache.log("fetch")?, self.source.want()?);
        let mut by_parts: BTreeMap<&[String], Vec<Layer>> = BTreeMap::new();
        for layer in layers {
            if want.wheels(*layer) {
                let scratch = self.cache.scratch("wheel")?;
                self.cache.debs().fetch_wheels(lock, *layer, &scratch.0, &log)?;
                continue;
            }
            by_parts.entry(want.components(*layer)).or_default().push(*layer);
        }
        for (parts, layers) in by_parts {
            if self.cache.debs().missing(lock, &layers).is_empty() {
                continue;
            }
            let scratch = self.cache.scratch("apt")?;
            let mirror = self.mirror()?;
            let apt = Apt::new(&scratch.0, lock.arch, &want.suite, parts, mirror, None, &log)?;
            self.cache.debs().fetch(lock, &layers, &apt)?;
        }
        Ok(())
    }

    /// Makes a product beside its place and moves it there when it is whole.
    fn make(&self, product: Product, order: &Order, inputs: &Inputs<'_>) -> Result<(), ImageError> {
        let place = self.place(product, &inputs.key(product));
        let log = self.cache.log(product.name())?;
        let out = self.cache.scratch(product.name())?;
        let of = |product| self.place(product, &inputs.key(product));
        let room = Room {
            root: of(Product::Builder),
            epoch: inputs.lock.epoch,
            emulates: inputs.lock.arch.emulated(),
        };
        let what = product.name();
        match product {
            Product::Builder => self.bootstrap(inputs.lock, Layer::Builder, &out.0, &log)?,
            Product::Root => self.root(inputs, &room, &out.0, &log)?,
            Product::Initrd => {
                let repo = self.cache.scratch("repo")?;
                self.cache.debs().lay_out(
                    &[inputs.lock.layer(Layer::Initrd)],
                    &[],
                    "initrd",
                    &repo.0,
                    &log,
                )?;
                let folders =
                    [("root", of(Product::Root)), ("repo", repo.0.clone()), ("out", out.0.clone())];
                let settings = [
                    ("MULTIARCH", inputs.lock.arch.multiarch().to_owned()),
                    ("BOOT_DISK_RULES", scripts::BOOT_DISK_RULES.to_owned()),
                ];
                room.run(what, scripts::INITRD, &borrowed(&folders), &settings, &log)?;
            }
            Product::Driver => self.driver(order, inputs, &room, &out.0, &log)?,
            Product::Kernels => self.kernels(order, inputs, &room, &out.0, &log)?,
            Product::Program => self.program(order, inputs, &out.0, &log)?,
            Product::Sealed => {
                // Without files to lay over it, an empty folder.
                let empty = self.cache.scratch("also")?;
                let shown = self.cache.scratch("keys")?;
                if let Some(keys) = &order.keys {
                    keys.lay_out_public(&shown.0)?;
                }
                let mut folders = vec![
                    ("root", of(Product::Root)),
                    ("tree", self.source.tree()),
                    ("also", order.also.clone().unwrap_or_else(|| empty.0.clone())),
                    ("program", of(Product::Program)),
                    ("keys", shown.0.clone()),
                    ("out", out.0.clone()),
                ];
                if order.driver != Driver::None {
                    folders.push(("driver", of(Product::Driver)));
                    folders.push(("kernels", of(Product::Kernels)));
                    folders.push(("beside", self.source.driver_tree()));
                }
                let settings = [
                    ("KINDS", kinds(inputs.lock, inputs.driver).join(" ")),
                    ("VERSION", inputs.version.to_string()),
                    ("ROOT_UUID", uuid(inputs, "root")),
                    ("VERITY_UUID", uuid(inputs, "verity")),
                    ("SALT", hex(&seed(inputs, "salt"))),
                ];
                room.run(what, scripts::ROOT, &borrowed(&folders), &settings, &log)?;
            }
            Product::Disk => {
                let none = self.cache.scratch("keys")?;
                let keys = order.keys.as_ref().map_or(none.0.as_path(), Keys::folder);
                let folders = [
                    ("sealed", of(Product::Sealed)),
                    ("initrd", of(Product::Initrd)),
                    ("tree", self.source.tree()),
                    ("keys", keys.to_owned()),
                    ("out", out.0.clone()),
                ];
                let (root_type, verity_type) = inputs.lock.arch.partition_types();
                let settings = [
                    ("VERSION", inputs.version.to_string()),
                    ("SIGNED", order.keys.iter().map(|_| "yes").collect()),
                    ("EFI", inputs.lock.arch.efi().to_owned()),
                    ("SERIAL", inputs.lock.arch.serial().to_owned()),
                    ("SEED", uuid(inputs, "disk")),
                    ("ROOT_TYPE", root_type.to_owned()),
                    ("VERITY_TYPE", verity_type.to_owned()),
                    ("ESP_SIZE", inputs.sizes.esp.clone()),
                    ("ROOT_SIZE", inputs.sizes.root.clone()),
                    ("VERITY_SIZE", inputs.sizes.verity.clone()),
                ];
                room.run(what, scripts::DISK, &borrowed(&folders), &settings, &log)?;
            }
        }
        out.keep_at(&place)
    }

    /// Installs a room with this machine's own mmdebstrap.
    fn bootstrap(
        &self,
        lock: &Lock,
        layer: Layer,
        out: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        let want = self.source.want()?;
        let repo = self.cache.scratch("repo")?;
        self.cache.debs().lay_out(&[lock.layer(layer)], &[], &want.suite, &repo.0, log)?;
        // The boot loader of the other kind of machine is in it too.
        let mut kinds = vec![working().debian()];
        kinds.extend(lock.arch.emulated().map(Arch::debian));
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", scripts::BOOTSTRAP, "step"])
            .env("SOURCE_DATE_EPOCH", lock.epoch.to_string())
            .env("LC_ALL", "C.UTF-8")
            .env("SUITE", &want.suite)
            .env("REPO", &repo.0)
            .env("OUT", out.join("tree"))
            .env("ARCHITECTURES", kinds.join(","))
            .env("PACKAGES", want.packages(layer, lock.arch).join(","));
        run("setting up a room", &mut command, log)?;
        flatten(out)
    }

    fn root(
        &self,
        inputs: &Inputs<'_>,
        room: &Room,
        out: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        let want = self.source.want()?;
        let repo = self.cache.scratch("repo")?;
        let provider = self.provider(&repo.0, inputs.lock.epoch, log)?;
        self.cache.debs().lay_out(
            &[inputs.lock.layer(Layer::Root)],
            &[provider],
            &want.suite,
            &repo.0.join("r"),
            log,
        )?;
        let mut packages = want.packages(Layer::Root, inputs.lock.arch);
        packages.push(PROVIDER.to_owned());
        let folders = [("repo", repo.0.join("r")), ("out", out.to_owned())];
        let settings = [
            ("SUITE", want.suite),
            ("REPO", "/mnt/repo".to_owned()),
            ("OUT", "/mnt/out/tree".to_owned()),
            ("ARCHITECTURES", inputs.lock.arch.debian().to_owned()),
            ("PACKAGES", packages.join(",")),
        ];
        room.run(
            "installing the root file system",
            scripts::BOOTSTRAP,
            &borrowed(&folders),
            &settings,
            log,
        )?;
        flatten(out)
    }

    /// A package that provides what a kernel depends on, because the initial file system is made outside.
    fn provider(&self, folder: &Path, epoch: u64, log: &Path) -> Result<PathBuf, ImageError> {
        let (tree, deb) = (folder.join("provider"), folder.join("provider.deb"));
        let control = tree.join("DEBIAN");
        fs::create_dir_all(&control).map_err(ImageError::file("make", &control))?;
        let control = control.join("control");
        let text = format!(
            "Package: {PROVIDER}\nVersion: 1\nArchitecture: all\nMaintainer: Polder <polder@localhost>\n\
             Provides: linux-initramfs-tool\n\
             Description: the initial file system is made outside\n"
        );
        fs::write(&control, text).map_err(ImageError::file("write", &control))?;
        let mut command = Command::new("dpkg-deb");
        command.args(["--root-owner-group", "--build"]).arg(&tree).arg(&deb);
        command.env("SOURCE_DATE_EPOCH", epoch.to_string());
        run("making a package of our own", &mut command, log)?;
        Ok(deb)
    }

    fn program(
        &self,
        order: &Order,
        inputs: &Inputs<'_>,
        out: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        let to = out.join("polder");
        let copy =
            |from: &Path| fs::copy(from, &to).map(drop).map_err(ImageError::file("read", from));
        if let Some(given) = &order.program {
            return copy(given);
        }
        let (arch, found) = (inputs.lock.arch, rustc_version(log)?);
        if found != inputs.lock.rustc {
            return Err(ImageError::OtherRustc { wanted: inputs.lock.rustc.clone(), found });
        }
        let target = self.cache.folder().join("cargo");
        // Where things lie on the machine that builds is no part of the program.
        let mut flags: Vec<(PathBuf, String)> =
            vec![(self.source.root().to_owned(), "/polder".into())];
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
        if let Some(home) = home {
            let crates = home.join("registry/src");
            let mirrors = fs::read_dir(&crates).into_iter().flatten().flatten();
            flags.extend(mirrors.map(|mirror| (mirror.path(), "/crates".to_owned())));
            flags.push((home, "/cargo".into()));
        }
        let map = |flag: &str, gap: &str| {
            let one = |(from, to): &(PathBuf, String)| format!("{flag}={}={to}", from.display());
            flags.iter().rev().map(one).collect::<Vec<_>>().join(gap)
        };
        let mut command = Command::new("cargo");
        command
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "polder",
                "--target",
                arch.rust_target(),
            ])
            .current_dir(self.source.root())
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", map("--remap-path-prefix", "\x1f"))
            .env("CFLAGS", map("-ffile-prefix-map", " "))
            .env("SOURCE_DATE_EPOCH", inputs.lock.epoch.to_string());
        if arch.emulated().is_some() {
            let name = arch.rust_target().to_uppercase().replace('-', "_");
            let linker = format!("{}-gcc", arch.multiarch());
            // Told by its package if it is not there, before anything is compiled.
            run(
                "asking for the other machine's linker",
                Command::new(&linker).arg("--version"),
                log,
            )?;
            command.env(format!("CARGO_TARGET_{name}_LINKER"), linker);
        }
        run("compiling polder", &mut command, log)?;
        copy(&target.join(arch.rust_target()).join("release/polder"))
    }

    fn hand_out(&self, order: &Order, inputs: &Inputs<'_>) -> Result<Made, ImageError> {
        let (log, version, arch) = (self.cache.log("hand-out")?, inputs.version, inputs.lock.arch);
        fs::create_dir_all(&order.out).map_err(ImageError::file("make", &order.out))?;
        let disk = self.place(Product::Disk, &inputs.key(Product::Disk));
        let sealed = self.place(Product::Sealed, &inputs.key(Product::Sealed));
        let name = |suffix: &str| order.out.join(format!("polder_{version}_{arch}.{suffix}"));
        let files = [
            (disk.join(format!("polder_{version}.raw")), name("raw")),
            (disk.join(format!("polder_{version}.efi")), name("efi")),
            (sealed.join("root.erofs"), name("root")),
            (sealed.join("root.verity"), name("verity")),
        ];
        let mut digests = Vec::new();
        for (from, to) in &files {
            // The disk is mostly holes, which copying keeps.
            let mut command = Command::new("cp");
            command.args(["--sparse=always", "--remove-destination"]).arg(from).arg(to);
            run("writing the image", &mut command, &log)?;
            // Whatever the tool that made it thinks: a box reads it from a stick as an ordinary user.
            fs::set_permissions(to, fs::Permissions::from_mode(0o644))
                .map_err(ImageError::file("write", to))?;
            digests.push((file_name(to), digest_of(to)?.0));
        }
        let manifest = name("toml");
        fs::write(&manifest, manifest_text(order, inputs, &sealed, &digests)?)
            .map_err(ImageError::file("write", &manifest))?;
        let manifest_digest = digest_of(&manifest)?.0;
        let [(_, disk), (_, entry), (_, root), (_, verity)] = files;
        let mut size = 0;
        for file in [&entry, &root, &verity] {
            size += fs::metadata(file).map_err(ImageError::file("read", file))?.len();
        }
        let contents = name("spdx.json");
        let text = self.contents(order, inputs, (&digests[0].0, digests[0].1), &log)?;
        fs::write(&contents, text).map_err(ImageError::file("write", &contents))?;
        digests.push((file_name(&contents), digest_of(&contents)?.0));
        digests.push((file_name(&manifest), manifest_digest));
        let sums: String = digests.iter().map(|(file, d)| format!("{d}  {file}\n")).collect();
        let path = name("sha256");
        fs::write(&path, sums).map_err(ImageError::file("write", &path))?;
        let driver = self.built(inputs)?;
        Ok(Made { disk, entry, root: [root, verity], contents, manifest, size, driver })
    }

    /// The text of the SPDX document.
    fn contents(
        &self,
        order: &Order,
        inputs: &Inputs<'_>,
        disk: (&str, Digest),
        log: &Path,
    ) -> Result<String, ImageError> {
        let mut command = Command::new("cargo");
        command.args(TREE).args(["--target", inputs.lock.arch.rust_target()]);
        let tree = answer(
            "asking what the program is linked from",
            command.current_dir(self.source.root()),
            log,
        )?;
        let path = self.source.root().join("Cargo.lock");
        let locked = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
        let crates =
            crates(&tree, &locked).map_err(|source| ImageError::CargoLock { path, source })?;
        let Inputs { lock, version, driver, .. } = *inputs;
        let compiled = order.program.is_none();
        Ok(spdx(&Contents { lock, version, disk, crates: &crates, compiled, driver }))
    }
}

/// What the image is, for boxes that take it as an update. Only its parts are named, of which `digests` knows all.
fn manifest_text(
    order: &Order,
    inputs: &Inputs<'_>,
    sealed: &Path,
    digests: &[(String, Digest)],
) -> Result<String, ImageError> {
    let part = |ending: &str| {
        let name = format!("polder_{}_{}.{ending}", inputs.version, inputs.lock.arch);
        let path = order.out.join(&name);
        let size = fs::metadata(&path).map_err(ImageError::file("read", &path))?.len();
        let known = digests.iter().find(|(known, _)| *known == name);
        let (_, sha256) = known.expect("every part was written and hashed before");
        Ok(Part { name, size, sha256: *sha256 })
    };
    let path = sealed.join("roothash");
    let roothash = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
    let roothash = roothash.trim().parse().map_err(|_| ImageError::RootHash(path))?;
    let manifest = Manifest {
        version: inputs.version.clone(),
        arch: inputs.lock.arch.name().to_owned(),
        made: inputs.lock.epoch,
        roothash,
        root: part("root")?,
        verity: part("verity")?,
        entry: part("efi")?,
    };
    Ok(manifest.to_text())
}

pub(crate) fn read(path: &Path) -> Result<String, ImageError> {
    fs::read_to_string(path).map_err(ImageError::file("read", path))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The package that stands for our own way of making the initial file system.
const PROVIDER: &str = "polder-initrd";

/// mmdebstrap makes its folder itself; this takes what is in it up by one.
fn flatten(out: &Path) -> Result<(), ImageError> {
    let (inner, aside) = (out.join("tree"), out.with_extension("inner"));
    fs::rename(&inner, &aside).map_err(ImageError::file("move", &inner))?;
    fs::remove_dir(out).map_err(ImageError::file("remove", out))?;
    fs::rename(&aside, out).map_err(ImageError::file("move", &aside))
}

pub(crate) fn borrowed<'a>(folders: &'a [(&'a str, PathBuf)]) -> Vec<(&'a str, &'a Path)> {
    folders.iter().map(|(name, path)| (*name, path.as_path())).collect()
}

fn rustc_version(log: &Path) -> Result<String, ImageError> {
    let text =
        answer("asking for the compiler's version", Command::new("rustc").arg("--version"), log)?;
    Ok(text.split(' ').nth(1).unwrap_or_default().trim().to_owned())
}

/// Numbers that must be the same in two builds and different in two images.
fn seed(inputs: &Inputs<'_>, what: &str) -> [u8; 32] {
    let text = format!("polder {what} {} {}", inputs.version, inputs.lock.arch);
    Sha256::digest(text.as_bytes()).into()
}

fn uuid(inputs: &Inputs<'_>, what: &str) -> String {
    crate::uuid::form(&seed(inputs, what))
}

/// What makes and tests images runs on this machine, whatever the image is for.
fn working() -> Arch {
    Arch::here().unwrap_or(Arch::X86_64)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
