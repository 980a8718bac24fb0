use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

use anyhow::Context;

use crate::console::say;
use crate::part;
use crate::state::State;

/// Between two looks for a cable.
const LOOK: Duration = Duration::from_secs(1);

/// Give the machine's network ports the addresses that the site says. The image does this by itself.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder ports show --state /var/lib/polder\n  polder ports give --state /var/lib/polder"
)]
pub(crate) struct Ports {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say which ports have addresses of their own; all others ask a router.
    #[command(after_help = "Example:\n  polder ports show --state /var/lib/polder")]
    Show {
        #[command(flatten)]
        state: State,
    },
    /// Have networkd do what the site says, and what the seed says of a port that the site does not name.
    #[command(
        after_help = "Example:\n  polder ports give --state /var/lib/polder\n\nNeeds root. The image does this by itself."
    )]
    Give {
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        networks: Networks,
    },
    /// Wait for the cable that says which port the seed's address is for, and give it that.
    #[command(
        after_help = "Example:\n  polder ports bind --state /var/lib/polder\n\nNeeds root. The image does this by itself."
    )]
    Bind {
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        networks: Networks,
    },
}

#[derive(Debug, clap::Args)]
struct Networks {
    /// Where networkd looks for what a machine decides while it runs.
    #[arg(long, value_name = "DIR", default_value = "/run/systemd/network")]
    networks: PathBuf,
}

impl Ports {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Show { state } => {
                let ports = polder_seed::ports(&state.folder()?)?;
                match ports.is_empty() {
                    true => say("every port asks a router for its address"),
                    false => ports.iter().for_each(|(name, port)| say(format!("{name}: {port}"))),
                }
                Ok(())
            }
            Command::Give { state, networks } => {
                part::log("info");
                give(&state.folder()?, &networks.networks)
            }
            Command::Bind { state, networks } => {
                part::log("info");
                let state = state.folder()?;
                while !polder_seed::bind(&state, Path::new("/sys/class/net"))? {
                    std::thread::sleep(LOOK);
                }
                give(&state, &networks.networks)
            }
        }
    }
}

fn give(state: &Path, networks: &Path) -> anyhow::Result<()> {
    if !polder_address::give(networks, &polder_seed::ports(state)?)? {
        return Ok(());
    }
    let told = Program::new("networkctl").arg("reload").output();
    let told = told.context("could not run networkctl, which has networkd read what is new")?;
    let said = String::from_utf8_lossy(&told.stderr);
    anyhow::ensure!(told.status.success(), "networkd did not take it: {}", said.trim());
    Ok(())
}
