//! Whether the step in flight is only slow, or hangs.

use std::time::{Duration, Instant};

/// What one token of a step may take while nothing is known about the machine: a large model on
/// a slow processor.
const FIRST: Duration = Duration::from_secs(1);
/// A step may take so many times what its tokens would at the slowest pace seen: contexts grow,
/// and machines have other things to do.
const SLACK: u32 = 4;

/// The step that the back end is working on, and the pace so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pulse {
    /// Since when, and its tokens.
    working: Option<(Instant, u32)>,
    /// The slowest step so far, per token.
    slowest: Option<Duration>,
}

impl Pulse {
    /// The back end begins a step.
    pub(crate) fn begin(&mut self, now: Instant, tokens: u32) {
        self.working = Some((now, tokens.max(1)));
    }

    /// It has finished the step. Says how long that took.
    pub(crate) fn end(&mut self, now: Instant) -> Option<Duration> {
        let (since, tokens) = self.working.take()?;
        let took = now - since;
        self.slowest = self.slowest.max(Some(took / tokens));
        Some(took)
    }

    /// How long the step has been running, where that is `patience` more than its tokens explain.
    pub(crate) fn overdue(&self, now: Instant, patience: Duration) -> Option<Duration> {
        let (since, tokens) = self.working?;
        let expected = match self.slowest {
            Some(slowest) => slowest.saturating_mul(tokens).saturating_mul(SLACK),
            None => FIRST.saturating_mul(tokens),
        };
        let running = now.saturating_duration_since(since);
        (running > patience.saturating_add(expected)).then_some(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_long_first_prompt_on_a_slow_machine_is_waited_for_and_a_hung_token_is_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        assert_eq!(pulse.overdue(after(1_000_000), PATIENCE), None);
        pulse.begin(start, 512);
        assert_eq!(pulse.overdue(after(60 + 512), PATIENCE), None);
        pulse.begin(start, 1);
        assert_eq!(pulse.overdue(after(61), PATIENCE), None);
        assert_eq!(pulse.overdue(after(62), PATIENCE), Some(Duration::from_secs(62)));
    }

    #[test]
    fn what_a_step_may_take_follows_the_slowest_pace_seen() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        for (tokens, seconds) in [(100, 50), (1, 2), (100, 10)] {
            pulse.begin(start, tokens);
            pulse.end(after(seconds));
        }
        assert_eq!(pulse.overdue(after(1_000_000), PATIENCE), None);
        pulse.begin(start, 100);
        assert_eq!(pulse.overdue(after(60 + 4 * 200), PATIENCE), None);
        assert!(pulse.overdue(after(61 + 4 * 200), PATIENCE).is_some());
        pulse.begin(start, 1);
        assert!(pulse.overdue(after(61 + 4 * 2), PATIENCE).is_some());
    }
}
