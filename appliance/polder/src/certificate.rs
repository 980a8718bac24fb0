use std::io::Read;

use anyhow::{Context, bail};
use polder_control::{DoorReply, DoorRequest, PublicStatus, SecretName, SecretText};

use crate::console::say;
use crate::state::{State, unexpected};

/// No secret is longer.
const LONGEST: u64 = 4096;

/// Show the certificate that the world trusts, renew it, or give a secret that it needs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder certificate show\n  polder certificate renew\n  polder certificate secret dns-key < key.txt\n\nFor which names, and who signs, is said on the page Certificate."
)]
pub(crate) struct Certificate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show which names are certified, by whom and until when, what comes next, and what failed.
    #[command(
        after_help = "Examples:\n  polder certificate show\n  polder certificate show --json"
    )]
    Show {
        #[command(flatten)]
        state: State,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Try at once what failed, or renew what is not old yet.
    #[command(after_help = "Example:\n  polder certificate renew")]
    Renew {
        #[command(flatten)]
        state: State,
    },
    /// Keep a secret, read from standard input so that no list of processes shows it. Nothing to read forgets it.
    #[command(after_help = "Example:\n  polder certificate secret dns-key < key.txt")]
    Secret {
        /// Of what: the account that the authority gave, the key to the DNS zone, or the hook.
        #[arg(value_enum)]
        of: Of,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Of {
    Account,
    DnsKey,
    Hook,
}

impl Certificate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Show { state, json: true } => {
                say(serde_json::to_string_pretty(&ask(&state, DoorRequest::Certificate)?)?);
            }
            Command::Show { state, json: false } => {
                say(text(&ask(&state, DoorRequest::Certificate)?));
            }
            Command::Renew { state } => {
                ask(&state, DoorRequest::RenewCertificate)?;
                say("the box tries now; `polder certificate show` says how it goes");
            }
            Command::Secret { of, state } => {
                let name = match of {
                    Of::Account => SecretName::Account,
                    Of::DnsKey => SecretName::DnsKey,
                    Of::Hook => SecretName::Hook,
                };
                let mut text = String::new();
                let mut input = std::io::stdin().take(LONGEST + 1);
                input.read_to_string(&mut text).context("the secret could not be read")?;
                if text.len() as u64 > LONGEST {
                    bail!("a secret is shorter than {LONGEST} bytes; is it the right file?");
                }
                let text = SecretText::new(&text);
                let gone = text.expose().is_empty();
                ask(&state, DoorRequest::KeepSecret { name, text })?;
                say(if gone { "the secret is forgotten" } else { "the secret is kept" });
            }
        }
        Ok(())
    }
}

fn ask(state: &State, question: DoorRequest) -> anyhow::Result<PublicStatus> {
    match state.ask_door(&question)? {
        DoorReply::Certificate(status) => Ok(status),
        _ => Err(unexpected()),
    }
}

fn text(status: &PublicStatus) -> String {
    if status.wanted.is_empty() {
        return "only the box's own certificate; the page Certificate asks for one that the world trusts".to_owned();
    }
    let date = polder_acme::decide::date;
    let mut lines = vec![status.wanted.join(", ")];
    match &status.held {
        Some(held) => {
            lines.push(format!("  signed by     {}", held.issuer));
            lines.push(format!("  good until    {}", date(held.until)));
            lines.push(format!("  renewed       {}", date(held.renews)));
        }
        None => lines.push("  not certified yet".to_owned()),
    }
    match &status.doing {
        Some(doing) => lines.push(format!("  just now      {doing}")),
        None => lines.push(format!("  next          {}", status.next)),
    }
    if let Some(failed) = &status.failed {
        lines.push(format!(
            "  last failure  {}, {} in a row: {}",
            date(failed.at),
            failed.times,
            failed.why
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use polder_control::{FailedTry, HeldCertificate};

    use super::*;

    #[test]
    fn a_certificate_is_told_in_lines() {
        let held = HeldCertificate {
            names: vec!["gpu.example.org".into()],
            issuer: "An authority".into(),
            from: 1_800_000_000,
            until: 1_807_776_000,
            renews: 1_805_184_000,
        };
        let failed = FailedTry { at: 1_805_184_060, times: 2, why: "no way".into() };
        let status = PublicStatus {
            wanted: vec!["gpu.example.org".into()],
            held: Some(held),
            next: "renews the certificate, at 2027-03-16 08:05 UTC".into(),
            failed: Some(failed),
            ..PublicStatus::default()
        };
        assert_eq!(
            text(&status),
            "gpu.example.org\n  signed by     An authority\n  good until    2027-04-15 08:00 UTC\n  renewed       2027-03-16 08:00 UTC\n  next          renews the certificate, at 2027-03-16 08:05 UTC\n  last failure  2027-03-16 08:01 UTC, 2 in a row: no way"
        );
        assert!(text(&PublicStatus::default()).starts_with("only the box's own"));
    }
}
