//! Whether reading a block back is faster than computing it again, by what this engine has measured.

use std::time::Duration;

use crate::store::Tier;

/// Work per second, the recent more than the old.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    work: f64,
    seconds: f64,
}

impl Rate {
    /// About ten observations count.
    const FADE: f64 = 0.9;

    fn observe(&mut self, work: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if work > 0 && seconds > 0.0 {
            self.work = self.work * Self::FADE + work as f64;
            self.seconds = self.seconds * Self::FADE + seconds;
        }
    }

    /// None before anything was measured.
    fn seconds_for(&self, work: u64) -> Option<f64> {
        (self.work > 0.0).then(|| work as f64 * self.seconds / self.work)
    }
}

/// Running averages of how fast prompts are read, and how fast blocks come back from each tier.
///
/// Sums of work and of time are averaged, not speeds: one block that came at once says less than a thousand that
/// took a second.
#[derive(Debug, Clone, Default)]
pub struct RestoreEstimate {
    prefill: Rate,
    host: Rate,
    disk: Rate,
    refused: u32,
}

impl RestoreEstimate {
    /// Every so many refusals in a row one is allowed, to see whether the tier has become faster.
    pub const TRY_AGAIN_AFTER: u32 = 32;

    /// So many prompt tokens were read by the model in this time.
    pub fn prefilled(&mut self, tokens: u64, took: Duration) {
        self.prefill.observe(tokens, took);
    }

    /// So many bytes came back from a tier in this time, from the first request until they were on the device.
    pub fn restored(&mut self, tier: Tier, bytes: u64, took: Duration) {
        match tier {
            Tier::Host => self.host.observe(bytes, took),
            Tier::Disk => self.disk.observe(bytes, took),
        }
    }

    /// Whether `bytes` of KV in a tier are had sooner than their `tokens` are read again.
    ///
    /// Where one of the two was never measured the answer is yes: that measures it. Nothing to restore is not worth
    /// it.
    pub fn worth_restoring(&mut self, tokens: u64, bytes: u64, tier: Tier) -> bool {
        if tokens == 0 || bytes == 0 {
            return false;
        }
        let rate = match tier {
            Tier::Host => &self.host,
            Tier::Disk => &self.disk,
        };
        let worth = match (rate.seconds_for(bytes), self.prefill.seconds_for(tokens)) {
            (Some(restoring), Some(reading)) => restoring < reading,
            _ => true,
        };
        if worth || self.refused + 1 >= Self::TRY_AGAIN_AFTER {
            self.refused = 0;
            return true;
        }
        self.refused += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn before_anything_is_measured_restoring_is_tried() {
        let mut estimate = RestoreEstimate::default();
        assert!(estimate.worth_restoring(16, 1 << 20, Tier::Disk));
        estimate.prefilled(1000, Duration::from_secs(1));
        assert!(estimate.worth_restoring(16, 1 << 20, Tier::Disk));
        assert!(!estimate.worth_restoring(0, 1 << 20, Tier::Disk));
        // A measurement of nothing is none.
        estimate.restored(Tier::Disk, 0, Duration::from_secs(9));
        estimate.restored(Tier::Disk, 5, Duration::ZERO);
        assert!(estimate.worth_restoring(16, u64::MAX, Tier::Disk));
    }

    #[test]
    fn a_slow_disk_is_tried_again_now_and_then_and_trusted_once_it_is_fast() {
        let mut estimate = RestoreEstimate::default();
        estimate.prefilled(1000, Duration::from_secs(1));
        estimate.restored(Tier::Disk, 1000, Duration::from_secs(1));
        let tries = (0..320).filter(|_| estimate.worth_restoring(10, 1000, Tier::Disk)).count();
        assert_eq!(tries, 10);
        assert!(estimate.clone().worth_restoring(10, 1000, Tier::Host), "the host is another tier");
        for _ in 0..50 {
            estimate.restored(Tier::Disk, 1_000_000, Duration::from_secs(1));
        }
        assert!(estimate.worth_restoring(10, 1000, Tier::Disk));
    }

    proptest! {
        #[test]
        fn the_answer_is_what_constant_speeds_say_and_more_tokens_never_speak_against_it(
            per_second in 1u64..100_000, bytes_per_second in 1u64..1 << 40,
            seconds in prop::collection::vec(1u64..50, 1..30),
            tokens in 1u64..1_000_000, bytes in 1u64..1 << 40, more in 0u64..1_000_000,
        ) {
            let mut estimate = RestoreEstimate::default();
            for seconds in seconds {
                estimate.prefilled(per_second * seconds, Duration::from_secs(seconds));
                estimate.restored(Tier::Disk, bytes_per_second * seconds, Duration::from_secs(seconds));
            }
            let (restoring, reading) =
                (bytes as f64 / bytes_per_second as f64, tokens as f64 / per_second as f64);
            prop_assume!((restoring / reading - 1.0).abs() > 1e-9);
            let worth = estimate.clone().worth_restoring(tokens, bytes, Tier::Disk);
            prop_assert_eq!(worth, restoring < reading);
            let with_more = estimate.clone().worth_restoring(tokens + more, bytes, Tier::Disk);
            prop_assert!(with_more || !worth);
            let with_less = estimate.worth_restoring(tokens, bytes.div_ceil(2), Tier::Disk);
            prop_assert!(with_less || !worth);
        }

        #[test]
        fn an_average_lies_between_what_was_measured(
            measured in prop::collection::vec((1u64..1000, 1u64..1000), 1..40),
        ) {
            let mut rate = Rate::default();
            let speed = |(work, millis): &(u64, u64)| *work as f64 / *millis as f64 * 1000.0;
            for (work, millis) in &measured {
                rate.observe(*work, Duration::from_millis(*millis));
            }
            let average = 1000.0 / rate.seconds_for(1000).unwrap();
            let (least, most) = measured.iter().map(speed)
                .fold((f64::MAX, 0.0f64), |(low, high), s| (low.min(s), high.max(s)));
            prop_assert!(least * 0.999 <= average && average <= most * 1.001);
        }
    }
}
