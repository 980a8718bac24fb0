//! Whether two engines answer alike.
//!
//! Two right engines do not round alike, so that answers part where two tokens are about as likely. What tells a wrong one is how much
//! less likely it finds what the other said at that place, and whether it finds what both said as likely as the other does.

use serde::{Deserialize, Serialize};

/// A token of an answer that was told with its logprobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub token: String,
    /// Natural log of its probability; None where the server does not tell.
    pub logprob: Option<f64>,
    /// The best tokens at its place, with theirs.
    pub top: Vec<(String, f64)>,
}

/// Two answers to one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// Tokens before the first that differs.
    pub same: usize,
    /// There is none that differs.
    pub whole: bool,
    /// How much less likely the more certain side finds the other's token where they part, in nats; infinite where it is not
    /// among its best.
    pub gap: f64,
    /// Mean difference of the logprobs of the same tokens.
    pub drift: f64,
}

/// Tokens that are this close may come in either order, nats.
const CLOSE: f64 = 0.5;
/// Engines that compute the same may differ by this in what they find likely, nats.
const DRIFT: f64 = 0.15;

/// Compares two greedy answers.
pub fn compare(ours: &[Token], theirs: &[Token]) -> Compared {
    let same = ours.iter().zip(theirs).take_while(|(a, b)| a.token == b.token).count();
    let drifts: Vec<f64> = ours[..same]
        .iter()
        .zip(&theirs[..same])
        .filter_map(|(a, b)| Some((a.logprob? - b.logprob?).abs()))
        .collect();
    let drift = drifts.iter().sum::<f64>() / (drifts.len() as f64).max(1.0);
    let parted = ours.get(same).zip(theirs.get(same));
    // One that ended where the other went on parted there too, by a token that is not shown.
    let whole = same == ours.len() && same == theirs.len();
    let gap = match parted {
        None if whole => 0.0,
        None => f64::INFINITY,
        Some((a, b)) => gap_of(a, &b.token).max(gap_of(b, &a.token)),
    };
    Compared { same, whole, gap, drift }
}

fn gap_of(chose: &Token, other: &str) -> f64 {
    let of = |(token, logprob): &(String, f64)| (token == other).then_some(*logprob);
    match (chose.logprob, chose.top.iter().find_map(of)) {
        (Some(chosen), Some(other)) => (chosen - other).max(0.0),
        _ => f64::INFINITY,
    }
}

impl Compared {
    /// Whether the difference, if there is one, is only rounding.
    pub fn agrees(&self) -> bool {
        (self.whole || self.gap <= CLOSE) && self.drift <= DRIFT
    }
}

/// All prompts together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Prompts.
    pub prompts: usize,
    /// Answers that are the same to the last token.
    pub identical: usize,
    /// Answers that agree: the same, or parted where two tokens were about as likely.
    pub agree: usize,
    /// Median of the tokens before answers part.
    pub median_same: usize,
    /// Mean difference of the logprobs of the same tokens, nats.
    pub drift: f64,
}

impl Parity {
    /// Of every pair.
    pub fn of(pairs: &[Compared]) -> Self {
        let mut same: Vec<usize> = pairs.iter().map(|pair| pair.same).collect();
        same.sort_unstable();
        Self {
            prompts: pairs.len(),
            identical: pairs.iter().filter(|pair| pair.whole).count(),
            agree: pairs.iter().filter(|pair| pair.agrees()).count(),
            median_same: same.get(same.len() / 2).copied().unwrap_or(0),
            drift: pairs.iter().map(|pair| pair.drift).sum::<f64>() / (pairs.len() as f64).max(1.0),
        }
    }

    /// Whether both run the same model: of ten answers nine agree.
    pub fn holds(&self) -> bool {
        self.prompts > 0 && self.agree * 10 >= self.prompts * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(token: &str, logprob: f64, top: &[(&str, f64)]) -> Token {
        let top = top.iter().map(|(t, l)| ((*t).to_owned(), *l)).collect();
        Token { token: token.to_owned(), logprob: Some(logprob), top }
    }

    #[test]
    fn answers_that_part_at_a_close_call_agree_and_others_do_not() {
        let start = token("The", -0.1, &[]);
        let close = |mine: &str, other: &str| token(mine, -0.8, &[(mine, -0.8), (other, -0.9)]);
        let found =
            compare(&[start.clone(), close(" a", " b")], &[start.clone(), close(" b", " a")]);
        assert!(found.agrees() && !found.whole && found.same == 1);
        let sure = token(" b", -0.01, &[(" b", -0.01), (" a", -6.0)]);
        assert!(!compare(&[start.clone(), close(" a", " b")], &[start.clone(), sure]).agrees());
        let unheard_of = token(" c", -0.8, &[(" d", -0.9)]);
        assert!(!compare(&[start.clone(), close(" a", " b")], &[start, unheard_of]).agrees());
    }

    #[test]
    fn the_same_words_with_other_certainty_are_another_model() {
        let (a, b) = (token("x", -0.1, &[]), token("x", -1.4, &[]));
        let found = compare(std::slice::from_ref(&a), &[b]);
        assert!(found.whole && !found.agrees());
        assert!(compare(std::slice::from_ref(&a), std::slice::from_ref(&a)).agrees());
        assert!(!compare(&[a.clone(), a.clone()], &[a]).agrees(), "one ended early");
    }

    #[test]
    fn one_answer_in_ten_may_differ_and_no_answers_are_no_parity() {
        let same = Compared { same: 5, whole: true, gap: 0.0, drift: 0.0 };
        let other = Compared { same: 0, whole: false, gap: 9.0, drift: 0.0 };
        let of = |bad: usize| Parity::of(&[vec![same; 20 - bad], vec![other; bad]].concat());
        assert!(of(0).holds() && of(2).holds() && !of(3).holds());
        assert!(!Parity::of(&[]).holds());
    }
}
