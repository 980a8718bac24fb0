use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use polder_image::{Arch, Mirror, News, Order, Sizes, Source, Version, Workshop};

use crate::console::{complain, say};

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
        place: Place,
        /// The image's version.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        version: Version,
        /// Where the results go.
        #[arg(long, value_name = "DIR", default_value = "target/image")]
        out: PathBuf,
        /// Take this program instead of compiling one.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
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

#[derive(Debug, clap::Args)]
struct Place {
    /// The machines that the image is for: x86_64 or aarch64.
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// The checkout of Polder.
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Where packages and what was made of them are kept between builds.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The Debian mirror; without it, the one that this machine's apt uses.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl Place {
    fn workshop(&self) -> anyhow::Result<(Source, Workshop)> {
        let source = Source::open(&self.source)?;
        let mirror = match &self.mirror {
            Some(address) => Some(Mirror::at(address)),
            // A build that has all its packages needs none.
            None => Mirror::of_this_machine().ok(),
        };
        let cache = match &self.cache {
            Some(cache) => cache.clone(),
            None => default_cache()?,
        };
        let workshop = Workshop::open(source.clone(), &cache, mirror)?;
        Ok((source, workshop))
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
            Command::Build { place, version, out, program, plan } => {
                let (_, workshop) = place.workshop()?;
                let order =
                    Order { arch: place.arch, version, sizes: Sizes::default(), program, out };
                if plan {
                    say(workshop.plan(&order)?);
                    return Ok(());
                }
                let made = build(&workshop, &order)?;
                say(made.disk.display());
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

fn build(workshop: &Workshop, order: &Order) -> anyhow::Result<polder_image::Made> {
    let mut titles = Vec::new();
    let made = workshop.build(order, &mut |news| match news {
        News::Planned(plan) => {
            complain(plan);
            titles = plan.steps.iter().map(|step| step.title.clone()).collect();
        }
        News::Begun(index, last) => {
            let about = last.map(|t| format!(" (last time {})", span(t))).unwrap_or_default();
            complain(format!("{}/{} {}{about}", index + 1, titles.len(), titles[index]));
        }
        News::Done(_, took) => complain(format!("    done in {}", span(took))),
    })?;
    Ok(made)
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
    if let Some(old) = old
        && lines.as_ref().is_some_and(Vec::is_empty)
    {
        // Nothing changed: not the time either, so that images stay as they are.
        lock.epoch = old.epoch;
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
