use polder_control::{Check, Issue, Severity};

use super::{issue, span};
use crate::seen::Seen;

/// A change of model that was announced: stewards hear of it where they hear of everything else, and that it is over.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(switch) = &seen.switch else { return Vec::new() };
    let what = match switch.at.saturating_sub(seen.now) {
        left @ 1.. => format!(
            "the model called {} becomes {} in {}; while that is done its questions wait or are asked to come back",
            switch.alias,
            switch.model,
            span(left)
        ),
        late => format!(
            "the model called {} should be {} for {} now, and the box has not switched it yet",
            switch.alias,
            switch.model,
            span(late.saturating_neg())
        ),
    };
    let advice = "Nothing: the box does it by itself. It can be taken back until then on the page \"Change the model\"";
    vec![issue(Check::Model, &switch.alias, Severity::Warning, what, advice)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::SwitchSeen;

    #[test]
    fn an_announced_change_is_told_with_how_long_there_is() {
        let with = |now: i64| {
            let switch = SwitchSeen { alias: "house".into(), model: "big".into(), at: 7200 };
            check(&Seen { now, switch: Some(switch), ..Seen::default() })
        };
        assert!(with(0)[0].what.contains("house becomes big in 2 hours"));
        assert!(with(7260)[0].what.contains("for 60 seconds now"));
        assert_eq!(check(&Seen::default()), []);
    }
}
