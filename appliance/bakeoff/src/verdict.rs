//! Which to keep, and why.

use serde::Serialize;

use crate::figures::Figures;
use crate::parity::Parity;

/// Which side to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Polder.
    Ours,
    /// The other one.
    Theirs,
    /// There is no difference worth a change.
    Either,
    /// They do not answer alike: speed says nothing before it is known why.
    Neither,
}

/// A figure of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// What is compared.
    pub what: &'static str,
    /// Of ours, theirs; seconds or tokens a second.
    pub ours: f64,
    /// Theirs.
    pub theirs: f64,
    /// Above 1 ours is better.
    pub ratio: f64,
}

/// Less than this is no difference: what a machine does beside moves figures by as much.
const NOISE: f64 = 1.05;

/// What is compared: throughput, and the latencies that people notice.
pub fn ratios(ours: &Figures, theirs: &Figures) -> [Ratio; 3] {
    let more =
        |what, ours: f64, theirs: f64| Ratio { what, ours, theirs, ratio: over(ours, theirs) };
    let less =
        |what, ours: f64, theirs: f64| Ratio { what, ours, theirs, ratio: over(theirs, ours) };
    [
        more("tokens a second", ours.rate, theirs.rate),
        less("first token, p95, s", ours.first_p95, theirs.first_p95),
        less("between pieces, p99, s", ours.gap_p99, theirs.gap_p99),
    ]
}

/// Where one of them was not measured they count as equal.
fn over(a: f64, b: f64) -> f64 {
    if a > 0.0 && b > 0.0 { a / b } else { 1.0 }
}

fn requests(count: usize) -> String {
    format!("{count} request{}", if count == 1 { "" } else { "s" })
}

/// Parity first; then who answers at all; then all figures together, each counting the same.
pub fn verdict(parity: &Parity, ours: &Figures, theirs: &Figures) -> (Keep, String) {
    if !parity.holds() {
        let Parity { agree, prompts, .. } = parity;
        let why = format!(
            "only {agree} of {prompts} answers agree: find out why before speed decides (another model, quantization or chat template?)"
        );
        return (Keep::Neither, why);
    }
    if ours.failed != theirs.failed {
        let keep = if ours.failed < theirs.failed { Keep::Ours } else { Keep::Theirs };
        let why =
            format!("Polder failed {}, the other one {}", requests(ours.failed), theirs.failed);
        return (keep, why);
    }
    let all = ratios(ours, theirs);
    let mean = all.map(|r| r.ratio.ln()).iter().sum::<f64>() / all.len() as f64;
    let mean = mean.exp();
    let told =
        all.map(|r| format!("{} {:.2}x", r.what.trim_end_matches(", s"), r.ratio)).join(", ");
    match mean {
        mean if mean > NOISE => (Keep::Ours, format!("Polder is {mean:.2} times as good: {told}")),
        mean if mean < 1.0 / NOISE => {
            (Keep::Theirs, format!("Polder is {mean:.2} times as good: {told}"))
        }
        _ => (Keep::Either, format!("no difference worth a change: {told}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parity(agree: usize) -> Parity {
        Parity { prompts: 10, identical: agree, agree, median_same: 9, drift: 0.0 }
    }

    fn figures(rate: f64, first: f64, gap: f64, failed: usize) -> Figures {
        let (first_p50, first_p95, gap_p50, gap_p99) = (first, first, gap, gap);
        Figures { answered: 9, failed, rate, first_p50, first_p95, gap_p50, gap_p99 }
    }

    #[test]
    fn who_answers_otherwise_is_not_kept_for_being_fast() {
        let (fast, slow) = (figures(900.0, 0.1, 0.01, 0), figures(9.0, 9.0, 0.9, 0));
        assert_eq!(verdict(&parity(8), &fast, &slow).0, Keep::Neither);
        assert_eq!(verdict(&parity(9), &fast, &slow).0, Keep::Ours);
        assert_eq!(verdict(&parity(10), &slow, &fast).0, Keep::Theirs);
        assert_eq!(verdict(&parity(10), &slow, &slow).0, Keep::Either);
    }

    #[test]
    fn who_fails_is_not_kept() {
        let (fast, slow) = (figures(900.0, 0.1, 0.01, 3), figures(9.0, 9.0, 0.9, 0));
        let (keep, why) = verdict(&parity(10), &fast, &slow);
        assert_eq!(keep, Keep::Theirs);
        assert_eq!(why, "Polder failed 3 requests, the other one 0");
        let (keep, why) = verdict(&parity(10), &slow, &fast);
        assert_eq!(keep, Keep::Ours);
        assert_eq!(why, "Polder failed 0 requests, the other one 3");
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_who_is_named_first(
            a in (1.0f64..1e4, 0.01f64..9.0, 0.001f64..0.5), b in (1.0f64..1e4, 0.01f64..9.0, 0.001f64..0.5),
        ) {
            let (a, b) = (figures(a.0, a.1, a.2, 0), figures(b.0, b.1, b.2, 0));
            let turned = match verdict(&parity(10), &b, &a).0 {
                Keep::Ours => Keep::Theirs,
                Keep::Theirs => Keep::Ours,
                other => other,
            };
            prop_assert_eq!(verdict(&parity(10), &a, &b).0, turned);
        }
    }
}
