use anyhow::Context;
use polder_control::{Client, Sockets, WanReply, WanRequest, WanStatus};
use polder_supervisor::Part;
use polder_wan::{Pages, Policy};

use crate::console::say;
use crate::part;
use crate::state::State;

/// Look after the ways to the internet (the supervisor of a box starts this), or show how they are.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polder wan status\n  polder wan status --json\n  polder wan --state /var/lib/polder"
)]
pub(crate) struct Wan {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show which uplink is used, and how each of them is.
    #[command(after_help = "Example:\n  polder wan status")]
    Status {
        #[command(flatten)]
        state: State,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

impl Wan {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            None => {
                let state = self.state.folder()?;
                part::run(part::one_thread()?, Part::Wan, &state, |told| {
                    let at = state.clone();
                    async move { polder_wan::serve(&at, Policy::default(), Pages::usual(), told).await }
                })
            }
            Some(Command::Status { state, json }) => {
                let folder = state.folder()?;
                // Looking must not make a box.
                anyhow::ensure!(
                    folder.is_dir(),
                    "there is no box in {}; make one with `polder up`, or name another folder with --state",
                    folder.display()
                );
                if part::site(&folder)?.uplinks.is_empty() {
                    anyhow::bail!(
                        "the site names no uplinks, so that the machine's own routes are used as they are; a steward adds some on the page Uplinks"
                    );
                }
                let status = part::one_thread()?.block_on(ask(&Sockets::of(&folder)))?;
                match json {
                    true => say(serde_json::to_string_pretty(&status)?),
                    false => say(text(&status)),
                }
                Ok(())
            }
        }
    }
}

async fn ask(sockets: &Sockets) -> anyhow::Result<WanStatus> {
    let asking = async {
        let mut client: Client<WanRequest, WanReply> = Client::connect(&sockets.wan()).await?;
        client.ask(&WanRequest::Status).await
    };
    let limit = std::time::Duration::from_secs(5);
    let asked = tokio::time::timeout(limit, asking).await.context("no answer within 5 s")?;
    let WanReply::Status(status) =
        asked.context("who looks after the uplinks does not answer; does the box run?")?;
    Ok(status)
}

fn text(status: &WanStatus) -> String {
    let mut lines = vec![status.sentence()];
    for uplink in &status.uplinks {
        let used = if uplink.in_use { "in use" } else { "" };
        let metered = if uplink.metered { ", metered" } else { "" };
        lines.push(format!(
            "  {:12} {:7} {}{metered}: {}",
            uplink.name.as_str(),
            used,
            uplink.interface,
            uplink.sentence()
        ));
    }
    if let Some(uplink) = status.in_use() {
        lines.push(format!("{} is used because {}", uplink.name, status.why));
    }
    if let Some((name, seconds)) = &status.back {
        lines.push(format!("back to {name} in {seconds} s at most, if all stays as it is"));
    }
    lines.extend(status.told.clone());
    lines.extend(status.trouble.iter().map(|trouble| format!("trouble: {trouble}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use polder_control::{UplinkState, UplinkStatus};

    use super::*;

    #[test]
    fn a_status_says_first_whether_the_box_is_reached_and_then_each_uplink() {
        let uplink = |name: &str, in_use, state| UplinkStatus {
            name: name.parse().unwrap(),
            interface: "enp1s0".parse().unwrap(),
            metered: in_use,
            in_use,
            state,
            for_seconds: 7,
            loss_percent: 0,
            delay_ms: Some(30),
            lost_lately: 0,
            addresses: Vec::new(),
            silent_targets: Vec::new(),
            port: None,
            dead: None,
            stands_in: None,
        };
        let status = WanStatus {
            uplinks: vec![
                uplink("fibre", false, UplinkState::Silent),
                uplink("mobile", true, UplinkState::Good),
            ],
            why: "nobody answered through the one before it".into(),
            back: Some(("fibre".parse().unwrap(), 9)),
            trouble: None,
            told: None,
        };
        assert_eq!(
            text(&status),
            "The box reaches the internet through mobile.\n  \
             fibre                enp1s0: connected, but nobody out there answers, for 7 s\n  \
             mobile       in use  enp1s0, metered: works, for 7 s; 0 % lost, 30 ms to answer\n\
             mobile is used because nobody answered through the one before it\n\
             back to fibre in 9 s at most, if all stays as it is"
        );
    }
}
