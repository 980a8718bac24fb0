use polder_control::{AuditEntry, Reply, Request};

use crate::console::say;
use crate::state::{State, unexpected};

/// Show who did what to the box, and when; newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  polder audit\n  polder audit --limit 500 --json")]
pub(crate) struct Audit {
    #[command(flatten)]
    state: State,
    /// How many entries.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Only entries before this number.
    #[arg(long, value_name = "NUMBER")]
    before: Option<u64>,
    /// For programs: one JSON document per line, with the hashes.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let (before, limit) = (self.before, self.limit);
        let Reply::Audit(entries) = self.state.ask(&Request::Audit { before, limit })? else {
            return Err(unexpected());
        };
        for entry in &entries {
            say(if self.json { serde_json::to_string(entry)? } else { line(entry) });
        }
        Ok(())
    }
}

fn line(entry: &AuditEntry) -> String {
    let AuditEntry { number, at, by, what, on, .. } = entry;
    let at = at.split('.').next().unwrap_or(at).trim_end_matches('Z');
    format!("{number:>6}  {at}Z  {by} {what} {on}")
}
