use polder_control::{Check, Issue, Severity};

use super::{MINUTE, issue, span};
use crate::seen::Seen;

/// Questions may wait so long without anybody being told.
const BEARABLE: i64 = 10 * MINUTE;

/// Queues that have not been empty for long.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let long =
        seen.queues.iter().filter(|q| q.waiting > 0 && seen.now.saturating_sub(q.since) > BEARABLE);
    let told = long.map(|queue| {
        let for_long = seen.now.saturating_sub(queue.since);
        let severity = if for_long > 6 * BEARABLE { Severity::Warning } else { Severity::Notice };
        let what = format!(
            "questions to {} have been waiting for {}, {} now",
            queue.engine,
            span(for_long),
            queue.waiting
        );
        let advice = "More is asked than the machine can answer. See on the page Usage whether one program asks for everybody; a smaller model answers more people, and so does holding conversations compactly";
        issue(Check::Queue, queue.engine.as_str(), severity, what, advice)
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Queue;

    #[test]
    fn a_queue_is_told_when_it_was_not_empty_for_long() {
        let told = |now, waiting| {
            let queues = vec![Queue { engine: "fast".parse().unwrap(), waiting, since: 0 }];
            check(&Seen { now, queues, ..Seen::default() }).first().map(|i| i.severity)
        };
        assert_eq!(told(BEARABLE, 5), None);
        assert_eq!(told(BEARABLE + 1, 5), Some(Severity::Notice));
        assert_eq!(told(7 * BEARABLE, 5), Some(Severity::Warning));
        assert_eq!(told(7 * BEARABLE, 0), None);
    }
}
