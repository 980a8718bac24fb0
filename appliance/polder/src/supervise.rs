use std::sync::Arc;

use anyhow::Context;
use polder_supervisor::{Children, Options, Patience, Weights};

use crate::part;
use crate::state::State;

/// Keep the gateway and the engines of a box running (what `polder up` does, for a machine that
/// starts it by itself).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder supervise --state /var/lib/polder")]
pub(crate) struct Supervise {
    #[command(flatten)]
    state: State,
}

impl Supervise {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        part::log("info");
        let state = self.state.make()?;
        let runtime = part::runtime()?;
        let done = runtime.block_on(async {
            let (_end, ending) = part::endings()?;
            let parts = Children::of(&program()?, &state);
            let options = Options {
                state: state.clone(),
                first: polder_site::Site::unclaimed(crate::up::DEFAULT_PORT),
                port: None,
                listen: None,
                patience: Patience::default(),
            };
            polder_supervisor::run(options, parts, Arc::new(Weights::of(&state)?), ending).await?;
            Ok(())
        });
        // An import that hangs on a server must not hold the end up.
        runtime.shutdown_timeout(part::LEFT_BEHIND);
        done
    }
}

/// This program, to be run again as a part.
pub(crate) fn program() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("could not find out where the polder program is")
}
