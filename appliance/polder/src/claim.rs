use polder_control::{DoorReply, DoorRequest};

use crate::console::say;
use crate::greeting::{Greeting, Surroundings};
use crate::part;
use crate::state::{State, unexpected};

/// Claim a box, or open its set-up again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder claim reopen")]
pub(crate) struct Claim {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a new claim code; earlier ones stop working. On a box that has a steward, the code
    /// lets one into the set-up pages again after signing in.
    #[command(after_help = "Example:\n  polder claim reopen --state /var/lib/polder")]
    Reopen {
        #[command(flatten)]
        state: State,
    },
}

impl Claim {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Command::Reopen { state } = self.command;
        let DoorReply::Ready { ca_file, fingerprint, claimed, .. } =
            state.ask_door(&DoorRequest::Ready)?
        else {
            return Err(unexpected());
        };
        // The first page of a box that has members is the sign-in, not the wizard.
        let (question, page) = match claimed {
            true => (DoorRequest::ReopenSetup, "/setup"),
            false => (DoorRequest::OpenClaim, "/"),
        };
        let DoorReply::Claim(claim) = state.ask_door(&question)? else { return Err(unexpected()) };
        let folder = state.folder()?;
        let site = part::site(&folder)?;
        let here = Surroundings::of_this_machine();
        let greeting = Greeting {
            site: &site,
            state: &folder,
            ca_file: &ca_file,
            fingerprint: &fingerprint,
            here: &here,
        };
        say(greeting.unclaimed(page, &claim));
        Ok(())
    }
}
