use polder_control::{Check, Issue, Severity};

use super::{DAY, GIB, issue, size};
use crate::seen::{KernelWord, Seen};

/// Less than this of a card in other programs' hands is a desktop, not a rival.
const A_DESKTOP: u64 = 2 * GIB;

/// Memory that others take from the models, and memory that ran out. Engines take nearly all of a card's memory on purpose:
/// that it is full says nothing.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let rivals = seen.cards.iter().flatten().filter(|card| card.others > A_DESKTOP).map(|card| {
        let on = format!("graphics card {}", card.index);
        let who = card.largest_other.as_deref().unwrap_or("another program");
        let what = format!(
            "programs that are not the box's use {} of the memory of {on}, {who} the most of it",
            size(card.others)
        );
        let advice = "End them if the models should have that memory: they hold fewer or shorter conversations now";
        issue(Check::Memory, &on, Severity::Notice, what, advice)
    });
    let mut issues: Vec<Issue> = rivals.collect();
    issues.extend(ran_out(seen).or_else(|| nearly(seen)));
    issues
}

fn ran_out(seen: &Seen) -> Option<Issue> {
    let process = seen.kernel.iter().flatten().rev().find_map(|event| match &event.what {
        KernelWord::OutOfMemory { process } if seen.now.saturating_sub(event.at) <= DAY => {
            Some(process)
        }
        _ => None,
    })?;
    let what = format!("the machine's memory ran out and the system ended {process}");
    let advice = "Serve a smaller model, or give engines less memory on the page Models. What was ended is started again by itself if it was the box's";
    Some(issue(Check::Memory, "the machine", Severity::Warning, what, advice))
}

fn nearly(seen: &Seen) -> Option<Issue> {
    let memory = seen.memory.filter(|memory| memory.total > 0)?;
    (memory.available < memory.total / 33).then(|| {
        let what = format!("only {} of the machine's {} memory are free", size(memory.available), size(memory.total));
        let advice = "Serve a smaller model, or give engines less memory on the page Models, before the system ends something";
        issue(Check::Memory, "the machine", Severity::Warning, what, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::{Card, HostMemory, KernelEvent};

    #[test]
    fn a_full_card_is_well_and_a_card_full_of_other_programs_is_not() {
        let with = |others| {
            let card = Card { others, largest_other: Some("blender".into()), ..Card::default() };
            check(&Seen { cards: Some(vec![card]), ..Seen::default() })
        };
        assert_eq!(with(GIB), []);
        assert!(
            with(9 * GIB)[0].what.contains("9.0 GiB") && with(9 * GIB)[0].what.contains("blender")
        );
    }

    #[test]
    fn memory_that_ran_out_is_told_with_what_was_ended_and_once() {
        let what = KernelWord::OutOfMemory { process: "polder".into() };
        let memory = Some(HostMemory { total: 64 * GIB, available: GIB });
        let seen = |now| Seen {
            now,
            kernel: Some(vec![KernelEvent { at: 100, what: what.clone() }]),
            memory,
            ..Seen::default()
        };
        assert_eq!(check(&seen(200)).len(), 1);
        assert!(check(&seen(200))[0].what.contains("ended polder"));
        assert!(check(&seen(100 + 2 * DAY))[0].what.contains("only 1.0 GiB"));
    }
}
