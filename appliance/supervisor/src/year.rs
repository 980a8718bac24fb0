//! A year of what the supervisor alone writes: the audit trail, the ledger of runs, the site and its history; with a power cut and a
//! restart every month.

use polder_control::{Actor, BackupWish, Plan, Run, RunId, RunState};
use polder_site::{BoxName, Site, Store};

use crate::audit::{self, Trail, Verdict};
use crate::runs::{Intent, Ledger};

/// What people do in a year, and what the box itself tells: a few entries a day.
const ENTRIES_A_DAY: u64 = 3;

fn size(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |about| about.len())
}

#[test]
fn a_year_leaves_a_trail_that_is_whole_runs_that_are_few_and_every_version_of_the_site() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    let store = Store::open(state).unwrap();
    let mut site = Site::unclaimed(8443);
    store.write(&site, "first start").unwrap();
    let (mut trail, _) = Trail::open(state).unwrap();
    let mut ledger = Ledger::open(state).unwrap();
    let mut head = trail.head();
    let mut largest = 0;
    for day in 0..366_u64 {
        for n in 0..ENTRIES_A_DAY {
            let by = if n == 0 { Actor::Itself } else { Actor::Member("Ada".to_owned()) };
            trail.append(by, "made key", &format!("laptop {day}.{n} (plk_{n}…)")).unwrap();
        }
        let intent = Intent::Backup(BackupWish::Drill);
        let id = ledger.begin(intent, Actor::Console, site.clone()).unwrap();
        // One in thirty is cut off by the power.
        if day % 30 != 29 {
            ledger.end(done(id)).unwrap();
        }
        if day % 7 == 0 {
            site.name = format!("oak{day}").parse::<BoxName>().unwrap();
            store.write(&site, "renamed").unwrap();
        }
        largest = largest.max(size(&state.join("runs.json")));
        if day % 30 == 29 {
            let (again, verdict) = Trail::open(state).unwrap();
            assert_eq!(verdict, Verdict::Whole, "{day}");
            assert_eq!(audit::verify(state, Some(&head)).unwrap().1, Verdict::Whole);
            (trail, head) = (again, trail.head());
            ledger = Ledger::open(state).unwrap();
            let (resumed, given_up) = ledger.cut_off().unwrap();
            assert_eq!((resumed.len(), given_up.len()), (1, 0), "{day}");
            ledger.end(done(id)).unwrap();
        }
    }
    assert_eq!(trail.head().number, 366 * ENTRIES_A_DAY);
    assert_eq!(ledger.ended()[0].id, RunId(366));
    assert!(largest < 40 << 10, "{largest}");
    let trail = size(&state.join("audit/trail.jsonl"));
    assert!(trail < 366 * ENTRIES_A_DAY * 300, "{trail}");
    assert_eq!(store.versions().unwrap().len(), 1 + 53);
    assert_eq!(Store::open(state).unwrap().current().unwrap(), Some(site));
    let mut left: Vec<String> = std::fs::read_dir(state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["HISTORY", "audit", "runs.json", "site.toml"]);
}

fn done(id: RunId) -> Run {
    let plan = Plan { title: "a trial restore".to_owned(), steps: Vec::new() };
    Run { id, plan, steps: Vec::new(), state: RunState::Done }
}
