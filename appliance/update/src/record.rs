//! What was tried, on which boots, and what came of it: `STATE/update/record.json`. It outlives both slots, so that
//! whichever of them runs can tell why.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polder_site::write_durably;
use serde::{Deserialize, Serialize};

use crate::{Manifest, Slots, UpdateError, Version};

/// Ended attempts that are remembered.
const MOST_PAST: usize = 20;
/// Boots of one attempt that are remembered.
const MOST_BOOTS: usize = 20;

/// Everything that is known of this box's updates. Unknown fields are left out, not refused: an older version
/// must be able to read what a newer one wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The newest version that was ever kept.
    pub highest: Option<Version>,
    /// What was found last.
    pub offer: Option<Offer>,
    /// What is being tried.
    pub attempt: Option<Attempt>,
    /// What was tried before, newest first.
    pub past: Vec<Attempt>,
    /// When it was last looked where the site says, Unix seconds, and somebody answered.
    pub looked: Option<i64>,
    /// Since when nobody does, Unix seconds, and what came of the last try.
    pub unlooked: Option<(i64, String)>,
    /// When that was last tried, Unix seconds.
    pub unlooked_at: Option<i64>,
    /// Where.
    pub unlooked_from: Option<String>,
}

/// Between two tries no more seconds than this count as time in which nobody could look: a clock of years ago that is put right makes no years of them.
const MOST_UNLOOKED: i64 = 2 * 24 * 3600;

impl Record {
    /// Somebody looked there, at this moment in Unix seconds; `why` says what came of it where nobody answered. Another place than before
    /// begins anew.
    pub fn looked_at(&mut self, from: &str, now: i64, why: Option<String>) {
        let Some(why) = why else {
            self.looked = Some(now);
            (self.unlooked, self.unlooked_at, self.unlooked_from) = (None, None, None);
            return;
        };
        let same = self.unlooked_from.as_deref() == Some(from);
        let before = self.unlooked_for(from).filter(|_| same).map_or(0, |(seconds, _)| seconds);
        let passed = self.unlooked_at.filter(|_| same).map_or(0, |at| now.saturating_sub(at));
        let since = now - before - passed.clamp(0, MOST_UNLOOKED);
        self.unlooked = Some((since, why));
        (self.unlooked_at, self.unlooked_from) = (Some(now), Some(from.to_owned()));
    }

    /// For how many seconds nobody could look there, by the last try, and what came of that.
    pub fn unlooked_for(&self, from: &str) -> Option<(i64, String)> {
        let (since, why) = self.unlooked.as_ref()?;
        let at = self.unlooked_at.filter(|_| self.unlooked_from.as_deref() == Some(from))?;
        Some((at.saturating_sub(*since).max(0), why.clone()))
    }
}

/// An update that was found, signed and fit for this box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What it is.
    pub manifest: Manifest,
    /// Where it was found: an address or a folder.
    pub from: String,
    /// When, RFC 3339.
    pub at: String,
}

/// A change from one version to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What ran before.
    pub from: Version,
    /// What was to run.
    pub to: Version,
    /// Who said so.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
    /// What the box could do just before.
    pub before: Able,
    /// Starts of the new version that came as far as its supervisor.
    #[serde(default)]
    pub boots: Vec<Boot>,
    /// What came of it; none yet while it is tried.
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

/// What a box can do, seen from its own door.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Able {
    /// Its door answers.
    pub door: bool,
    /// Models that answered a question asked through that door.
    pub answering: Vec<String>,
    /// Those that did not, each with why.
    #[serde(default)]
    pub silent: Vec<(String, String)>,
}

/// One start of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The kernel's name for it.
    pub id: String,
    /// When its supervisor began, RFC 3339.
    pub at: String,
    /// What was found wrong, if it was judged.
    #[serde(default)]
    pub wrong: Option<String>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new version is no worse and stays.
    Kept {
        /// When.
        at: String,
    },
    /// The old version runs again.
    TakenBack {
        /// When that was seen.
        at: String,
        /// How often the boot loader had started the new one, where its count is still there.
        starts: Option<u32>,
    },
    /// A steward went back.
    Left {
        /// Who.
        by: String,
        /// When.
        at: String,
    },
}

/// The start that is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The kernel's name for it.
    pub id: String,
    /// Now, RFC 3339.
    pub at: String,
}

/// Where updates are kept in a state folder.
pub fn folder(state: &Path) -> PathBuf {
    state.join("update")
}

impl Record {
    /// What is written in this state folder. A record that cannot be read is put aside: it is a memory, not a
    /// setting.
    pub fn load(state: &Path) -> Result<Self, UpdateError> {
        let path = path(state);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(UpdateError::file("read", &path))?,
        };
        match serde_json::from_slice(&text) {
            Ok(record) => Ok(record),
            Err(error) => {
                let aside = path.with_extension("unreadable.json");
                log::error!("{}: {error}; it was put aside as {}", path.display(), aside.display());
                fs::rename(&path, &aside).map_err(UpdateError::file("put aside", &path))?;
                Ok(Self::default())
            }
        }
    }

    /// On the disk when this returns.
    pub fn save(&self, state: &Path) -> Result<(), UpdateError> {
        let folder = folder(state);
        fs::create_dir_all(&folder).map_err(UpdateError::file("make", &folder))?;
        let text = serde_json::to_vec_pretty(self).expect("a record has only plain values");
        let path = path(state);
        write_durably(&path, &text).map_err(UpdateError::file("write", &path))
    }

    /// An attempt begins; what was tried before is over.
    pub fn begin(&mut self, attempt: Attempt) {
        self.end(None);
        self.attempt = Some(attempt);
    }

    /// A version started: notes the boot, and what follows from it for an attempt that is not over.
    pub fn started(&mut self, slots: &Slots, start: &Start) {
        let Some(attempt) = &mut self.attempt else {
            // A first image has nothing to prove, but nothing older is taken after it.
            self.highest.get_or_insert_with(|| slots.running.clone());
            return;
        };
        if slots.running == attempt.to {
            if attempt.boots.iter().all(|boot| boot.id != start.id)
                && attempt.boots.len() < MOST_BOOTS
            {
                let Start { id, at } = start.clone();
                attempt.boots.push(Boot { id, at, wrong: None });
            }
        } else if slots.running == attempt.from {
            let entry = slots.entries.iter().find(|entry| entry.version == attempt.to);
            // Still to come: written, and the machine not started anew since.
            if entry.is_some_and(crate::Entry::is_bootable) {
                return;
            }
            let starts = entry.and_then(|entry| entry.tries).map(|(_, done)| done);
            self.end(Some(Outcome::TakenBack { at: start.at.clone(), starts }));
        } else {
            self.end(Some(Outcome::TakenBack { at: start.at.clone(), starts: None }));
        }
    }

    /// The running version was judged: it stays, or says what is wrong.
    pub fn judged(&mut self, start: &Start, verdict: Result<(), String>) {
        let Some(attempt) = &mut self.attempt else { return };
        match verdict {
            Ok(()) => {
                self.highest = self.highest.take().max(Some(attempt.to.clone()));
                self.end(Some(Outcome::Kept { at: start.at.clone() }));
            }
            Err(why) => {
                if let Some(boot) = attempt.boots.iter_mut().find(|boot| boot.id == start.id) {
                    boot.wrong = Some(why);
                }
            }
        }
    }

    /// A steward went back from one version to another.
    pub fn left(&mut self, from: &Version, to: &Version, by: &str, at: &str) {
        let left = Outcome::Left { by: by.to_owned(), at: at.to_owned() };
        match self.past.iter_mut().find(|attempt| attempt.to == *from) {
            Some(attempt) => attempt.outcome = Some(left),
            None => self.past.insert(
                0,
                Attempt {
                    from: to.clone(),
                    to: from.clone(),
                    by: by.to_owned(),
                    at: at.to_owned(),
                    before: Able::default(),
                    boots: Vec::new(),
                    outcome: Some(left),
                },
            ),
        }
    }

    fn end(&mut self, outcome: Option<Outcome>) {
        if let Some(mut attempt) = self.attempt.take() {
            attempt.outcome = outcome;
            self.past.insert(0, attempt);
            self.past.truncate(MOST_PAST);
        }
    }
}

impl Able {
    /// Whether this is worse than `before`; one sentence for each thing that was there and is not. A box that
    /// could not answer before may still take its fix.
    pub fn worse_than(&self, before: &Able) -> Option<String> {
        if before.door && !self.door {
            return Some("its door did not open".to_owned());
        }
        let gone: Vec<String> = before
            .answering
            .iter()
            .filter(|model| !self.answering.contains(model))
            .map(|model| match self.silent.iter().find(|(silent, _)| silent == model) {
                Some((_, why)) => format!("{model} did not answer ({why})"),
                None => format!("{model} was not there any more"),
            })
            .collect();
        (!gone.is_empty()).then(|| gone.join("; "))
    }
}

fn path(state: &Path) -> PathBuf {
    folder(state).join("record.json")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::slots::tests::slots;

    pub(crate) fn start(id: &str) -> Start {
        Start { id: id.into(), at: format!("2026-11-26T10:00:0{id}Z") }
    }

    pub(crate) fn trying() -> Record {
        let mut record = Record::default();
        record.begin(Attempt {
            from: "0.1.0".parse().unwrap(),
            to: "0.2.0".parse().unwrap(),
            by: "Ada".into(),
            at: "2026-11-26T09:59:00Z".into(),
            before: Able { door: true, answering: vec!["fast".into()], silent: Vec::new() },
            boots: Vec::new(),
            outcome: None,
        });
        record
    }

    #[test]
    fn a_version_that_is_no_worse_is_kept_and_the_highest_from_then_on() {
        let mut record = trying();
        record.started(&slots("0.2.0", &["polder_0.1.0.efi", "polder_0.2.0+2-1.efi"]), &start("1"));
        record.judged(&start("1"), Ok(()));
        assert_eq!(record.attempt, None);
        assert!(matches!(record.past[0].outcome, Some(Outcome::Kept { .. })));
        assert_eq!(record.highest, Some("0.2.0".parse().unwrap()));
    }

    #[test]
    fn a_version_that_failed_each_time_is_taken_back_with_what_it_said() {
        let mut record = trying();
        for (id, file) in [("1", "polder_0.2.0+2-1.efi"), ("2", "polder_0.2.0+1-2.efi")] {
            record.started(&slots("0.2.0", &["polder_0.1.0.efi", file]), &start(id));
            // The supervisor of one boot may be started again.
            record.started(&slots("0.2.0", &["polder_0.1.0.efi", file]), &start(id));
            record.judged(&start(id), Err("fast did not answer".into()));
        }
        record.started(&slots("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+0-3.efi"]), &start("4"));
        let past = &record.past[0];
        assert_eq!(past.boots.len(), 2);
        assert!(past.boots.iter().all(|boot| boot.wrong.is_some()));
        assert!(matches!(past.outcome, Some(Outcome::TakenBack { starts: Some(3), .. })));
    }

    #[test]
    fn a_version_that_was_written_and_not_started_yet_is_still_to_come() {
        let mut record = trying();
        record.started(&slots("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+3.efi"]), &start("1"));
        assert!(record.attempt.is_some());
    }

    #[test]
    fn worse_is_what_was_there_and_is_not() {
        let before = Able { door: true, answering: vec!["a".into(), "b".into()], silent: vec![] };
        assert_eq!(before.worse_than(&before), None);
        let no_door = Able::default();
        assert_eq!(no_door.worse_than(&before).unwrap(), "its door did not open");
        let one = Able {
            door: true,
            answering: vec!["a".into()],
            silent: vec![("b".into(), "no memory".into())],
        };
        assert_eq!(one.worse_than(&before).unwrap(), "b did not answer (no memory)");
        // A box that could do nothing may take its fix.
        assert_eq!(no_door.worse_than(&no_door), None);
        assert_eq!(one.worse_than(&no_door), None);
    }

    #[test]
    fn going_back_is_remembered_with_who_did_it() {
        let mut record = trying();
        record.judged(&start("1"), Ok(()));
        record.left(&"0.2.0".parse().unwrap(), &"0.1.0".parse().unwrap(), "Ada", "now");
        assert!(matches!(&record.past[0].outcome, Some(Outcome::Left { by, .. }) if by == "Ada"));
        assert_eq!(record.past.len(), 1);
    }

    #[test]
    fn how_long_nobody_could_look_is_counted_by_tries_and_for_one_place() {
        const DAY: i64 = 24 * 3600;
        let mut record = Record::default();
        let why = || Some("no answer".to_owned());
        let long = |record: &Record, from: &str| record.unlooked_for(from).map(|(long, _)| long);
        record.looked_at("a", 1_577_836_800, why());
        assert_eq!(long(&record, "a"), Some(0));
        // It started with the clock of 2020, and was told the time before it tried again.
        let now = 1_800_000_000;
        record.looked_at("a", now, why());
        assert_eq!(long(&record, "a"), Some(MOST_UNLOOKED));
        record.looked_at("a", now + DAY, why());
        assert_eq!(long(&record, "a"), Some(MOST_UNLOOKED + DAY));
        // Back to 2020.
        record.looked_at("a", 1_577_836_800, why());
        assert_eq!(long(&record, "a"), Some(MOST_UNLOOKED + DAY));
        assert_eq!(long(&record, "b"), None);
        record.looked_at("b", now, why());
        assert_eq!((long(&record, "a"), long(&record, "b")), (None, Some(0)));
        record.looked_at("b", now + 1, None);
        assert_eq!((long(&record, "b"), record.looked), (None, Some(now + 1)));
        // As an older version wrote it: it does not say where.
        let old = Record { unlooked: Some((5, "no answer".into())), ..Record::default() };
        assert_eq!(long(&old, "a"), None);
    }

    #[test]
    fn a_record_of_another_version_is_read_and_a_broken_one_put_aside() {
        let state = tempfile::tempdir().unwrap();
        trying().save(state.path()).unwrap();
        let path = path(state.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen('{', "{\"of_the_future\": [1],", 1)).unwrap();
        assert_eq!(Record::load(state.path()).unwrap(), trying());
        fs::write(&path, "{").unwrap();
        assert_eq!(Record::load(state.path()).unwrap(), Record::default());
        assert!(path.with_extension("unreadable.json").exists());
    }
}
