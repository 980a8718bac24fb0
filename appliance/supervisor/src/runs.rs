use std::io;
use std::path::{Path, PathBuf};

use polder_control::{Actor, BackupWish, ImportSource, Run, RunId, TakeoverWish, UpdateWish};
use polder_site::{RecipeName, Site, SiteChange, write_durably};
use serde::{Deserialize, Serialize};

/// Ended runs that are remembered.
const REMEMBERED: usize = 20;
/// A run that was cut off this often is not taken up again: perhaps it is what cuts it off.
const MOST_RESUMPTIONS: u32 = 3;

/// What somebody asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Intent {
    Change(SiteChange),
    Import { recipe: RecipeName, from: ImportSource },
    Update(UpdateWish),
    Backup(BackupWish),
    Takeover(TakeoverWish),
}

/// A run that is not over, as it is kept over a crash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) id: RunId,
    pub(crate) intent: Intent,
    pub(crate) by: Actor,
    /// The site as it was when the run was let in, to go back to; none in ledgers of old.
    #[serde(default)]
    pub(crate) before: Option<Site>,
    resumed: u32,
}

/// Every run's number, the runs that are not over, and the last ones that are: `STATE/runs.json`.
/// What a power cut interrupts is taken up again under its own number.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    page: Page,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Page {
    last: u64,
    open: Vec<Open>,
    /// Newest first.
    ended: Vec<Run>,
}

impl Ledger {
    /// Reads the ledger of this state folder. One that cannot be understood is put aside: it holds
    /// nothing that a steward could not ask for again.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("runs.json");
        let page = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Page::default(),
            Err(e) => return Err(e),
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(page) => page,
                Err(error) => {
                    let aside = state.join("runs.unreadable.json");
                    log::error!(
                        "{}: {error}; it was put aside as {}",
                        path.display(),
                        aside.display()
                    );
                    std::fs::rename(&path, aside)?;
                    // Numbers must not be used twice: pages may still ask for an old one.
                    Page { last: seconds_now(), ..Page::default() }
                }
            },
        };
        Ok(Self { path, page })
    }

    /// Runs that ended, newest first.
    pub(crate) fn ended(&self) -> &[Run] {
        &self.page.ended
    }

    /// Who asked for a run that is not over.
    pub(crate) fn who(&self, id: RunId) -> Option<Actor> {
        self.page.open.iter().find(|open| open.id == id).map(|open| open.by.clone())
    }

    /// A new run; durable when this returns.
    pub(crate) fn begin(&mut self, intent: Intent, by: Actor, before: Site) -> io::Result<RunId> {
        self.change(|page| {
            page.last += 1;
            let id = RunId(page.last);
            page.open.push(Open { id, intent, by, before: Some(before), resumed: 0 });
            id
        })
    }

    /// A run that needed nothing.
    pub(crate) fn record(&mut self, run: impl FnOnce(RunId) -> Run) -> io::Result<Run> {
        self.change(|page| {
            page.last += 1;
            let run = run(RunId(page.last));
            page.ended.insert(0, run.clone());
            page.ended.truncate(REMEMBERED);
            run
        })
    }

    /// A run that waited goes on with the site as it is by now, which it goes back to if it fails.
    pub(crate) fn rebase(&mut self, id: RunId, before: &Site) -> io::Result<()> {
        self.change(|page| {
            page.open
                .iter_mut()
                .filter(|open| open.id == id)
                .for_each(|open| open.before = Some(before.clone()));
        })
    }

    /// A run is over.
    pub(crate) fn end(&mut self, run: Run) -> io::Result<()> {
        self.change(|page| {
            page.open.retain(|open| open.id != run.id);
            page.ended.insert(0, run);
            page.ended.truncate(REMEMBERED);
        })
    }

    /// Runs that were cut off by the end of the last supervisor, oldest first: those to take up
    /// again, and those that were cut off too often.
    pub(crate) fn cut_off(&mut self) -> io::Result<(Vec<Open>, Vec<Open>)> {
        if self.page.open.is_empty() {
            return Ok(Default::default());
        }
        self.change(|page| {
            page.open.iter_mut().for_each(|open| open.resumed += 1);
            page.open.iter().cloned().partition(|open| open.resumed <= MOST_RESUMPTIONS)
        })
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Page) -> T) -> io::Result<T> {
        let mut next = self.page.clone();
        let outcome = change(&mut next);
        let text = serde_json::to_vec_pretty(&next).expect("runs have only text and numbers");
        write_durably(&self.path, &text)?;
        self.page = next;
        Ok(outcome)
    }
}

fn seconds_now() -> u64 {
    jiff::Timestamp::now().as_second().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use polder_control::{Plan, RunState};

    use super::*;

    fn import(name: &str) -> Intent {
        Intent::Import { recipe: name.parse().unwrap(), from: ImportSource::Recipe }
    }

    fn done(id: RunId) -> Run {
        let plan = Plan { title: "t".into(), steps: Vec::new() };
        Run { id, plan, steps: Vec::new(), state: RunState::Done }
    }

    #[test]
    fn a_run_that_was_cut_off_is_taken_up_three_times_and_then_no_more() {
        let state = tempfile::tempdir().unwrap();
        let before = Site::unclaimed(7);
        let mut ledger = Ledger::open(state.path()).unwrap();
        let id = ledger.begin(import("a"), Actor::Console, before.clone()).unwrap();
        for _ in 0..MOST_RESUMPTIONS {
            let (again, never) = Ledger::open(state.path()).unwrap().cut_off().unwrap();
            assert_eq!((again.len(), never.len()), (1, 0));
            assert_eq!((again[0].id, &again[0].intent), (id, &import("a")));
            assert_eq!(again[0].before.as_ref(), Some(&before));
        }
        let mut ledger = Ledger::open(state.path()).unwrap();
        let (again, never) = ledger.cut_off().unwrap();
        assert_eq!((again.len(), never.len()), (0, 1));
        ledger.end(done(id)).unwrap();
        assert_eq!(Ledger::open(state.path()).unwrap().cut_off().unwrap(), Default::default());
    }

    #[test]
    fn numbers_are_never_used_twice_not_even_when_the_file_is_spoilt() {
        let state = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(state.path()).unwrap();
        let first = ledger.begin(import("a"), Actor::Console, Site::unclaimed(7)).unwrap();
        ledger.end(done(first)).unwrap();
        let second = Ledger::open(state.path()).unwrap().record(done).unwrap().id;
        assert!(second > first);
        std::fs::write(state.path().join("runs.json"), "{half").unwrap();
        let mut ledger = Ledger::open(state.path()).unwrap();
        let third = ledger.begin(import("a"), Actor::Console, Site::unclaimed(7)).unwrap();
        assert!(third > second);
    }

    #[test]
    fn only_the_last_runs_are_remembered() {
        let state = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(state.path()).unwrap();
        for _ in 0..REMEMBERED + 5 {
            ledger.record(done).unwrap();
        }
        let ids: Vec<u64> = ledger.ended().iter().map(|run| run.id.0).collect();
        assert_eq!(ids.len(), REMEMBERED);
        assert!(ids.is_sorted_by(|a, b| a > b));
    }
}
