use polder_gateway::{GatewayOptions, Limits};

use crate::part;
use crate::state::State;

/// Run the public door of a box (its supervisor starts this).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder gateway --state /var/lib/polder")]
pub(crate) struct Gateway {
    #[command(flatten)]
    state: State,
}

impl Gateway {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let state = self.state.folder()?;
        part::run(part::one_thread()?, |told| {
            polder_gateway::run(GatewayOptions { state, limits: Limits::default() }, told)
        })
    }
}
