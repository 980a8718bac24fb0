use std::path::PathBuf;

use anyhow::Context;
use polder_control::{Actor, HealthReply, HealthRequest};

use crate::console::say;
use crate::health::ask;
use crate::state::{State, unexpected};

/// Write a text for somebody who helps: how the box is, without secrets, names or a word of any conversation.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder support                  to the screen\n  polder support --to help.txt    into a file; look through it, then send it"
)]
pub(crate) struct Support {
    #[command(flatten)]
    state: State,
    /// Into this file instead of to the screen.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

impl Support {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let HealthReply::Support(text) =
            ask(&self.state, &HealthRequest::Support { by: Actor::Console })?
        else {
            return Err(unexpected());
        };
        match &self.to {
            None => say(text.trim_end()),
            Some(path) => {
                std::fs::write(path, text)
                    .with_context(|| format!("could not write {}", path.display()))?;
                say(format!("it is in {}; look through it before you send it", path.display()));
            }
        }
        Ok(())
    }
}
