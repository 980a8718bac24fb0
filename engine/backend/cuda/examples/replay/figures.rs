//! What was seen, in figures.

/// How an engine did with so many agents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) agents: usize,
    /// Seconds that were looked at.
    pub(crate) seconds: f64,
    /// Seconds to first tokens, and between tokens. A first token that had not come counts with what was waited for it.
    pub(crate) chat_first: Vec<f64>,
    pub(crate) chat_gaps: Vec<f64>,
    pub(crate) agent_first: Vec<f64>,
    pub(crate) agent_gaps: Vec<f64>,
    /// Agents' calls that were answered.
    pub(crate) calls: u64,
    /// Of agents' prompts: tokens, and those that were known.
    pub(crate) asked: u64,
    pub(crate) known: u64,
    /// Requests that were not taken.
    pub(crate) refused: u64,
}

/// What the chats must see, seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) first_p95: f64,
    pub(crate) gap_p99: f64,
}

impl Seen {
    /// Whether those who chat are served well.
    pub(crate) fn holds(&self, bounds: &Bounds) -> bool {
        percentile(&self.chat_first, 0.95) <= bounds.first_p95
            && percentile(&self.chat_gaps, 0.99) <= bounds.gap_p99
    }

    /// Whether agents' answers flow within the same bound too.
    pub(crate) fn all_flow(&self, bounds: &Bounds) -> bool {
        let all: Vec<f64> = self.chat_gaps.iter().chain(&self.agent_gaps).copied().collect();
        self.holds(bounds) && percentile(&all, 0.99) <= bounds.gap_p99
    }

    pub(crate) fn heading() -> String {
        "| agents | chat TTFT p50 / p95 s | of | chat ITL p50 / p99 ms | agents' TTFT p50 / p95 s | agents' ITL p99 ms | calls/min | known | chats hold | all ITL too |\n\
         |---|---|---|---|---|---|---|---|---|---|"
            .to_owned()
    }

    pub(crate) fn row(&self, bounds: &Bounds) -> String {
        let p = percentile;
        let yes = |yes| if yes { "yes" } else { "no" };
        format!(
            "| {} | {:.2} / {:.2} | {} | {:.1} / {:.1} | {:.2} / {:.2} | {:.1} | {:.1} | {:.1} % | {} | {} |",
            self.agents,
            p(&self.chat_first, 0.5),
            p(&self.chat_first, 0.95),
            self.chat_first.len(),
            p(&self.chat_gaps, 0.5) * 1e3,
            p(&self.chat_gaps, 0.99) * 1e3,
            p(&self.agent_first, 0.5),
            p(&self.agent_first, 0.95),
            p(&self.agent_gaps, 0.99) * 1e3,
            self.calls as f64 / self.seconds * 60.0,
            self.known as f64 / (self.asked as f64).max(1.0) * 100.0,
            yes(self.holds(bounds)),
            yes(self.all_flow(bounds)),
        )
    }
}

/// The smallest value that such a part of all values does not exceed; NaN of none.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Which number of agents to try next: twice as many while they hold, then between what held and what did not.
/// None when the two lie side by side, or `most` held.
pub(crate) fn next(tried: &[(usize, bool)], first: usize, most: usize) -> Option<usize> {
    let held = tried.iter().filter(|(_, held)| *held).map(|(agents, _)| *agents).max();
    let failed = tried.iter().filter(|(_, held)| !held).map(|(agents, _)| *agents).min();
    match (held, failed) {
        (None, None) => Some(first),
        (Some(held), None) if held >= most => None,
        (Some(held), None) => Some((held * 2).min(most)),
        (held, Some(failed)) => {
            let held = held.unwrap_or(0);
            (failed > held + 1).then(|| held + (failed - held) / 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            [0.5, 0.95, 0.99, 1.0].map(|part| percentile(&values, part)),
            [50.0, 95.0, 99.0, 100.0]
        );
        assert_eq!(percentile(&[3.0], 0.5), 3.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn nothing_seen_holds_nothing() {
        assert!(!Seen::default().holds(&Bounds { first_p95: 1.0, gap_p99: 1.0 }));
    }

    #[test]
    fn the_most_agents_that_hold_are_found() {
        for truth in 0..=20_usize {
            let mut tried = Vec::new();
            while let Some(agents) = next(&tried, 4, 16) {
                tried.push((agents, agents <= truth));
            }
            let held = tried.iter().filter(|(_, held)| *held).map(|(agents, _)| *agents).max();
            assert_eq!(held.unwrap_or(0), truth.min(16), "{tried:?}");
        }
    }
}
