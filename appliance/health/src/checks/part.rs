use polder_control::{Check, Fix, Issue, PartState, Severity};

use super::{issue, with_fix};
use crate::seen::{PartSeen, Seen};

/// So many starts within an hour are too many.
const MANY: u32 = 3;

/// Parts that died, again and again, or for good.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(parts) = &seen.parts else {
        let what = "the supervisor does not answer: nothing can be changed, and nothing that dies is started again".to_owned();
        let advice =
            "It is started again by itself within seconds. If this stays, start the machine again";
        return vec![issue(Check::Part, "the supervisor", Severity::Urgent, what, advice)];
    };
    parts.iter().filter_map(of).collect()
}

fn of(part: &PartSeen) -> Option<Issue> {
    let on = &part.on;
    let told = |severity, what: String, advice| {
        let issue = issue(Check::Part, on, severity, what, advice);
        Some(match &part.engine {
            Some(name) if matches!(part.state, PartState::GaveUp(_)) => {
                with_fix(issue, Fix::StartEngine(name.clone()))
            }
            _ => issue,
        })
    };
    match &part.state {
        PartState::GaveUp(why) => told(
            Severity::Urgent,
            format!("{on} was given up: {}", why.trim_end_matches('.')),
            "Press the button to try once more. If it dies again, its last words say why: too little memory is the usual reason, and a smaller model helps",
        ),
        PartState::Waiting { why, .. } if part.restarts >= MANY => told(
            Severity::Warning,
            format!(
                "{on} died {} times within an hour, the last time of {}",
                part.restarts,
                why.trim_end_matches('.')
            ),
            "It is started again by itself. If it goes on dying it will be given up; its last words say why",
        ),
        _ if part.restarts >= MANY => told(
            Severity::Warning,
            format!("{on} was started again {} times within an hour", part.restarts),
            "It answers now. If this goes on, look at the dashboard for what it died of",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: PartState, restarts: u32) -> Vec<Issue> {
        let part = PartSeen {
            on: "the model fast".into(),
            engine: Some("fast".parse().unwrap()),
            state,
            restarts,
        };
        check(&Seen { parts: Some(vec![part]), ..Seen::default() })
    }

    #[test]
    fn an_engine_that_was_given_up_can_be_started_with_one_press() {
        let issues = told(PartState::GaveUp("it died 5 times of signal 9.".into()), 0);
        assert_eq!(issues[0].fix, Some(Fix::StartEngine("fast".parse().unwrap())));
        assert_eq!(issues[0].severity, Severity::Urgent);
    }

    #[test]
    fn one_death_is_none_and_many_within_an_hour_are_told() {
        let waiting = PartState::Waiting { retry_ms: 250, why: "signal 9".into() };
        assert_eq!(told(waiting.clone(), 1), []);
        assert!(told(waiting, 3)[0].what.contains("died 3 times"));
        assert!(told(PartState::Ready, 4)[0].what.contains("started again 4 times"));
        assert_eq!(told(PartState::Ready, 0), []);
    }

    #[test]
    fn a_supervisor_that_does_not_answer_is_urgent() {
        assert_eq!(check(&Seen::default())[0].id.on, "the supervisor");
    }
}
