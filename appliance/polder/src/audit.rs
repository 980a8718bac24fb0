use anyhow::{Context, bail};
use polder_control::{AuditEntry, AuditHead, Reply, Request, SpareReply, SpareRequest};
use polder_supervisor::Verdict;

use crate::console::say;
use crate::state::{State, unexpected};

/// Show who did what to the box, and when; newest first.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  polder audit\n  polder audit --limit 500 --json\n  polder audit verify"
)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: Option<Command>,
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

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that no entry was changed or taken out; with a head that was kept elsewhere also that none was cut off the end.
    #[command(
        after_help = "Examples:\n  polder audit verify\n  polder audit verify --spare                  with what the box's spare keeps of it\n  polder audit verify --head 4711:5f7a...   as `polder audit head` printed it earlier\n\nThe box need not run. Exit status: 0 the trail is whole, 1 it is not."
    )]
    Verify {
        /// The number and hash of an entry that was known before.
        #[arg(long, value_name = "NUMBER:HASH", value_parser = read_head)]
        head: Option<AuditHead>,
        /// Compare with everything that the box's spare keeps of the trail; the box and its spare must run.
        #[arg(long, conflicts_with = "head")]
        spare: bool,
        #[command(flatten)]
        state: State,
    },
    /// Print the last entry's number and hash, to be kept where nobody who changes the trail can change it too.
    #[command(
        after_help = "Example:\n  polder audit head    write it down, or keep it on another machine"
    )]
    Head {
        #[command(flatten)]
        state: State,
    },
}

impl Audit {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            None => {}
            Some(Command::Verify { spare: true, state, .. }) => return verify_with_spare(&state),
            Some(Command::Verify { head, state, .. }) => return verify(&state, head.as_ref()),
            Some(Command::Head { state }) => {
                let Reply::AuditHead(head) = state.ask(&Request::AuditHead)? else {
                    return Err(unexpected());
                };
                say(format!("{}:{}", head.number, head.hash));
                return Ok(());
            }
        }
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

fn verify(state: &State, head: Option<&AuditHead>) -> anyhow::Result<()> {
    match polder_supervisor::verify(&state.folder()?, head)? {
        (last, Verdict::Whole | Verdict::Repaired { .. }) => {
            say(format!("all {} entries are as they were written", last.number));
            Ok(())
        }
        (_, Verdict::Broken(why)) => {
            bail!(
                "the audit trail is not what it was: {why}; ask every steward, and compare with a backup"
            )
        }
    }
}

/// Every entry that the spare knows must be there as it was.
fn verify_with_spare(state: &State) -> anyhow::Result<()> {
    let SpareReply::Heads(heads) = crate::spare::ask(state, &SpareRequest::Heads)? else {
        return Err(unexpected());
    };
    verify(state, None)?;
    for (number, hash) in &heads {
        let head = AuditHead { number: *number, hash: hash.clone() };
        if let (_, Verdict::Broken(why)) = polder_supervisor::verify(&state.folder()?, Some(&head))?
        {
            bail!(
                "the audit trail is not what the spare keeps of it: {why}; ask every steward, and compare with a backup"
            )
        }
    }
    say(format!("the {} that the spare keeps are among them, as they were", heads.len()));
    Ok(())
}

fn read_head(text: &str) -> anyhow::Result<AuditHead> {
    let (number, hash) = text.split_once(':').context("write it as NUMBER:HASH")?;
    let number = number.parse().context("write it as NUMBER:HASH")?;
    let good = hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit());
    anyhow::ensure!(good, "the hash has 64 letters from 0 to f");
    Ok(AuditHead { number, hash: hash.to_ascii_lowercase() })
}

fn line(entry: &AuditEntry) -> String {
    let AuditEntry { number, at, by, what, on, .. } = entry;
    let at = at.split('.').next().unwrap_or(at).trim_end_matches('Z');
    format!("{number:>6}  {at}Z  {by} {what} {on}")
}
