use anyhow::Context;
use polder_control::{Actor, Request, RunId};
use polder_recipes::Recipe;
use polder_site::{EngineName, EngineSlot, RecipeName, SiteChange, Store, Version};

use crate::console::{complain, say};
use crate::follow::Follower;
use crate::foreign::By;
use crate::state::State;

/// Show what the box is told to be, and what it was told before; tell it to serve a model.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder site show\n  polder site history\n  polder site diff 3\n  polder site serve qwen3-4b --as fast --memory \"20 GiB\""
)]
pub(crate) struct Site {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print site.toml.
    #[command(after_help = "Example:\n  polder site show")]
    Show {
        #[command(flatten)]
        state: State,
    },
    /// List every version there was, with what each changed.
    #[command(after_help = "Example:\n  polder site history")]
    History {
        #[command(flatten)]
        state: State,
    },
    /// Serve a model beside others, or in place of one, with a part of the memory. The box is running.
    #[command(
        after_help = "Examples:\n  polder site serve qwen3-4b --as fast --memory \"20 GiB\"\n  polder site serve qwen3-30b-a3b --as slow --memory \"60 %\"\n  polder site serve qwen3-30b-a3b --as slow --url http://127.0.0.1:8000/v1\n  polder site serve qwen3-30b-a3b --as slow --server vllm -- --max-model-len 32768\n  polder site serve qwen3-30b-a3b --as slow --image docker.io/vllm/vllm-openai@sha256:DIGEST -- --model /weights --served-model-name qwen3-30b-a3b"
    )]
    Serve {
        /// The model, as `polder recipes` names it.
        model: String,
        /// What the engine is called.
        #[arg(long = "as", value_name = "ENGINE")]
        name: EngineName,
        /// Most memory that it may take, of the graphics card where there is one; `none`: what others leave. Without this, as before.
        #[arg(long)]
        memory: Option<String>,
        #[command(flatten)]
        by: Box<By>,
        #[command(flatten)]
        state: State,
    },
    /// Say that a change that waits for it is good. Without that it is undone in a minute.
    #[command(after_help = "Example:\n  polder site confirm 7")]
    Confirm {
        /// The run, as `polder status` names it.
        run: u64,
        #[command(flatten)]
        state: State,
    },
    /// Show what differs between two versions.
    #[command(
        after_help = "Examples:\n  polder site diff 3      from version 3 to now\n  polder site diff 2 3"
    )]
    Diff {
        /// The older version.
        from: u64,
        /// The newer one; without it, the current site.
        to: Option<u64>,
        #[command(flatten)]
        state: State,
    },
}

impl Site {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Show { state } => {
                let folder = existing(&state)?;
                crate::part::site(&folder)?;
                let store = Store::open(&folder)?;
                say(store.text()?.context("the box has no site.toml now")?.trim_end());
                store.unknown()?.iter().for_each(|key| complain(format!("warning: {key}")));
            }
            Command::History { state } => {
                let store = Store::open(&existing(&state)?)?;
                let mut before = None;
                for version in store.versions()? {
                    let site = store.version(version)?;
                    say(format!("version {}", version.0));
                    if let Some(before) = &before {
                        print_differences(before, &site);
                    }
                    before = Some(site);
                }
            }
            Command::Serve { model, name, memory, by, state } => {
                let folder = existing(&state)?;
                // Another machine's server may have a model that there is no recipe for.
                let recipe = match by.is_elsewhere() {
                    true => model.parse()?,
                    false => Recipe::find(&model)?.name.parse()?,
                };
                let slot = slot(&crate::part::site(&folder)?, &name, recipe, memory.as_deref())?;
                by.keep_key(&folder, &name)?;
                let slot = by.serving(slot)?;
                let change = SiteChange::Engine { name, slot };
                crate::part::runtime()?.block_on(Follower::of(&folder).apply(change))?;
            }
            Command::Confirm { run, state } => {
                let (run, by) = (RunId(run), Actor::Console);
                state.ask(&Request::Confirm { run, by })?;
                say("It stays.");
            }
            Command::Diff { from, to, state } => {
                let store = Store::open(&existing(&state)?)?;
                let from = store.version(Version(from))?;
                let to = match to {
                    Some(to) => store.version(Version(to))?,
                    None => store.current()?.context("the box has no site.toml now")?,
                };
                print_differences(&from, &to);
            }
        }
        Ok(())
    }
}

/// With the model in it, and with this much memory where somebody said how much. All else stays as it is.
fn slot(
    site: &polder_site::Site,
    name: &EngineName,
    recipe: RecipeName,
    memory: Option<&str>,
) -> anyhow::Result<EngineSlot> {
    let mut slot = site.slot_with(name, recipe);
    match memory {
        Some("none") => slot.memory = None,
        Some(text) => slot.memory = Some(text.parse()?),
        None => {}
    }
    Ok(slot)
}

fn print_differences(before: &polder_site::Site, after: &polder_site::Site) {
    before.differences(after).iter().for_each(|difference| say(format!("  {difference}")));
}

/// Looking must not make a box.
fn existing(state: &State) -> anyhow::Result<std::path::PathBuf> {
    let folder = state.folder()?;
    anyhow::ensure!(
        folder.is_dir(),
        "there is no box in {}; make one with `polder up`, or name another folder with --state",
        folder.display()
    );
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use polder_site::{Conversations, Site};

    use super::*;

    #[test]
    fn another_model_in_a_slot_leaves_how_it_holds_conversations_and_a_budget_that_nobody_named() {
        let (name, tiny): (EngineName, RecipeName) =
            ("fast".parse().unwrap(), "tiny".parse().unwrap());
        let mut site = Site::unclaimed(8443);
        let before = EngineSlot {
            conversations: Conversations::Compact,
            memory: Some("40 %".parse().unwrap()),
            ..EngineSlot::serving(tiny)
        };
        site.engines.insert(name.clone(), before.clone());
        let big: RecipeName = "big".parse().unwrap();
        let with = |memory: Option<&str>| slot(&site, &name, big.clone(), memory).unwrap();
        let same = EngineSlot { recipe: big.clone(), ..before };
        assert_eq!(with(None), same);
        assert_eq!(with(Some("none")), EngineSlot { memory: None, ..same.clone() });
        let less = Some("20 %".parse().unwrap());
        assert_eq!(with(Some("20 %")), EngineSlot { memory: less, ..same });
        assert!(slot(&site, &name, big.clone(), Some("much")).is_err());
        let new = "slow".parse().unwrap();
        assert_eq!(slot(&site, &new, big.clone(), None).unwrap(), EngineSlot::serving(big.clone()));
    }
}
