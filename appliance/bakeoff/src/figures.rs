//! What was measured of one side.

use serde::{Deserialize, Serialize};

/// One request that was answered, seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Until its first token.
    pub first: f64,
    /// Between one piece of the answer and the next: what who reads sees. A piece may be several tokens.
    pub gaps: Vec<f64>,
    /// Tokens of the answer.
    pub tokens: u32,
}

/// All requests of one side together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were answered, and that were not.
    pub answered: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Tokens of answers a second, all together.
    pub rate: f64,
    /// Seconds to the first token.
    pub first_p50: f64,
    /// The same, of the slowest twentieth the fastest.
    pub first_p95: f64,
    /// Seconds between pieces of an answer.
    pub gap_p50: f64,
    /// The same, of the slowest hundredth the fastest.
    pub gap_p99: f64,
}

impl Figures {
    /// Of what was answered in `seconds`.
    pub fn of(timed: &[Timed], failed: usize, seconds: f64) -> Self {
        let firsts: Vec<f64> = timed.iter().map(|timed| timed.first).collect();
        let gaps: Vec<f64> = timed.iter().flat_map(|timed| timed.gaps.iter().copied()).collect();
        let tokens: f64 = timed.iter().map(|timed| f64::from(timed.tokens)).sum();
        Self {
            answered: timed.len(),
            failed,
            rate: tokens / seconds.max(1e-9),
            first_p50: percentile(&firsts, 0.5),
            first_p95: percentile(&firsts, 0.95),
            gap_p50: percentile(&gaps, 0.5),
            gap_p99: percentile(&gaps, 0.99),
        }
    }
}

/// The smallest value that such a part of all values does not exceed; 0 of none.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_all_requests_together() {
        let timed: Vec<Timed> = (1..=100)
            .map(|n| Timed { first: f64::from(n), gaps: vec![0.1; 3], tokens: 4 })
            .collect();
        let found = Figures::of(&timed, 2, 50.0);
        assert_eq!((found.answered, found.failed, found.rate), (100, 2, 8.0));
        assert_eq!((found.first_p50, found.first_p95, found.gap_p99), (50.0, 95.0, 0.1));
        assert_eq!(Figures::of(&[], 0, 0.0).first_p95, 0.0);
    }
}
