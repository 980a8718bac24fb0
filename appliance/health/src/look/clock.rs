//! Whether somebody tells the machine the time, and whether its clock jumped.

use std::path::Path;

use crate::seen::Clock;

/// Two clocks read at one moment: that on the wall, and one that only ever goes on (also while the machine sleeps).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    /// Unix seconds.
    pub(crate) wall: i64,
    /// Seconds since the machine started.
    pub(crate) up: f64,
}

impl Reading {
    pub(crate) fn now() -> Self {
        let now = |clock| rustix::time::clock_gettime(clock);
        let (wall, up) =
            (now(rustix::time::ClockId::Realtime), now(rustix::time::ClockId::Boottime));
        Self { wall: wall.tv_sec, up: up.tv_sec as f64 + up.tv_nsec as f64 / 1e9 }
    }

    /// Seconds by which the clock on the wall went on more (or, below zero, less) than time did since `before`.
    pub(crate) fn jump_since(&self, before: &Self) -> i64 {
        let passed = (self.up - before.up).clamp(0.0, 1e12) as i64;
        self.wall.saturating_sub(before.wall).saturating_sub(passed)
    }
}

/// What is known of the clock, from look to look.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    before: Option<Reading>,
    known: Clock,
}

/// Less is no jump, but how clocks are put right.
const A_JUMP: i64 = 2;

impl Watch {
    pub(crate) fn look(&mut self, reading: Reading, synchronised: Option<bool>) -> Clock {
        let jumped = self.before.map_or(0, |before| reading.jump_since(&before));
        if jumped.abs() > A_JUMP {
            let largest = self.known.jumped.is_none_or(|known| known.abs() <= jumped.abs());
            let old = self.known.jumped_at.is_none_or(|at| (reading.wall - at).abs() > 3600);
            if largest || old {
                (self.known.jumped, self.known.jumped_at) = (Some(jumped), Some(reading.wall));
            }
        }
        self.known.synchronised = synchronised;
        self.known.unsynchronised_since = match synchronised {
            // The time before a jump says nothing about how long it is.
            Some(false) => self
                .known
                .unsynchronised_since
                .map(|since| since.saturating_add(jumped))
                .or(Some(reading.wall)),
            _ => None,
        };
        self.before = Some(reading);
        self.known.clone()
    }
}

/// Where systemd's own keeper of the time leaves how it is, for parts that may not speak with systemd.
pub(crate) const TIMESYNCD: &str = "/run/systemd/timesync";

/// From systemd-timesyncd's folder, where that runs: once somebody told the time there is a file in it.
pub(crate) fn timesyncd(folder: &Path) -> Option<bool> {
    folder.is_dir().then(|| folder.join("synchronized").exists())
}

/// From `timedatectl show`.
pub(crate) fn timedatectl(shown: &str) -> Option<bool> {
    let line = shown.lines().find_map(|line| line.strip_prefix("NTPSynchronized="))?;
    match line.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// From `chronyc -c -n tracking`: the last of its fourteen fields is the leap status.
pub(crate) fn chronyc(tracking: &str) -> Option<bool> {
    let fields: Vec<&str> = tracking.trim().split(',').collect();
    (fields.len() == 14).then(|| fields[13] != "Not synchronised")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chronyc_and_timedatectl_print_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(timesyncd(&folder.path().join("timesync")), None);
        assert_eq!(timesyncd(folder.path()), Some(false));
        std::fs::write(folder.path().join("synchronized"), []).unwrap();
        assert_eq!(timesyncd(folder.path()), Some(true));
        // chrony 4.3, with a clock of its own and with nobody to ask.
        let alone = "7F7F0101,,10,1795724077.519306565,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,0.000000000,0.000000000,0.0,Normal\n";
        let nobody = "00000000,,0,0.000000000,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,1.000000000,1.000000000,0.0,Not synchronised\n";
        assert_eq!((chronyc(alone), chronyc(nobody)), (Some(true), Some(false)));
        assert_eq!(chronyc("506 Cannot talk to daemon"), None);
        let shown = "Timezone=Etc/UTC\nLocalRTC=no\nCanNTP=yes\nNTP=yes\nNTPSynchronized=no\nTimeUSec=Thu 2026-11-26 20:07:00 UTC\n";
        assert_eq!(timedatectl(shown), Some(false));
        assert_eq!(timedatectl(&shown.replace("ized=no", "ized=yes")), Some(true));
        assert_eq!(timedatectl("System has not been booted with systemd"), None);
    }

    #[test]
    fn a_jump_is_what_the_wall_went_on_more_than_time_did() {
        let mut watch = Watch::default();
        let at = |wall, up| Reading { wall, up };
        assert_eq!(watch.look(at(1000, 10.0), Some(true)).jumped, None);
        assert_eq!(watch.look(at(1060, 70.4), Some(true)).jumped, None);
        let clock = watch.look(at(8320, 130.0), Some(true));
        assert_eq!((clock.jumped, clock.jumped_at), (Some(7201), Some(8320)));
        // Its being put right by a second does not hide it.
        assert_eq!(watch.look(at(8380, 190.0), Some(true)).jumped, Some(7201));
    }

    #[test]
    fn how_long_nobody_told_the_time_is_counted_without_the_jump() {
        let mut watch = Watch::default();
        watch.look(Reading { wall: 1000, up: 0.0 }, Some(false));
        let clock = watch.look(Reading { wall: 100_000, up: 60.0 }, Some(false));
        assert_eq!(clock.unsynchronised_since, Some(100_000 - 60));
        assert_eq!(
            watch.look(Reading { wall: 100_060, up: 120.0 }, Some(true)).unsynchronised_since,
            None
        );
    }
}
