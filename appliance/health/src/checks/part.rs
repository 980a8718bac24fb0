use polder_control::{Check, Fix, Issue, PartName, PartState, Severity};

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
        let fix = match (&part.engine, part.other) {
            _ if !matches!(part.state, PartState::GaveUp(_)) => None,
            (Some(name), _) => Some(Fix::StartEngine(name.clone())),
            (None, other) => other.map(Fix::StartPart),
        };
        Some(match fix {
            Some(fix) => with_fix(issue, fix),
            None => issue,
        })
    };
    if let (PartState::GaveUp(why), Some(other)) = (&part.state, part.other) {
        let why = why.trim_end_matches('.');
        return told(
            Severity::Urgent,
            format!("{}: the part that {} was given up: {why}", without(other), other.does()),
            "Press the button to try once more. If it dies again, its last words say why; the text for a helper on the page Health has them",
        );
    }
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

/// What it means for people that a part is gone.
fn without(part: PartName) -> &'static str {
    match part {
        PartName::Power => {
            "nobody watches the battery, and a power cut would end the box in the middle of what it does"
        }
        PartName::Wan => {
            "nobody looks after the ways out, and when the one in use fails the box does not change to another"
        }
        PartName::Spare => {
            "nobody keeps in touch with the other box: it gets no backups and hears of no keys that were taken away"
        }
        PartName::Health => {
            "nobody looks after the box's health, and nobody is told when something is wrong"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: PartState, restarts: u32) -> Vec<Issue> {
        let part = PartSeen {
            on: "the model fast".into(),
            engine: Some("fast".parse().unwrap()),
            other: None,
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
    fn that_nobody_watches_the_battery_is_said_so_and_can_be_tried_again() {
        let part = PartSeen {
            on: "the watch over the UPS".into(),
            engine: None,
            other: Some(PartName::Power),
            state: PartState::GaveUp("it died 5 times of signal 9.".into()),
            restarts: 0,
        };
        let issues = check(&Seen { parts: Some(vec![part]), ..Seen::default() });
        assert!(issues[0].what.starts_with("nobody watches the battery"), "{issues:?}");
        assert_eq!(issues[0].fix, Some(Fix::StartPart(PartName::Power)));
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
