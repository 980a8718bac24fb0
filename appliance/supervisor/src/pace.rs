//! How long a model still loads, by how it went so far.

use std::time::Instant;

use polder_control::Progress;

/// One loading. Engines tell how far they are; when they will be done is told here.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    first: Option<(Instant, u64)>,
}

impl Pace {
    /// With a rate and the seconds that are left, as soon as anything was done in a whole second.
    pub(crate) fn of(&mut self, progress: Progress, now: Instant) -> Progress {
        let (began, at_first) = *self.first.get_or_insert((now, progress.done));
        if progress.done < at_first {
            // Another one.
            self.first = Some((now, progress.done));
            return progress;
        }
        let seconds = now.saturating_duration_since(began).as_secs_f64();
        let done = (progress.done - at_first) as f64;
        let rate = (seconds >= 1.0 && done > 0.0).then(|| done / seconds);
        let left = progress.total.unwrap_or(progress.done).saturating_sub(progress.done) as f64;
        let eta_seconds = rate.map(|rate| (left / rate).ceil() as u64);
        Progress { rate, eta_seconds, ..progress }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polder_control::Unit;

    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done_and_another_loading_begins_anew() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let mut at = |seconds: f64, done: u64| {
            let progress = Progress {
                phase: "loading".into(),
                done,
                total: Some(100),
                unit: Unit::Items,
                rate: None,
                eta_seconds: None,
            };
            pace.of(progress, began + Duration::from_secs_f64(seconds)).eta_seconds
        };
        assert_eq!(at(0.0, 1), None);
        assert_eq!(at(0.5, 1), None, "nothing is known yet");
        assert_eq!(at(2.0, 11), Some(18));
        assert_eq!(at(10.0, 51), Some(10));
        assert_eq!(at(19.8, 100), Some(0));
        assert_eq!(at(30.0, 0), None);
        assert_eq!(at(32.0, 50), Some(2));
    }
}
