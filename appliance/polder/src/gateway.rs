use polder_gateway::{GatewayOptions, Handed, Limits};
use polder_supervisor::Part;

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
        // A visitor may have woken it while the box that it would serve is being exchanged.
        if polder_backup::restore::pending(&polder_backup::Folders::of(&state)) {
            anyhow::bail!("a restored box is being put in place; the door opens after that");
        }
        let options = GatewayOptions { state: state.clone(), limits: Limits::default() };
        part::run(part::one_thread()?, Part::Gateway, &state, |told| {
            polder_gateway::run_on(Handed::over(), options, told)
        })
    }
}
