use std::collections::VecDeque;
use std::time::Duration;

/// What became of the last probes to the targets of one uplink: per target the delay, or nothing where it was lost.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    most: usize,
    targets: Vec<VecDeque<Option<Duration>>>,
}

/// A window in two figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quality {
    /// Rounds that it is about.
    pub rounds: usize,
    /// Probes lost of these.
    pub lost: usize,
    /// Average delay of the answered ones, where any was.
    pub delay: Option<Duration>,
}

impl Quality {
    /// Lost of a hundred, of all rounds that there are.
    pub fn loss_percent(&self) -> u32 {
        let percent = self.lost * 100 / self.rounds.max(1);
        u32::try_from(percent).unwrap_or(100)
    }
}

impl Window {
    /// Remembers at most this many rounds.
    pub(crate) fn of(most: usize) -> Self {
        Self { most, targets: Vec::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.targets.clear();
    }

    pub(crate) fn take(&mut self, results: &[Option<Duration>]) {
        // Other targets than before: what is known of the old ones says nothing about them.
        if self.targets.len() != results.len() {
            self.targets = vec![VecDeque::new(); results.len()];
        }
        for (target, result) in self.targets.iter_mut().zip(results) {
            if target.len() == self.most {
                target.pop_front();
            }
            target.push_back(*result);
        }
    }

    /// The last `rounds` rounds, as the target in the middle saw them; of two, the better one. A loss on the uplink
    /// shows at all of them, one target that is away shows at itself only.
    pub(crate) fn last(&self, rounds: usize) -> Quality {
        let mut seen: Vec<Quality> = self.targets.iter().map(|t| quality(t, rounds)).collect();
        seen.sort_by_key(|quality| (quality.lost, quality.delay));
        seen.get(seen.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }

    /// Targets that answered nothing in a whole window while another one did.
    pub(crate) fn away(&self, rounds: usize) -> Vec<usize> {
        let dead = |t: &VecDeque<Option<Duration>>| {
            t.len() >= rounds && t.iter().rev().take(rounds).all(Option::is_none)
        };
        match self.targets.iter().all(dead) {
            true => Vec::new(),
            false => (0..self.targets.len()).filter(|n| dead(&self.targets[*n])).collect(),
        }
    }
}

fn quality(target: &VecDeque<Option<Duration>>, rounds: usize) -> Quality {
    let recent: Vec<&Option<Duration>> = target.iter().rev().take(rounds).collect();
    let answered: Vec<Duration> = recent.iter().filter_map(|result| **result).collect();
    let count = u32::try_from(answered.len()).unwrap_or(u32::MAX);
    Quality {
        rounds: recent.len(),
        lost: recent.len() - answered.len(),
        delay: (count > 0).then(|| answered.iter().sum::<Duration>() / count.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_target_that_is_away_is_not_a_loss_of_the_uplink() {
        let mut window = Window::of(20);
        for _ in 0..20 {
            window.take(&[Some(10 * MS), None]);
        }
        let seen = window.last(20);
        assert_eq!((seen.loss_percent(), seen.delay), (0, Some(10 * MS)));
        assert_eq!(window.away(20), [1]);
        for _ in 0..20 {
            window.take(&[None, None]);
        }
        assert_eq!((window.last(20).loss_percent(), window.away(20)), (100, vec![]));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten_and_other_targets_begin_anew() {
        let mut window = Window::of(4);
        for lost in [true, true, false, false, false] {
            window.take(&[(!lost).then_some(2 * MS)]);
        }
        assert_eq!(window.last(4), Quality { rounds: 4, lost: 1, delay: Some(2 * MS) });
        assert_eq!(window.last(3).lost, 0);
        window.take(&[None, None]);
        assert_eq!(window.last(4), Quality { rounds: 1, lost: 1, delay: None });
    }
}
