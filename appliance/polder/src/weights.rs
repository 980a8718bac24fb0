use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use polder_recipes::{DEFAULT_RECIPE, Recipe};
use polder_weights::{CancelFlag, Event, Fetched, Origin, STALE, Store};

use crate::console::{ProgressLine, bytes, say};
use crate::state::State;

/// Bring models onto this machine, check them, make room.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder weights import smollm2-135m-instruct\n  polder weights import qwen3-30b-a3b --from /media/usb\n  polder weights verify\n  polder weights gc"
)]
pub(crate) struct Weights {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Bring a model into the store: every file is checked against its digest. Cut short, it goes
    /// on where it was when asked again.
    #[command(
        after_help = "Examples:\n  polder weights import smollm2-135m-instruct\n  polder weights import qwen3-30b-a3b --from /media/usb"
    )]
    Import {
        #[command(flatten)]
        which: Which,
        /// A folder, a mounted disk, or the address of a web server that has the files; without
        /// it, from where the recipe says.
        #[arg(long, value_name = "WHERE")]
        from: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Fetch ahead what an import needs from the network, so that it can be done without one.
    #[command(after_help = "Example:\n  polder weights fetch --default")]
    Fetch {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        state: State,
    },
    /// Read every file again and compare it with its digest.
    #[command(
        after_help = "Examples:\n  polder weights verify\n  polder weights verify smollm2-135m-instruct"
    )]
    Verify {
        /// Only this model.
        name: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// List the models that are here.
    #[command(after_help = "Example:\n  polder weights list")]
    List {
        #[command(flatten)]
        state: State,
    },
    /// Forget a model; `gc` then frees its space.
    #[command(after_help = "Example:\n  polder weights remove qwen3-30b-a3b")]
    Remove {
        /// Which.
        name: String,
        #[command(flatten)]
        state: State,
    },
    /// Remove what no model needs: files of forgotten models, and imports that were left off more
    /// than a week ago.
    #[command(after_help = "Examples:\n  polder weights gc\n  polder weights gc --all")]
    Gc {
        /// Also imports that were left off just now.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The model; `polder recipes` lists them.
    name: Option<String>,
    /// The model that a new box starts with.
    #[arg(long)]
    default: bool,
}

impl Which {
    fn recipe(&self) -> anyhow::Result<&'static Recipe> {
        Ok(Recipe::find(self.name.as_deref().unwrap_or(DEFAULT_RECIPE))?)
    }
}

impl Weights {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // What happens is shown as progress; the log would say it twice.
        crate::part::log("error");
        let never = CancelFlag::default();
        match self.command {
            Command::Import { which, from, state } => {
                let (recipe, origin) = (which.recipe()?, origin(from)?);
                let mut shown = Shown::new(&format!("Import {}", recipe.title));
                let imported =
                    store(&state)?.import(recipe, &origin, &mut |event| shown.event(event), &never);
                shown.line.finish("");
                let imported = imported?;
                let what = if imported.brought == 0 { "was here already" } else { "is here" };
                let size = bytes(imported.manifest.bytes());
                say(format!("{} {what} ({size}), every file checked", recipe.title));
            }
            Command::Fetch { which, state } => {
                let recipe = which.recipe()?;
                let mut shown = Shown::new(&format!("Fetch {}", recipe.title));
                let fetched = store(&state)?.fetch(recipe, &mut |event| shown.event(event), &never);
                shown.line.finish("");
                match fetched? {
                    Fetched::Imported(_) => say(format!("{} is here", recipe.title)),
                    Fetched::Wheels(_) => say(format!("{} can be imported now", recipe.title)),
                }
            }
            Command::Verify { name, state } => {
                let mut shown = Shown::new("Verify");
                let verified =
                    store(&state)?.verify(name.as_deref(), &mut |event| shown.event(event), &never);
                shown.line.finish("");
                let verified = verified?;
                say(format!("{} files are good ({})", verified.good, bytes(verified.bytes)));
                verified.damage.iter().for_each(crate::console::complain);
                if !verified.damage.is_empty() {
                    bail!("{} files are not what was imported", verified.damage.len());
                }
            }
            Command::List { state } => {
                for manifest in store(&state)?.list()? {
                    let pinned = if manifest.pinned_here { ", pinned here" } else { "" };
                    say(format!(
                        "{:30} {:>10}, {} files, from {}{pinned}",
                        manifest.recipe,
                        bytes(manifest.bytes()),
                        manifest.files.len(),
                        manifest.source
                    ));
                }
            }
            Command::Remove { name, state } => {
                store(&state)?.remove(&name)?;
                say(format!("{name} is forgotten; `polder weights gc` frees its space"));
            }
            Command::Gc { all, state } => {
                let stale = if all { Duration::ZERO } else { STALE };
                let collected = store(&state)?.gc(stale)?;
                say(format!(
                    "{} files and {} leftovers removed, {} free again",
                    collected.blobs,
                    collected.leftovers,
                    bytes(collected.bytes)
                ));
            }
        }
        Ok(())
    }
}

fn store(state: &State) -> anyhow::Result<Store> {
    Ok(Store::open(state.make()?.join("weights"))?)
}

fn origin(from: Option<String>) -> anyhow::Result<Origin> {
    let Some(from) = from else { return Ok(Origin::AsTheRecipeSays) };
    if from.starts_with("http://") || from.starts_with("https://") {
        return Ok(Origin::Web(from));
    }
    let folder = PathBuf::from(&from);
    let folder = folder.canonicalize().with_context(|| format!("there is no folder {from}"))?;
    Ok(Origin::Folder(folder))
}

struct Shown {
    title: String,
    line: ProgressLine,
}

impl Shown {
    fn new(title: &str) -> Self {
        Self { title: title.to_owned(), line: ProgressLine::new() }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Progress(progress) => {
                let progress = polder_supervisor::figures(&progress);
                self.line.show(&self.title, Some(&progress));
            }
            other => self.line.finish(&other.to_string()),
        }
    }
}
