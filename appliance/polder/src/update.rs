use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use polder_control::{Actor, Client, Reply, Request, Sockets, UpdateStatus, UpdateWish};
use polder_site::{SiteChange, UpdateUrl, Updates};

use crate::console::{bytes, say};
use crate::follow::Follower;
use crate::state::{State, runtime, unexpected};

/// A supervisor that does not answer for so long after a start will not.
const NO_SUPERVISOR: Duration = Duration::from_secs(10 * 60);
/// Between two tries to reach it.
const AGAIN: Duration = Duration::from_millis(500);
/// Longer than any trial takes.
const VERDICT: Duration = Duration::from_secs(40 * 60);

/// Look for updates of the image, take one, go back, and say what became of them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder update check      look on sticks, then where the box was told\n  polder update apply      take what was found; what runs stays in the other slot\n  polder update rollback   start what ran before\n  polder update why        what became of each update"
)]
pub(crate) struct Update {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look for an update: on disks that are plugged in, then at the address that the box was given.
    #[command(after_help = "Example:\n  polder update check --state /var/lib/polder")]
    Check {
        #[command(flatten)]
        state: State,
    },
    /// Say at which web address updates are looked for, or with `none` that they come on sticks only.
    #[command(after_help = "Example:\n  polder update from https://example.org/polder")]
    From {
        /// A folder with signed images.
        #[arg(value_name = "ADDRESS")]
        address: String,
        #[command(flatten)]
        state: State,
    },
    /// Bring the update that was found; nothing else changes.
    #[command(after_help = "Example:\n  polder update fetch")]
    Fetch {
        #[command(flatten)]
        state: State,
    },
    /// Write the update beside what runs, and start the machine again with it.
    #[command(
        after_help = "Example:\n  polder update apply\n\nIf the new version can do less than the one that runs, the machine starts that one again by itself."
    )]
    Apply {
        #[command(flatten)]
        state: State,
    },
    /// Start the machine again with what ran before.
    #[command(after_help = "Example:\n  polder update rollback")]
    Rollback {
        #[command(flatten)]
        state: State,
    },
    /// Say what became of each update: what failed on which start.
    #[command(after_help = "Example:\n  polder update why")]
    Why {
        #[command(flatten)]
        state: State,
    },
    /// Say whether a version on trial is no worse than the one before it; the machine asks this at its start.
    #[command(after_help = "Example:\n  polder update judge --state /var/lib/polder")]
    Judge {
        #[command(flatten)]
        state: State,
    },
}

impl Update {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        crate::part::log("error");
        match self.command {
            Command::Check { state } => {
                let Reply::Updates(status) = state.ask(&Request::CheckUpdate)? else {
                    return Err(unexpected());
                };
                found(&status);
                Ok(())
            }
            Command::From { address, state } => {
                let change = match address.as_str() {
                    "none" => SiteChange::RemoveUpdates,
                    address => {
                        let from: UpdateUrl = address.parse()?;
                        SiteChange::Updates(Updates { from })
                    }
                };
                runtime()?.block_on(Follower::of(&state.folder()?).apply(change))?;
                say("updates are looked for there from now on");
                Ok(())
            }
            Command::Fetch { state } => {
                wish(&state, UpdateWish::Fetch, "it is here; `polder update apply` changes to it")
            }
            Command::Apply { state } => {
                wish(&state, UpdateWish::Apply, "the machine starts again now")
            }
            Command::Rollback { state } => {
                wish(&state, UpdateWish::Back, "the machine starts again now")
            }
            Command::Why { state } => {
                let Reply::Updates(status) = state.ask(&Request::Updates)? else {
                    return Err(unexpected());
                };
                if status.why.is_empty() {
                    say("no update was ever tried here");
                }
                say(status.why.join("\n\n"));
                Ok(())
            }
            Command::Judge { state } => judge(&state),
        }
    }
}

fn found(status: &UpdateStatus) {
    match &status.offer {
        None => say("nothing newer than what runs"),
        Some(offer) => say(format!(
            "Polder {}, {}, {} from {}{}",
            offer.version,
            offer.age,
            bytes(offer.bytes),
            offer.from,
            if offer.here { "; it is here already" } else { "" }
        )),
    }
}

fn wish(state: &State, wish: UpdateWish, done: &str) -> anyhow::Result<()> {
    let request = Request::Update { wish, by: Actor::Console };
    runtime()?.block_on(Follower::of(&state.folder()?).follow(&request))?;
    say(done);
    Ok(())
}

/// Ends well when the version stays; otherwise the unit that asks starts the machine again.
fn judge(state: &State) -> anyhow::Result<()> {
    let sockets = Sockets::of(&state.folder()?);
    // Whoever waits for a sign of life may stop: from here on there is a time limit of our own.
    let sign = sockets.folder().join("judging");
    std::fs::write(&sign, "").with_context(|| format!("could not write {}", sign.display()))?;
    let begun = Instant::now();
    let verdict = runtime()?.block_on(async {
        loop {
            let asked = async {
                let mut client: Client<Request, Reply> =
                    Client::connect(&sockets.control()).await?;
                client.ask_within(VERDICT, &Request::Judge).await
            };
            match asked.await {
                Ok(reply) => return Ok(reply),
                Err(error) if begun.elapsed() > NO_SUPERVISOR => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    });
    match verdict? {
        Reply::Judged(None) => Ok(()),
        Reply::Judged(Some(why)) => bail!("this version is worse than the one before it: {why}"),
        Reply::Refused(why) => bail!(why),
        _ => Err(unexpected()),
    }
}
