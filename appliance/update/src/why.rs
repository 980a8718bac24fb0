//! Pure: what became of updates, told to a person.

use crate::record::{Attempt, Outcome};
use crate::{Record, TRIES};

/// What became of each update, newest first; one paragraph each.
pub fn why(record: &Record) -> Vec<String> {
    record.attempt.iter().chain(&record.past).map(story).collect()
}

fn story(attempt: &Attempt) -> String {
    let Attempt { from, to, by, at, boots, outcome, .. } = attempt;
    let begun = format!("{by} put in {to} in place of {from} on {}.", when(at));
    match outcome {
        None if boots.is_empty() => {
            format!("{begun} It is tried at the next start of the machine.")
        }
        None => format!("{begun} It is being tried.{}", faults(attempt)),
        Some(Outcome::Kept { at }) => format!(
            "{begun} It did everything that the box could do before, and stays since {}.{}",
            when(at),
            faults(attempt)
        ),
        Some(Outcome::TakenBack { at, starts }) => {
            let starts = match starts {
                Some(1) => "once".to_owned(),
                Some(n) => format!("{n} times"),
                None => format!("at most {TRIES} times"),
            };
            format!(
                "{begun} It was started {starts} and then left; {from} runs again, seen on {}.{} \
                 Nothing of the box's state was touched.",
                when(at),
                faults(attempt)
            )
        }
        Some(Outcome::Left { by, at }) => {
            format!("{begun} {by} went back to {from} on {}.{}", when(at), faults(attempt))
        }
    }
}

/// What was wrong at which start.
fn faults(attempt: &Attempt) -> String {
    let mut text = String::new();
    for boot in &attempt.boots {
        match &boot.wrong {
            Some(why) => text += &format!(" At the start of {}: {why}.", when(&boot.at)),
            None if matches!(attempt.outcome, Some(Outcome::TakenBack { .. })) => {
                text += &format!(
                    " At the start of {} it came as far as its supervisor and ended before it was judged: it hung, or the power was cut.",
                    when(&boot.at)
                );
            }
            None => {}
        }
    }
    if let Some(Outcome::TakenBack { starts: Some(starts), .. }) = attempt.outcome {
        let unseen = usize::try_from(starts).unwrap_or(0).saturating_sub(attempt.boots.len());
        match unseen {
            0 => {}
            1 => {
                text += " One start never came as far as its supervisor: it hung or stopped before, or its system is damaged."
            }
            n => {
                text += &format!(
                    " {n} starts never came as far as its supervisor: they hung or stopped before, or its system is damaged."
                )
            }
        }
    }
    text
}

/// RFC 3339 as people write it, to the minute.
fn when(at: &str) -> String {
    match (at.get(..10), at.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => at.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{start, trying};
    use crate::slots::tests::slots;

    #[test]
    fn an_update_that_could_not_answer_says_what_failed_on_which_start() {
        let mut record = trying();
        for (id, file) in [("1", "polder_0.2.0+2-1.efi"), ("2", "polder_0.2.0+1-2.efi")] {
            record.started(&slots("0.2.0", &["polder_0.1.0.efi", file]), &start(id));
            record.judged(&start(id), Err("fast did not answer (exit status 1)".into()));
        }
        record.started(&slots("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+0-2.efi"]), &start("3"));
        assert_eq!(
            why(&record),
            [
                "Ada put in 0.2.0 in place of 0.1.0 on 2026-11-26 09:59 UTC. It was started 2 times and then left; \
              0.1.0 runs again, seen on 2026-11-26 10:00 UTC. \
              At the start of 2026-11-26 10:00 UTC: fast did not answer (exit status 1). \
              At the start of 2026-11-26 10:00 UTC: fast did not answer (exit status 1). \
              Nothing of the box's state was touched."
            ]
        );
    }

    #[test]
    fn an_update_that_hung_says_that_nobody_saw_its_supervisor() {
        let mut record = trying();
        record.started(&slots("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+0-3.efi"]), &start("4"));
        let told = why(&record).remove(0);
        assert!(told.contains("3 starts never came as far as its supervisor"), "{told}");
    }

    #[test]
    fn an_update_that_waits_or_stays_says_so() {
        assert!(why(&trying())[0].ends_with("It is tried at the next start of the machine."));
        let mut record = trying();
        record.judged(&start("1"), Ok(()));
        assert!(why(&record)[0].contains("stays since 2026-11-26 10:00 UTC"));
        assert!(why(&Record::default()).is_empty());
    }
}
