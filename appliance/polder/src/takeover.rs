use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use polder_control::{
    Actor, Reply, Request, RunId, RunState, Stand, StepState, TakeoverStatus, TakeoverWish,
};

use crate::console::{complain, say};
use crate::state::{State, unexpected};

/// Between two looks at a run.
const LOOK: Duration = Duration::from_millis(200);
/// A box that begins anew as another one answers again within this.
const ANEW: Duration = Duration::from_secs(180);

/// Which of the two boxes serves: `polder spare …`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Serving {
    /// On a spare: serve in the main box's place, with its members, keys and names.
    #[command(
        after_help = "Examples:\n  polder spare takeover --plan\n  polder spare takeover --main-is-dead oak    oak is off and stays off\n\nWhat was changed on the main box since its last backup is lost; what was revoked there stays revoked."
    )]
    Takeover {
        /// The main box's name: it is off, and stays off until it is given back.
        #[arg(long, value_name = "NAME")]
        main_is_dead: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    /// On a spare that serves: give back to the main box, with everything that happened since.
    #[command(
        after_help = "Examples:\n  polder spare give-back --plan\n  polder spare give-back\n\nThe main box must be on and reach this one. Members see a pause."
    )]
    GiveBack {
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    /// On a spare that serves: be the main box for good, because the other machine is lost. Afterwards this box can have a spare of its own.
    #[command(
        after_help = "Examples:\n  polder spare become-main --plan\n  polder spare become-main --sentence \"oak is gone for good\"\n\nThere is no way back: if the old machine ever turns up it hears that it is out, and never serves as this collective again."
    )]
    BecomeMain {
        /// That the main box never comes back, in so many words: NAME is gone for good.
        #[arg(long, value_name = "SENTENCE", required_unless_present = "plan")]
        sentence: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    /// On a main box: send the models that it serves to the spare, so that the spare can serve them too.
    #[command(
        after_help = "Examples:\n  polder spare send\n  polder spare send --plan\n\nWhat the spare has is not sent again, and what was cut goes on where it was."
    )]
    Send {
        /// Only say what would be done.
        #[arg(long)]
        plan: bool,
        #[command(flatten)]
        state: State,
    },
    /// On a main box that waits to hear from its spare: serve all the same, because the spare certainly does not.
    #[command(
        after_help = "Example:\n  polder spare serve-anyway\n\nIt is written into the audit trail, and holds until the machine was off for a minute."
    )]
    ServeAnyway {
        #[command(flatten)]
        state: State,
    },
    /// On a main box: whether it stops when it does not hear from its spare for a minute. Then the spare may take over by silence alone.
    #[command(
        after_help = "Examples:\n  polder spare yield on     stop in a silence; nobody has to type a name\n  polder spare yield off    go on serving, as at first"
    )]
    Yield {
        /// `on` or `off`.
        #[arg(value_parser = ["on", "off"])]
        how: String,
        #[command(flatten)]
        state: State,
    },
    /// Say which of the two serves, and what a takeover would mean.
    #[command(after_help = "Examples:\n  polder spare who\n  polder spare who --json")]
    Who {
        /// For programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
}

impl Serving {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Takeover { main_is_dead, plan, state } => {
                let wish = TakeoverWish::TakeOver { dead: main_is_dead };
                if plan {
                    for sentence in status(&state)?.outlook.unwrap_or_default() {
                        say(sentence);
                    }
                    return preview(&state, wish);
                }
                carry_out(&state, wish)?;
                let other = until(&state, |status| status.stand == Stand::Serves)?.other;
                say(format!("this box serves for {other} now"));
                Ok(())
            }
            Self::GiveBack { plan: true, state } => preview(&state, TakeoverWish::GiveBack),
            Self::GiveBack { plan: false, state } => {
                carry_out(&state, TakeoverWish::GiveBack)?;
                let other = until(&state, |status| status.stand == Stand::Own)?.other;
                say(format!("{other} serves; this box is its spare again"));
                Ok(())
            }
            Self::BecomeMain { plan: true, state, .. } => {
                for sentence in status(&state)?.outlook.unwrap_or_default() {
                    say(sentence);
                }
                preview(&state, TakeoverWish::BecomeMain { gone: None })
            }
            Self::BecomeMain { plan: false, sentence, state } => {
                carry_out(&state, TakeoverWish::BecomeMain { gone: sentence })?;
                say("this box is the main box for good; it can have a spare: `polder spare pair`");
                Ok(())
            }
            Self::Send { plan: true, state } => preview(&state, TakeoverWish::Send),
            Self::Send { plan: false, state } => {
                carry_out(&state, TakeoverWish::Send)?;
                say("the spare has the models");
                Ok(())
            }
            Self::ServeAnyway { state } => {
                state.ask(&Request::ServeAnyway { by: Actor::Console })?;
                say(
                    "this box serves without having heard from its spare, and goes on when it does not hear from it",
                );
                Ok(())
            }
            Self::Yield { how, state } => {
                let yields = how == "on";
                state.ask(&Request::Yield { yields, by: Actor::Console })?;
                say(match yields {
                    true => "this box stops when it does not hear from its spare for a minute",
                    false => "this box goes on when it does not hear from its spare",
                });
                Ok(())
            }
            Self::Who { json, state } => {
                let status = status(&state)?;
                say(if json { serde_json::to_string_pretty(&status)? } else { text(&status) });
                Ok(())
            }
        }
    }
}

fn status(state: &State) -> anyhow::Result<TakeoverStatus> {
    match state.ask(&Request::Takeover)? {
        Reply::Takeover(Some(status)) => Ok(*status),
        Reply::Takeover(None) => {
            bail!("this box is paired with no other; see `polder spare --help`")
        }
        _ => Err(unexpected()),
    }
}

fn text(status: &TakeoverStatus) -> String {
    let other = &status.other;
    let mut lines = vec![match (status.is_spare, status.stand) {
        (true, Stand::Own) => format!("{other} serves, and this box is its spare"),
        (true, Stand::Serves) if status.main_is_there => {
            format!("this box serves for {other}, which is there again and can be given back to")
        }
        (true, Stand::Serves) => format!("this box serves for {other}, which is away"),
        (true, _) => format!("this box has given back to {other}"),
        (false, Stand::Retired) => {
            format!("this machine is out for good, and {other} is the main box; make it new")
        }
        (false, Stand::Serves) => format!("this box serves, and {other} is its spare"),
        (false, Stand::Fenced) => format!("{other} serves in this box's place; give back there"),
        (false, _) => format!("this box serves nothing until it hears from its spare {other}"),
    }];
    lines.push(format!("  term {}", status.term));
    match &status.outlook {
        Ok(sentences) => lines.extend(sentences.iter().map(|sentence| format!("  {sentence}"))),
        Err(why) => lines.push(format!("  no takeover now: {why}")),
    }
    lines.join("\n")
}

fn preview(state: &State, wish: TakeoverWish) -> anyhow::Result<()> {
    let Reply::Preview { plan, .. } = state.ask(&Request::PreviewTakeover(wish))? else {
        return Err(unexpected());
    };
    say(plan);
    Ok(())
}

/// Until the run is over, or the box begins anew because of it.
fn carry_out(state: &State, wish: TakeoverWish) -> anyhow::Result<()> {
    let request = Request::TakeOver { wish, by: Actor::Console };
    let Reply::Accepted(id) = state.ask(&request)? else { return Err(unexpected()) };
    let mut told = BTreeSet::new();
    loop {
        let Some(run) = run(state, id) else { return Ok(()) };
        for (number, step) in run.steps.iter().enumerate() {
            if !matches!(step, StepState::Waiting) && told.insert(number) {
                complain(format!("{}. {}", number + 1, run.plan.steps[number].title));
            }
        }
        match run.state {
            RunState::Running => std::thread::sleep(LOOK),
            RunState::Done => return Ok(()),
            RunState::Failed(why) => bail!(why),
            RunState::Cancelled => bail!("it was stopped"),
        }
    }
}

/// None where the box has begun anew: it knows nothing of that run any more.
fn run(state: &State, id: RunId) -> Option<polder_control::Run> {
    match state.ask(&Request::Runs) {
        Ok(Reply::Runs(runs)) => runs.into_iter().find(|run| run.id == id),
        _ => None,
    }
}

fn until(
    state: &State,
    enough: impl Fn(&TakeoverStatus) -> bool,
) -> anyhow::Result<TakeoverStatus> {
    let begun = Instant::now();
    loop {
        match status(state) {
            Ok(status) if enough(&status) => return Ok(status),
            Ok(status) if begun.elapsed() > ANEW => bail!(text(&status)),
            Err(error) if begun.elapsed() > ANEW => return Err(error),
            _ => std::thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_is_said_in_one_line_and_then_what_a_takeover_would_mean() {
        let mut status = TakeoverStatus {
            is_spare: true,
            other: "oak".into(),
            stand: Stand::Own,
            term: 3,
            yields: false,
            outlook: Err("oak is there".into()),
            main_is_there: true,
        };
        let said = text(&status);
        assert!(said.starts_with("oak serves, and this box is its spare\n  term 3"), "{said}");
        assert!(said.ends_with("no takeover now: oak is there"), "{said}");
        (status.is_spare, status.stand, status.outlook) = (false, Stand::Waits, Ok(Vec::new()));
        assert!(text(&status).starts_with("this box serves nothing until it hears"));
    }
}
