//! Whether the step in flight is only slow, or hangs.

use std::time::{Duration, Instant};

/// A step may take so many times what its tokens would at the slowest pace seen: contexts grow,
/// and machines have other things to do.
const SLACK: u32 = 4;

/// The step that the back end is working on, and the pace so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// What one token may take while no step has been seen.
    first: Duration,
    /// Since when, and its tokens.
    working: Option<(Instant, u32)>,
    /// The slowest step so far, per token.
    slowest: Option<Duration>,
}

impl Pulse {
    pub(crate) fn new(first: Duration) -> Self {
        Self { first, working: None, slowest: None }
    }

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

    /// The back end does something beside steps that should take no longer than a token. Says whether that is watched by itself:
    /// it is over then when [`Self::end_aside`] is told.
    pub(crate) fn begin_aside(&mut self, now: Instant) -> bool {
        let alone = self.working.is_none();
        if alone {
            self.working = Some((now, 1));
        }
        alone
    }

    /// It has done that. Nothing is learned from it about steps.
    pub(crate) fn end_aside(&mut self) {
        self.working = None;
    }

    /// How long the step has been running, where that is `patience` more than its tokens explain.
    pub(crate) fn overdue(&self, now: Instant, patience: Duration) -> Option<Duration> {
        let (since, tokens) = self.working?;
        let expected = match self.slowest {
            Some(slowest) => slowest.saturating_mul(tokens).saturating_mul(SLACK),
            None => self.first.saturating_mul(tokens),
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
        let mut pulse = Pulse::new(Duration::from_secs(1));
        assert_eq!(pulse.overdue(after(1_000_000), PATIENCE), None);
        pulse.begin(start, 512);
        assert_eq!(pulse.overdue(after(60 + 512), PATIENCE), None);
        pulse.begin(start, 1);
        assert_eq!(pulse.overdue(after(61), PATIENCE), None);
        assert_eq!(pulse.overdue(after(62), PATIENCE), Some(Duration::from_secs(62)));
    }

    #[test]
    fn what_is_done_beside_steps_is_watched_and_teaches_nothing() {
        let start = Instant::now();
        let late = start + PATIENCE + Duration::from_secs(2);
        let mut pulse = Pulse::new(Duration::from_secs(1));
        assert!(pulse.begin_aside(start));
        assert!(pulse.overdue(late, PATIENCE).is_some());
        pulse.end_aside();
        assert_eq!((pulse.overdue(late, PATIENCE), pulse.slowest), (None, None));
        pulse.begin(start, 512);
        assert!(!pulse.begin_aside(late));
        assert_eq!(pulse.overdue(late, PATIENCE), None);
    }

    #[test]
    fn what_a_step_may_take_follows_the_slowest_pace_seen() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Duration::from_secs(1));
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
