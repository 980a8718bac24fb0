use std::io;
use std::path::Path;

use polder_seal::Places;

use crate::part;

/// Answer one question about the disk of a box, or finish a reset (systemd runs this as root).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  echo '\"look\"' | sudo polder seal answer")]
pub(crate) struct Seal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take one question from standard input, do what it asks for, and write the answer to standard output.
    #[command(after_help = "Example:\n  echo '\"look\"' | sudo polder seal answer")]
    Answer,
    /// Remove everything but the models, if that was asked for before the machine started.
    #[command(after_help = "Example:\n  sudo polder seal forget")]
    Forget,
}

impl Seal {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        part::log("info");
        match self.command {
            Command::Answer => {
                Ok(polder_seal::answer(&Places::default(), io::stdin().lock(), io::stdout())?)
            }
            Command::Forget => {
                if polder_seal::forget(Path::new("/var"))? {
                    log::info!("everything but the models is gone, as was asked for");
                }
                Ok(())
            }
        }
    }
}
