//! What is remembered from look to look and over restarts: `STATE/health/memory.json`. Everything in it is bounded.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use polder_control::{Channel, StewardContact};
use polder_site::write_durably;
use serde::{Deserialize, Serialize};

use crate::alerts::Told;
use crate::checks::{DAY, HOUR};
use crate::ledger::Ledger;

/// Room is noted this often, for this long.
const NOTED: i64 = HOUR;
const SPACE_FOR: i64 = 14 * DAY;
/// One file of a model is read this often.
const SPOT: i64 = HOUR;
/// Between two looks no more time than this counts: whoever starts with a clock of years ago and is told the time has lived no years in between.
const AWAY: i64 = DAY;

/// Everything that is remembered. Unknown fields are left out, not refused: an older version must be able to go on from what a
/// newer one wrote.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// What is and was wrong.
    pub ledger: Ledger,
    /// Room on the disk: Unix seconds and free bytes, oldest first.
    pub space: Vec<(i64, u64)>,
    /// The file of a model that was read last.
    pub spot: String,
    /// When that was, Unix seconds.
    pub spot_at: i64,
    /// What was told, by channel.
    pub told: BTreeMap<Channel, Told>,
    /// Since when a collective lives with the box, Unix seconds.
    pub lived_in: Option<i64>,
    /// Since when there are backups and no drill, Unix seconds.
    pub unproved: Option<i64>,
    /// When the mains was last heard to be away, Unix seconds; nothing once it was heard to be there.
    pub mains_away: Option<i64>,
    /// When the box was looked at last, Unix seconds.
    pub looked: Option<i64>,
    /// Whom to tell, as the door said last: when somebody has to be told, it may not answer.
    pub stewards: Vec<StewardContact>,
}

impl Remembered {
    /// From the state folder. A file that cannot be read costs the box its history, not its health.
    pub fn read(state: &Path) -> Self {
        let path = path(state);
        match std::fs::read(&path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(remembered)) => remembered,
            Ok(Err(error)) => {
                log::warn!("{} cannot be read and is begun anew: {error}", path.display());
                Self::default()
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("{} cannot be read: {error}", path.display());
                }
                Self::default()
            }
        }
    }

    /// Into the state folder, whole or not at all.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        private_folder(state)?;
        write_durably(&path(state), &text)
    }

    /// Room is noted once an hour; what a clock that was wrong noted in the future is forgotten.
    pub(crate) fn note_space(&mut self, now: i64, free: u64) {
        self.space.retain(|(at, _)| (0..SPACE_FOR).contains(&now.saturating_sub(*at)));
        if self.space.last().is_none_or(|(at, _)| now.saturating_sub(*at) >= NOTED) {
            self.space.push((now, free));
        }
    }

    /// A look at this moment. What was counted from a clock that jumped meanwhile, or while the box was off for long, goes on from as old as it was.
    pub(crate) fn looks(&mut self, now: i64) {
        let passed = self.looked.replace(now).map_or(0, |before| now.saturating_sub(before));
        if (0..=AWAY).contains(&passed) {
            return;
        }
        for since in [&mut self.lived_in, &mut self.unproved, &mut self.mains_away] {
            *since = since.map(|since| since.saturating_add(passed));
        }
    }

    /// Since when something holds; what is not known leaves it as it was, and a clock that was wrong does not date it into the future.
    pub(crate) fn since(since: &mut Option<i64>, holds: Option<bool>, now: i64) -> Option<i64> {
        match holds {
            None => {}
            Some(false) => *since = None,
            Some(true) => *since = Some(since.map_or(now, |since| since.min(now))),
        }
        *since
    }

    pub(crate) fn spot_check_is_due(&self, now: i64) -> bool {
        !(0..SPOT).contains(&now.saturating_sub(self.spot_at))
    }

    pub(crate) fn spot_checked(&mut self, now: i64, mark: Option<String>) {
        self.spot_at = now;
        self.spot = mark.unwrap_or_default();
    }
}

/// `STATE/health/`, for its owner only.
pub(crate) fn private_folder(state: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = state.join("health");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Ok(folder)
}

fn path(state: &Path) -> PathBuf {
    state.join("health").join("memory.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_survives_a_restart_and_garbage_does_not_stop_the_box() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Remembered::read(state.path()), Remembered::default());
        let mut remembered = Remembered { spot: "tiny/a.bin".into(), ..Remembered::default() };
        remembered.note_space(1000, 7);
        remembered.write(state.path()).unwrap();
        assert_eq!(Remembered::read(state.path()), remembered);
        std::fs::write(path(state.path()), "{").unwrap();
        assert_eq!(Remembered::read(state.path()), Remembered::default());
        // From a newer version.
        std::fs::write(path(state.path()), r#"{"lamps": 3, "spot_at": 5}"#).unwrap();
        assert_eq!(Remembered::read(state.path()).spot_at, 5);
    }

    #[test]
    fn a_clock_that_is_told_the_time_makes_nothing_older_than_it_is() {
        const THEN: i64 = 1_577_836_800;
        let mut remembered = Remembered::default();
        let mut age = |now: i64| {
            remembered.looks(now);
            now - Remembered::since(&mut remembered.lived_in, Some(true), now).unwrap()
        };
        // The first day of a box without a battery for its clock: it believes that it is 2020.
        assert_eq!((age(THEN), age(THEN + 60)), (0, 60));
        // Six years later, a minute later.
        let told = THEN + 6 * 365 * DAY;
        assert_eq!((age(told), age(told + 60)), (60, 120));
        // A night without power counts, and so does a clock that is put right by a little.
        assert_eq!(age(told + 60 + DAY / 2), 120 + DAY / 2);
        // Years back again, after a power cut: it is as old as it was.
        assert_eq!((age(THEN), age(THEN + 60)), (120 + DAY / 2, 180 + DAY / 2));
    }

    #[test]
    fn a_year_of_looks_leaves_two_weeks_of_hours() {
        let mut remembered = Remembered::default();
        for minute in 0..(365 * 24 * 60) {
            remembered.note_space(minute * 60, 1);
        }
        assert!(remembered.space.len() <= 14 * 24 + 1, "{}", remembered.space.len());
        // The clock was a year ahead, and is put right.
        remembered.note_space(1000, 1);
        assert_eq!(remembered.space, [(1000, 1)]);
        assert!(Remembered { spot_at: 1 << 40, ..Remembered::default() }.spot_check_is_due(0));
    }
}
