use serde::{Deserialize, Serialize};

/// Backups of the box, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// A steward has typed the key back from paper: only then are backups made.
    pub kit: bool,
    /// Where they go; none where nobody has said.
    pub to: Option<String>,
    /// The last one.
    pub last: Option<LastBackup>,
    /// When the last try failed, in Unix seconds, and why; none after a good one.
    pub failed: Option<(i64, String)>,
    /// When the last drill was held, in Unix seconds, and what was found: well, or what is wrong.
    pub drill: Option<(i64, Result<String, String>)>,
    /// After a restore on another machine: what of the box's models did not fit it, one sentence each, until a steward has chosen others.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// USB disks that are plugged in.
    #[serde(default)]
    pub disks: Vec<PluggedDisk>,
}

/// A file system on a USB disk that is plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluggedDisk {
    /// How a place for backups on it is written; none where it has no file system.
    pub place: Option<String>,
    /// What its owner called it; may be empty.
    pub label: String,
    /// What its maker calls it.
    pub name: String,
    /// Its file system, as systems call it; empty where nobody knows it.
    pub kind: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are free, where it is mounted.
    pub free: Option<u64>,
    /// Why backups are not written to it, and what to do: one sentence.
    pub wrong: Option<String>,
}

impl PluggedDisk {
    /// What it is called, for people: by its owner, else by its maker.
    pub fn title(&self) -> &str {
        match (self.label.is_empty(), self.name.is_empty()) {
            (false, _) => &self.label,
            (true, false) => &self.name,
            (true, true) => "a disk without a name",
        }
    }
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBackup {
    /// Unix seconds.
    pub at: i64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that had to be sent.
    pub added: u64,
    /// Old ones were removed; false where the store lets nothing be removed.
    pub thinned: bool,
}

/// A backup is older than this only when something is wrong: seconds.
const LATE: i64 = 3 * 3600;
/// A drill too.
const DRILL_LATE: i64 = 8 * 24 * 3600;

impl BackupStatus {
    /// What a steward has to do something about, one sentence each. `now` is in Unix seconds.
    pub fn wrong(&self, now: i64) -> Vec<String> {
        let mut wrong = Vec::new();
        match (&self.to, self.kit) {
            (None, _) => wrong.push(
                "No backups are made: if this machine breaks, members, keys and names are lost"
                    .to_owned(),
            ),
            (Some(_), false) => wrong.push(
                "No backups are made until somebody has the emergency kit on paper".to_owned(),
            ),
            (Some(_), true) => {}
        }
        if self.to.is_none() || !self.kit {
            return wrong;
        }
        if let Some((_, why)) = &self.failed {
            wrong.push(format!("The last backup failed: {why}"));
        }
        if let Some(last) = &self.last
            && now.saturating_sub(last.at) > LATE
        {
            let hours = now.saturating_sub(last.at) / 3600;
            wrong.push(format!("The last good backup is {hours} hours old"));
        }
        match &self.drill {
            Some((_, Err(why))) => wrong.push(format!("The last trial restore found that {why}")),
            Some((at, Ok(_))) if now.saturating_sub(*at) > DRILL_LATE => {
                wrong.push("No backup was restored for a trial for more than a week".to_owned());
            }
            _ => {}
        }
        wrong
    }
}

/// What the box is to do about backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupWish {
    /// Make one.
    Now,
    /// Restore the newest for a trial, and say whether it is a whole box.
    Drill,
    /// Become the box of a backup.
    Restore {
        /// Where the backups are.
        from: polder_site::BackupPlace,
        /// Which; the newest without one.
        snapshot: Option<String>,
    },
}

/// A key of an emergency kit, as it was typed or is to be written down. Never written to a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KitWords(pub String);

impl std::fmt::Debug for KitWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KitWords(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steward_is_told_of_what_is_missing_failed_or_old_and_of_nothing_else() {
        let now = 1_000_000;
        let mut status = BackupStatus::default();
        assert!(status.wrong(now)[0].starts_with("No backups are made"));
        status.to = Some("/mnt/usb".to_owned());
        assert!(status.wrong(now)[0].contains("on paper"));
        status.kit = true;
        assert_eq!(status.wrong(now), Vec::<String>::new());
        status.last = Some(LastBackup { at: now - LATE, bytes: 1, added: 1, thinned: true });
        status.drill = Some((now - 60, Ok("well".to_owned())));
        assert_eq!(status.wrong(now), Vec::<String>::new());
        status.last.as_mut().unwrap().at -= 3600;
        status.failed = Some((now, "the disk is full".to_owned()));
        status.drill = Some((now, Err("it has no site.toml".to_owned())));
        let wrong = status.wrong(now).join("\n");
        assert!(wrong.contains("disk is full") && wrong.contains("4 hours old"), "{wrong}");
        assert!(wrong.contains("no site.toml"), "{wrong}");
        assert!(!format!("{:?}", KitWords("cbde-fghi".to_owned())).contains("cbde"));
    }
}
