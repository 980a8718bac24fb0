use polder_control::{BoxStatus, PartState, PartStatus, Reply, Request, Run, RunState};

use crate::console::say;
use crate::state::{State, unexpected};

/// Show how the box is: its parts, and what it is doing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  polder status\n  polder status --json")]
pub(crate) struct Status {
    #[command(flatten)]
    state: State,
    /// For programs.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Reply::Status(status) = self.state.ask(&Request::Status)? else {
            return Err(unexpected());
        };
        let Reply::Runs(runs) = self.state.ask(&Request::Runs)? else { return Err(unexpected()) };
        if self.json {
            let document = serde_json::json!({ "box": status, "runs": runs });
            say(serde_json::to_string_pretty(&document)?);
        } else {
            say(text(&status, &runs));
        }
        Ok(())
    }
}

fn text(status: &BoxStatus, runs: &[Run]) -> String {
    let door = &status.site.door;
    let addresses: Vec<String> = door.listen.iter().map(ToString::to_string).collect();
    let mut lines =
        vec![format!("{} at {}, port {}", status.site.name, addresses.join(", "), door.port)];
    lines.push(format!("  gateway       {}", part(&status.gateway)));
    for engine in &status.engines {
        let name = format!("engine {}", engine.name);
        lines.push(format!("  {name:13} {} ({})", part(&engine.part), engine.recipe));
    }
    if status.engines.is_empty() {
        lines.push("  no model is chosen yet".to_owned());
    }
    for other in status.others.iter().filter(|other| other.part.state != PartState::Ready) {
        lines.push(format!("  what {}: {}", other.name.does(), part(&other.part)));
    }
    if let Some(supply) = &status.supply {
        lines.push(format!("  power         {}", supply.words));
    }
    for run in runs.iter().filter(|run| run.state == RunState::Running) {
        lines.push(format!("  doing         {} (run {})", run.plan.title, run.id.0));
    }
    if let Some(run) = runs.iter().find(|run| run.state != RunState::Running)
        && let RunState::Failed(why) = &run.state
    {
        lines.push(format!("  last failure  {}: {why}", run.plan.title));
    }
    lines.join("\n")
}

/// How a part is, in words.
pub(crate) fn part(part: &PartStatus) -> String {
    let state = match &part.state {
        PartState::Stopped => "stopped".to_owned(),
        PartState::Starting => "starting".to_owned(),
        PartState::Ready => "ready".to_owned(),
        PartState::Draining => "finishing what it has".to_owned(),
        PartState::Waiting { retry_ms, why } => {
            format!("died of {why}; started again in {:.1} s", *retry_ms as f64 / 1000.0)
        }
        PartState::GaveUp(why) => format!("given up: {why}"),
    };
    match part.restarts {
        0 => state,
        1 => format!("{state}, started again once"),
        n => format!("{state}, started again {n} times"),
    }
}
