use polder_control::{Check, Issue, Severity};

use super::issue;
use crate::seen::{Card, Seen};

/// So many errors that were put right are a sign of wear.
const MANY_CORRECTED: u64 = 1000;

/// What cards say about errors in their memory.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    seen.cards.iter().flatten().filter_map(of).collect()
}

/// The worst of one card.
fn of(card: &Card) -> Option<Issue> {
    let on = format!("graphics card {}", card.index);
    let told =
        |severity, what: String, advice| Some(issue(Check::GpuMemory, &on, severity, what, advice));
    if card.remap_failed {
        return told(
            Severity::Urgent,
            format!("{on} ({}) has bad memory and no spare rows left for it", card.name),
            "The card has to be replaced: this is what its warranty is for. Until then answers may be wrong",
        );
    }
    if let Some(action) = &card.recovery {
        return told(
            Severity::Urgent,
            format!("the driver of {on} ({}) asks for: {action}", card.name),
            "Start the machine again. If it asks again, turn the machine off, look whether the card sits firmly, and ask for a replacement",
        );
    }
    if let Some(errors) = card.uncorrected.filter(|errors| *errors > 0) {
        return told(
            Severity::Urgent,
            format!(
                "the memory of {on} ({}) had {errors} errors that could not be put right",
                card.name
            ),
            "Start the machine again. If there are more within days, the card has to be replaced",
        );
    }
    if card.remap_pending {
        return told(
            Severity::Warning,
            format!("{on} ({}) has put a bad row of its memory aside", card.name),
            "Start the machine again when nobody minds: the spare row takes over then",
        );
    }
    let errors = card.corrected.filter(|errors| *errors > MANY_CORRECTED)?;
    told(
        Severity::Notice,
        format!(
            "{on} ({}) put right {errors} small errors in its memory since it was started",
            card.name
        ),
        "Nothing now. Cooler air helps; a number that grows quickly is a reason to ask for a replacement",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::nvidia::cards;

    const A100: &str = include_str!("../../fixtures/nvidia-smi-a100-535.xml");

    fn told(xml: &str) -> Vec<Issue> {
        check(&Seen { cards: Some(cards(xml).unwrap()), ..Seen::default() })
    }

    #[test]
    fn real_cards_that_are_well_have_no_issue() {
        assert_eq!(told(A100), []);
        assert_eq!(told(include_str!("../../fixtures/nvidia-smi-3090-590.xml")), []);
    }

    #[test]
    fn errors_that_could_not_be_put_right_are_urgent_and_those_before_the_last_start_are_history() {
        let bad = A100.replacen(
            "<dram_uncorrectable>0</dram_uncorrectable>",
            "<dram_uncorrectable>3</dram_uncorrectable>",
            1,
        );
        let issues = told(&bad);
        assert_eq!(issues[0].severity, Severity::Urgent);
        assert!(issues[0].what.contains("3 errors"), "{}", issues[0].what);
        let old = A100.replace(
            "                <dram_uncorrectable>0</dram_uncorrectable>\n            </aggregate>",
            "                <dram_uncorrectable>3</dram_uncorrectable>\n            </aggregate>",
        );
        assert_ne!(old, A100);
        assert_eq!(told(&old), []);
    }

    #[test]
    fn rows_that_wait_or_cannot_be_replaced_and_what_the_driver_asks_for_are_told() {
        let rows = |pending: &str, failure: &str| {
            A100.replace(
                "<remapped_rows>N/A</remapped_rows>",
                &format!("<remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>1</remapped_row_unc><remapped_row_pending>{pending}</remapped_row_pending><remapped_row_failure>{failure}</remapped_row_failure></remapped_rows>"),
            )
        };
        assert_eq!(told(&rows("No", "No")), []);
        assert_eq!(told(&rows("Yes", "No"))[0].severity, Severity::Warning);
        assert!(told(&rows("Yes", "Yes"))[0].what.contains("no spare rows"));
        let reset = A100.replace("<reset_required>No", "<reset_required>Yes");
        assert!(told(&reset)[0].what.contains("asks for"));
        let action = include_str!("../../fixtures/nvidia-smi-3090-590.xml")
            .replace("<gpu_recovery_action>None", "<gpu_recovery_action>Drain and Reset");
        assert!(told(&action)[0].what.contains("Drain and Reset"));
    }
}
