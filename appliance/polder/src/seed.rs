use std::path::PathBuf;

use anyhow::Context;

use crate::console::say;
use crate::part;
use crate::state::State;

/// Read the file that says, before anybody sees a screen, what a new box shall be.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder seed check polder-seed.toml\n  polder seed take --state /var/lib/polder /efi/polder-seed.toml"
)]
pub(crate) struct Seed {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say whether a seed can be followed, and what it says.
    #[command(after_help = "Example:\n  polder seed check polder-seed.toml")]
    Check {
        /// The seed.
        file: PathBuf,
    },
    /// Keep the seed at a box's first start, and give the network what it says at every start.
    #[command(
        after_help = "Example:\n  polder seed take --state /var/lib/polder /efi/polder-seed.toml\n\nThe image does this by itself."
    )]
    Take {
        #[command(flatten)]
        state: State,
        /// Where networkd looks for what a machine decides when it starts.
        #[arg(long, value_name = "DIR", default_value = "/run/systemd/network")]
        networks: PathBuf,
        /// The seed, if there is one.
        file: PathBuf,
    },
}

impl Seed {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Check { file } => {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("could not read {}", file.display()))?;
                say(in_words(&polder_seed::Seed::parse(&text)?));
                Ok(())
            }
            Command::Take { state, networks, file } => {
                part::log("info");
                if let Some(seed) = polder_seed::take(&state.folder()?, &file, &networks)? {
                    log::info!("{}", in_words(&seed).replace('\n', "; "));
                }
                Ok(())
            }
        }
    }
}

fn in_words(seed: &polder_seed::Seed) -> String {
    let mut lines = vec![match &seed.disk {
        Some(disk) => format!("goes onto the disk with the number {disk} without asking"),
        None => "asks which disk it goes onto".to_owned(),
    }];
    lines.push(match &seed.name {
        Some(name) => format!("is called {name}"),
        None => "is called polder until somebody says otherwise".to_owned(),
    });
    lines.push(match &seed.network {
        Some(network) => match &network.port {
            Some(port) => format!("has the address {}, on {port}", network.address),
            None => format!("has the address {}, on the first port with a cable", network.address),
        },
        None => "asks the router for an address".to_owned(),
    });
    lines.push(match &seed.owner {
        Some(_) => "is claimed with the owner's key file".to_owned(),
        None => "is claimed with the code on its screen".to_owned(),
    });
    lines.join("\n")
}
