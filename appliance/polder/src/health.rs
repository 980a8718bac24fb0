use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use polder_control::{
    Actor, Channel, Client, Fix, HealthReply, HealthReport, HealthRequest, ImportSource, Request,
    Severity, Sockets, Standing,
};
use polder_site::SiteChange;
use polder_supervisor::Part;

use crate::console::say;
use crate::follow::Follower;
use crate::part;
use crate::state::{State, runtime, unexpected};

/// Slow tools are asked when somebody wants to know now.
const LIMIT: Duration = Duration::from_secs(120);

/// Say what is wrong with the box, since when, and what helps.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  polder health               what was seen within the last minute\n  polder health --now --json  look at everything now; for programs\n  polder health fix part      press the button of an issue\n\nExit status: 0 all is well, 3 something is to be looked at within days, 4 something is urgent, 1 nobody answers."
)]
pub(crate) struct Health {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    state: State,
    /// Look at everything now, which takes some seconds.
    #[arg(long)]
    now: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look after a box's health (its supervisor starts this).
    #[command(after_help = "Example:\n  polder health watch --state /var/lib/polder")]
    Watch {
        #[command(flatten)]
        state: State,
    },
    /// Do what helps against an issue, where the box can do it itself.
    #[command(
        after_help = "Examples:\n  polder health fix part\n  polder health fix weights --on qwen3-4b"
    )]
    Fix {
        /// What was looked at, as `polder health` names it.
        check: String,
        /// What it is wrong with, where more than one thing is.
        #[arg(long, value_name = "THING")]
        on: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Send a test to the stewards in one of the ways that the site says.
    #[command(after_help = "Example:\n  polder health test mail")]
    Test {
        /// mail, webhook, ntfy or dead-man.
        channel: String,
        #[command(flatten)]
        state: State,
    },
    /// Ask every disk how it is and leave the answers where the box finds them; for root, which a unit of the image does.
    #[command(after_help = "Example:\n  sudo polder health drives")]
    Drives {
        /// Where to.
        #[arg(long, value_name = "DIR", default_value = polder_health::DRIVES)]
        into: PathBuf,
    },
}

impl Health {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            None => show(&self.state, self.now, self.json),
            Some(Command::Watch { state }) => {
                let state = state.folder()?;
                let of = state.clone();
                part::run(part::one_thread()?, Part::Health, &state, |told| async move {
                    polder_health::run(&of, told).await
                })
            }
            Some(Command::Fix { check, on, state }) => fix(&state, &check, on.as_deref()),
            Some(Command::Test { channel, state }) => {
                let known = Channel::of(&channel);
                let channel = known.with_context(|| {
                    format!(
                        "{channel} is no way to tell stewards; say mail, webhook, ntfy or dead-man"
                    )
                })?;
                ask(&state, &HealthRequest::Test(channel))?;
                say(format!("a test was sent by {}", channel.word()));
                Ok(())
            }
            Some(Command::Drives { into }) => {
                let count = polder_health::leave_drives(&into)
                    .context("disks could not be asked how they are; is smartctl here (Debian: smartmontools)?")?;
                say(format!("{count} disks were asked"));
                Ok(())
            }
        }
    }
}

/// Asks the part that looks after the box's health.
pub(crate) fn ask(state: &State, request: &HealthRequest) -> anyhow::Result<HealthReply> {
    let path = Sockets::of(&state.folder()?).health();
    let reply = runtime()?.block_on(async {
        let mut client: Client<HealthRequest, HealthReply> = Client::connect(&path).await?;
        client.ask_within(LIMIT, request).await
    })?;
    match reply {
        HealthReply::Refused(why) => bail!(why),
        reply => Ok(reply),
    }
}

fn report(state: &State, now: bool) -> anyhow::Result<HealthReport> {
    let request = if now { HealthRequest::LookNow } else { HealthRequest::Report };
    match ask(state, &request)? {
        HealthReply::Report(report) => Ok(*report),
        _ => Err(unexpected()),
    }
}

fn show(state: &State, now: bool, json: bool) -> anyhow::Result<()> {
    let report = report(state, now)?;
    if json {
        say(serde_json::to_string_pretty(&report)?);
    } else {
        say(text(&report, jiff::Timestamp::now().as_second()));
    }
    match report.worst() {
        Some(Severity::Urgent) => std::process::exit(4),
        Some(Severity::Warning) => std::process::exit(3),
        _ => Ok(()),
    }
}

fn text(report: &HealthReport, now: i64) -> String {
    if report.at == 0 {
        return "the box has just started; nobody has looked yet (`polder health --now` does)"
            .to_owned();
    }
    let ago = |at: i64| polder_health::checks::span(now.saturating_sub(at));
    let issue = |standing: &Standing| {
        let issue = &standing.issue;
        let mut text = format!(
            "{} {} ({}), for {}\n  {}.\n  What helps: {}.",
            issue.severity.word(),
            issue.id.check,
            issue.id.on,
            ago(standing.since),
            issue.what,
            issue.advice
        );
        if let Some(fix) = &issue.fix {
            text += &format!(
                "\n  polder health fix {} --on {:?}   ({})",
                issue.id.check,
                issue.id.on,
                fix.label()
            );
        }
        if issue.unsafe_to_update {
            text += "\n  No update is taken until then.";
        }
        text
    };
    let mut lines: Vec<String> = report.standing.iter().map(issue).collect();
    if lines.is_empty() {
        lines.push("all is well".to_owned());
    }
    for past in report.past.iter().take(5) {
        lines.push(format!("back to normal {} ago: {}", ago(past.until), past.what));
    }
    let mut unseen: Vec<String> =
        report.unseen.iter().map(|unseen| format!("  {}: {}", unseen.check, unseen.why)).collect();
    if !unseen.is_empty() {
        unseen.insert(0, "could not be looked at:".to_owned());
        lines.push(unseen.join("\n"));
    }
    lines.join("\n\n")
}

fn fix(state: &State, check: &str, on: Option<&str>) -> anyhow::Result<()> {
    let report = report(state, true)?;
    let fits = |standing: &&Standing| {
        let id = &standing.issue.id;
        id.check.word() == check && on.is_none_or(|on| id.on == on)
    };
    let found: Vec<&Standing> = report.standing.iter().filter(fits).collect();
    let issue = match found[..] {
        [] => bail!("there is no such issue now; `polder health` lists those there are"),
        [only] => &only.issue,
        _ => bail!("more than one thing has that issue; name one with --on"),
    };
    let Some(fix) = &issue.fix else {
        bail!("the box cannot do anything about that itself. What helps: {}", issue.advice)
    };
    let follower = Follower::of(&state.folder()?);
    let site = runtime()?.block_on(follower.status())?.site;
    let request = request(fix, &site, Actor::Console)?;
    if matches!(request, Request::CheckUpdate | Request::StartPart { .. }) {
        state.ask(&request)?;
    } else {
        runtime()?.block_on(follower.follow(&request))?;
    }
    say("done; whether it helped shows within some minutes");
    Ok(())
}

/// What the supervisor is asked for.
fn request(fix: &Fix, site: &polder_site::Site, by: Actor) -> anyhow::Result<Request> {
    Ok(match fix {
        Fix::StartEngine(name) => {
            let slot = site.engines.get(name).context("that engine is not in the site any more")?;
            let change = SiteChange::Engine { name: name.clone(), slot: slot.clone() };
            Request::Apply { change, by }
        }
        Fix::BringModel(recipe) => {
            Request::Import { recipe: recipe.clone(), from: ImportSource::Recipe, by }
        }
        Fix::StartPart(part) => Request::StartPart { part: *part, by },
        Fix::CheckUpdate => Request::CheckUpdate,
    })
}

#[cfg(test)]
mod tests {
    use polder_control::{Check, Issue, IssueId};

    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_what_helps_and_what_is_well_in_a_word() {
        let mut report = HealthReport { at: 1, ..HealthReport::default() };
        assert_eq!(text(&report, 10), "all is well");
        let issue = Issue {
            id: IssueId { check: Check::Part, on: "the model fast".into() },
            severity: Severity::Urgent,
            what: "it was given up".into(),
            advice: "Press the button".into(),
            fix: Some(Fix::StartEngine("fast".parse().unwrap())),
            unsafe_to_update: false,
        };
        report.standing.push(Standing { issue, since: 0, gone_since: None });
        let said = text(&report, 7200);
        assert!(
            said.starts_with("urgent part (the model fast), for 2 hours\n  it was given up."),
            "{said}"
        );
        assert!(said.contains("polder health fix part --on \"the model fast\""), "{said}");
        assert!(text(&HealthReport::default(), 0).contains("just started"));
    }

    #[test]
    fn a_press_asks_for_what_the_page_would_ask_for() {
        let mut site = polder_site::Site::unclaimed(8443);
        let fix = Fix::StartEngine("fast".parse().unwrap());
        assert!(request(&fix, &site, Actor::Console).is_err());
        let slot = polder_site::EngineSlot::serving("tiny".parse().unwrap());
        site.engines.insert("fast".parse().unwrap(), slot.clone());
        let change = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
        let asked = request(&fix, &site, Actor::Console).unwrap();
        assert_eq!(asked, Request::Apply { change, by: Actor::Console });
    }
}
