use std::time::Duration;

/// When an uplink counts as gone, poor, or good again, and when the box goes back to the one it prefers.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Between two rounds of probes of an uplink that answers.
    pub interval: Duration,
    /// The same of a metered one that works and is not in use.
    pub spare_interval: Duration,
    /// A probe that is not answered within this time is lost. After a round without any answer the next one follows at once: so an
    /// uplink that dies right after a round is silent after one interval and three times this.
    pub patience: Duration,
    /// So many rounds without any answer, one after the other, and the uplink is silent.
    pub down_after: u32,
    /// So many rounds with an answer, one after the other, and it is not silent any more.
    pub up_after: u32,
    /// Rounds in which losses are counted.
    pub window: usize,
    /// At this many percent lost of the window the uplink is poor.
    pub fail_percent: u32,
    /// At an average delay above this it is poor too.
    pub fail_delay: Duration,
    /// Rounds since it became poor that must be this good to end that.
    pub recovery: usize,
    /// At most this many percent of them may be lost.
    pub recover_percent: u32,
    /// Their average delay may be at most this.
    pub recover_delay: Duration,
    /// A preferred uplink must have been good for this long before the box goes back to it while nobody uses the other.
    pub idle_hold: Duration,
    /// The same while somebody does.
    pub hold: Duration,
    /// Each time that it was lost within [`Self::memory`], after the first, doubles both, up to this.
    pub longest_hold: Duration,
    /// How long it is remembered that an uplink was lost.
    pub memory: Duration,
    /// Between two questions to a router whether it still passes callers on.
    pub port_check: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let (seconds, millis) = (Duration::from_secs, Duration::from_millis);
        Self {
            interval: seconds(1),
            spare_interval: seconds(5),
            patience: millis(750),
            down_after: 3,
            up_after: 5,
            window: 20,
            fail_percent: 20,
            fail_delay: millis(600),
            recovery: 60,
            recover_percent: 10,
            recover_delay: millis(300),
            idle_hold: seconds(15),
            hold: seconds(60),
            longest_hold: seconds(3600),
            memory: seconds(3600),
            port_check: seconds(60),
        }
    }
}

impl Policy {
    /// How long an uplink that was lost `flaps` times lately must have been good before the box goes back to it.
    pub fn hold_after(&self, flaps: usize, idle: bool) -> Duration {
        let base = if idle { self.idle_hold } else { self.hold };
        let doublings = u32::try_from(flaps.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        base.saturating_mul(1 << doublings).min(self.longest_hold)
    }
}
