use polder_recipes::BoxSpec;

use crate::console::{bytes, say};

/// List the machines that `polder plan` knows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder boxes")]
pub(crate) struct Boxes {}

impl Boxes {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        for spec in BoxSpec::builtin() {
            let fast = &spec.fast;
            let amount = bytes(fast.bytes.value as u64);
            say(format!("{:20} {} ({amount} {})", spec.name, spec.title, fast.kind));
        }
        Ok(())
    }
}
