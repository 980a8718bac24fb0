use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use polder_image::{
    Arch, Bundle, Cache, Compiling, Driver, Keys, Layer, Made, Mirror, News, Order, Sizes, Source,
    Version, Workshop,
};

use crate::console::{complain, say};

/// Nobody's password is longer.
const LONGEST_PASSWORD: u64 = 4096;

/// Make the OS image that people write to a stick.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sudo polder image build --version 0.1.0\n  sudo polder image lock --arch aarch64\n\nRun it in a checkout of Polder."
)]
pub(crate) struct Image {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make an image from the packages of the lock.
    #[command(
        after_help = "Example:\n  sudo polder image build --arch x86_64 --version 0.1.0 --out target/image"
    )]
    Build {
        #[command(flatten)]
        what: What,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
    },
    /// Make an image twice, from nothing but the packages, and compare the two byte by byte.
    #[command(after_help = "Example:\n  sudo polder image verify --version 0.1.0")]
    Verify {
        #[command(flatten)]
        what: What,
    },
    /// Write the packages of the lock to one file, or take them from one.
    #[command(
        after_help = "Examples:\n  polder image packages export packages.tar\n  polder image packages import packages.tar"
    )]
    Packages {
        #[command(subcommand)]
        command: Packages,
    },
    /// Make a folder of keys: for updates, for Secure Boot, and for what a boot measures.
    #[command(after_help = "Example:\n  sudo polder image keys ~/polder-keys\n\n\
                      Keep the folder off every box and out of every checkout, and a copy of it somewhere safe: boxes \
                      take updates from nobody else, and open their disks for nothing else.")]
    Keys {
        #[command(flatten)]
        place: Place,
        /// The file that has a password for the update key in its first line; - is standard input. Without one the
        /// key is not locked.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// A folder that has none of them yet.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Sign images, for people and for boxes that take them as updates, with a key that minisign made.
    #[command(
        after_help = "Example:\n  polder image sign --key ~/polder.key --password-file - target/image\n\n\
                      `minisign -G -p polder.pub -s polder.key` makes a pair of keys. Keep the secret one off every box \
                      and out of every checkout."
    )]
    Sign {
        /// The secret key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The file that has the key's password in its first line; - is standard input. A key without a password
        /// needs none.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Where the image is.
        #[arg(value_name = "DIR", default_value = "target/image")]
        folder: PathBuf,
    },
    /// Tell whether images are signed with a key, and as they were then.
    #[command(after_help = "Example:\n  polder image check --public-key polder.pub ~/Downloads")]
    Check {
        /// The public key.
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// Where the image is.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Set up the room in which images are booted for tests, and say where it is.
    #[command(after_help = "Example:\n  sudo polder image tester")]
    Tester {
        #[command(flatten)]
        place: Place,
    },
    /// Work out anew which packages images are made of, and show what changed.
    #[command(after_help = "Example:\n  sudo polder image lock --arch x86_64")]
    Lock {
        #[command(flatten)]
        place: Place,
        /// Only show what would change.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Packages {
    /// Write them to one file, for builds where the mirror has dropped some of them.
    #[command(
        after_help = "Example:\n  sudo polder image packages export polder_x86_64_packages.tar"
    )]
    Export {
        #[command(flatten)]
        place: Place,
        /// The file.
        file: PathBuf,
    },
    /// Take them from a file, each proven by its digest.
    #[command(
        after_help = "Example:\n  sudo polder image packages import polder_x86_64_packages.tar"
    )]
    Import {
        #[command(flatten)]
        place: Place,
        /// The file.
        file: PathBuf,
    },
}

/// Which image is made.
#[derive(Debug, clap::Args)]
struct What {
    #[command(flatten)]
    place: Place,
    /// The image's version.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: Version,
    /// Where the results go.
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    out: PathBuf,
    /// NVIDIA's driver: none, debian (the one of the lock), or a file that describes a bundle of a newer one.
    /// Unless said, an image for x86_64 has Debian's and one for aarch64 has none.
    #[arg(long, value_name = "none|debian|BUNDLE.toml")]
    driver: Option<PathBuf>,
    /// Take this program instead of compiling one.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Lay the files of this folder over the checkout's own tree: keys, units of a collective.
    #[arg(long, value_name = "DIR")]
    also: Option<PathBuf>,
    /// The folder of the project's keys, as `polder image keys` makes it.
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl What {
    fn order(self) -> anyhow::Result<(Workshop, Order)> {
        let Self { place, version, out, driver, program, also, keys } = self;
        let keys = keys.as_deref().map(Keys::open).transpose()?;
        if keys.is_none() {
            complain(
                "Without --keys nothing is signed, and a box with this image takes no updates.",
            );
        }
        let (_, workshop) = place.workshop()?;
        let arch = place.arch;
        let driver = match (driver.as_deref().map(|path| (path, path.to_str())), arch) {
            (Some((_, Some("none"))), _) | (None, Arch::Aarch64) => Driver::None,
            (Some((_, Some("debian"))), _) | (None, Arch::X86_64) => Driver::Debian,
            (Some((path, _)), _) => Driver::Bundle(Bundle::open(path)?),
        };
        let sizes = Sizes::default();
        let own = std::env::current_exe().context("this program cannot tell where it lies")?;
        let compiling = Compiling { program: own, sources: polder_backend_cuda::sources::digest() };
        Ok((workshop, Order { arch, version, sizes, driver, compiling, program, also, keys, out }))
    }
}

/// The image without a driver should not be larger: it goes through slow lines, twice with every update.
const BUDGET: u64 = 400_000_000;

/// What people want to know of an image before they write it to a stick.
fn tell(made: &Made) {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let own = made.size - made.driver.as_ref().map_or(0, |driver| driver.size + driver.kernels);
    let budget = megabytes(BUDGET);
    let mut about =
        format!("{} MB compressed, of {budget} MB that it should not exceed", megabytes(own));
    match &made.driver {
        Some(driver) => {
            let (drivers, kernels) = (megabytes(driver.size), megabytes(driver.kernels));
            about += &format!("; the driver adds {drivers} MB, and the kernels {kernels}");
            complain(about);
            complain(format!("It has kernels for {}", driver.kinds.join(", ")));
            complain(format!("It has the NVIDIA driver {}: {}", driver.version, driver.cards));
        }
        None => {
            complain(about);
            complain("It has no NVIDIA driver: it computes on the processor");
        }
    }
    if own > BUDGET {
        complain(format!("TOO LARGE: without a driver it should not exceed {budget} MB"));
    }
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The machines that the image is for: x86_64 or aarch64.
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// The checkout of Polder.
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// The lock, where it is not the checkout's own.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Where packages and what was made of them are kept between builds.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The Debian mirror; without it, the one that this machine's apt uses.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl Place {
    fn workshop(&self) -> anyhow::Result<(Source, Workshop)> {
        let source = Source::open(&self.source)?.with_lock(self.lock.as_deref());
        let mirror = match &self.mirror {
            Some(address) => Some(Mirror::at(address)),
            // A build that has all its packages needs none.
            None => Mirror::of_this_machine().ok(),
        };
        let workshop = Workshop::open(source.clone(), &self.cache_folder()?, mirror)?;
        Ok((source, workshop))
    }

    fn cache_folder(&self) -> anyhow::Result<PathBuf> {
        match &self.cache {
            Some(cache) => Ok(cache.clone()),
            None => default_cache(),
        }
    }
}

fn default_cache() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    Ok(cache
        .context("there is no HOME to keep packages in; name a folder with --cache")?
        .join("polder/image"))
}

impl Image {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Build { what, plan } => {
                let (workshop, order) = what.order()?;
                if plan {
                    say(workshop.plan(&order)?);
                    return Ok(());
                }
                let made = workshop.build(&order, &mut follow())?;
                tell(&made);
                say(made.disk.display());
                Ok(())
            }
            Command::Verify { what } => {
                let (workshop, order) = what.order()?;
                let same = workshop.verify(&order, &mut follow())?;
                for (name, digest) in same {
                    say(format!("{digest}  {name}"));
                }
                say("the same, byte for byte");
                Ok(())
            }
            Command::Packages { command } => packages(command),
            Command::Keys { place, password_file, folder } => {
                let password = password_file.as_deref().map(password).transpose()?;
                let (_, workshop) = place.workshop()?;
                for path in workshop.make_keys(place.arch, &folder, password)? {
                    say(path.display());
                }
                Ok(())
            }
            Command::Sign { key, password_file, folder } => {
                let password = password_file.as_deref().map(password).transpose()?;
                for path in polder_image::sign(&folder, &key, password)? {
                    say(path.display());
                }
                Ok(())
            }
            Command::Check { public_key, folder } => {
                for path in polder_image::check(&folder, &public_key)? {
                    say(format!("{}: as it was signed", path.display()));
                }
                Ok(())
            }
            Command::Tester { place } => {
                let (_, workshop) = place.workshop()?;
                say(workshop.tester(place.arch)?.display());
                Ok(())
            }
            Command::Lock { place, check } => lock(&place, check),
        }
    }
}

/// Tells on standard error what is done.
fn follow() -> impl FnMut(News<'_>) {
    let mut titles = Vec::new();
    move |news| match news {
        News::Planned(plan) => {
            complain(plan);
            titles = plan.steps.iter().map(|step| step.title.clone()).collect();
        }
        News::Begun(index, last) => {
            let about = last.map(|t| format!(" (last time {})", span(t))).unwrap_or_default();
            complain(format!("{}/{} {}{about}", index + 1, titles.len(), titles[index]));
        }
        News::Done(_, took) => complain(format!("    done in {}", span(took))),
    }
}

fn packages(command: Packages) -> anyhow::Result<()> {
    match command {
        Packages::Export { place, file } => {
            let lock = Source::open(&place.source)?.lock(place.arch)?;
            Cache::open(&place.cache_folder()?)?.debs().export(&lock, &file)?;
            say(file.display());
        }
        Packages::Import { place, file } => {
            let wanted = Source::open(&place.source)?.lock(place.arch)?;
            let cache = Cache::open(&place.cache_folder()?)?;
            let brought = cache.debs().import(&file)?;
            let all = brought.lock.all().len();
            say(format!(
                "{all} packages for {}, {} of them new here",
                brought.lock.arch, brought.new
            ));
            let missing = cache.debs().missing(&wanted, &Layer::ALL);
            if let Some((name, package)) = missing.first() {
                let version = &package.version;
                complain(format!(
                    "{} packages of this checkout's lock for {} are not here yet: {name} {version}, ...",
                    missing.len(),
                    place.arch
                ));
            }
        }
    }
    Ok(())
}

/// The first line of a file. Never an argument: those are everybody's to see.
fn password(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(LONGEST_PASSWORD).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(LONGEST_PASSWORD).read_to_string(&mut text))
    };
    read.with_context(|| format!("could not read the password from {}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn lock(place: &Place, check: bool) -> anyhow::Result<()> {
    let (source, workshop) = place.workshop()?;
    let begun = Instant::now();
    complain(format!("Working out which packages an image for {} is made of", place.arch));
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut lock = workshop.resolve(place.arch, now.as_secs())?;
    let old = source.lock(place.arch).ok();
    let lines = old.as_ref().map(|old| lock.diff(old));
    if let Some(old) = old {
        lock.keep_time(&old);
    }
    match lines {
        None => say(format!("a first lock: {} packages", lock.all().len())),
        Some(lines) if lines.is_empty() => say("nothing changed"),
        Some(lines) => say(lines.join("\n")),
    }
    if !check {
        let path = source.lock_path(place.arch);
        std::fs::write(&path, lock.to_string())
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    complain(format!("    done in {}", span(begun.elapsed())));
    Ok(())
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}
