use anyhow::Context;
use polder_site::{Store, Version};

use crate::console::{complain, say};
use crate::state::State;

/// Show what the box is told to be, and what it was told before.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder site show\n  polder site history\n  polder site diff 3"
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
