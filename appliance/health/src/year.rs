//! A year of looks at a box that is well, and one at a box where something goes wrong every few days: with the real checks, ledger,
//! letters and memory.

use polder_control::{
    BackupSeen, BatterySeen, Channel, PartState, Severity, UplinkState, UplinkStatus,
};

use crate::alerts::Told;
use crate::checks::{self, DAY, HOUR, MINUTE};
use crate::memory::Remembered;
use crate::seen::{Certificate, Clock, HostMemory, PartSeen, Seen, Space};

/// 2028-01-01, a leap year.
const BEGIN: i64 = 1_830_297_600;
/// Not every minute as on a box: nothing here is shorter.
const EVERY: i64 = 15 * MINUTE;
const LOOKS: i64 = 366 * DAY / EVERY;
const DISK: u64 = 2000 << 30;

/// A box at this moment, whose parts do what they should: backups every hour, drills every week, certificates renewed at two
/// thirds of their lives, a model brought in each month and the old one removed a week later.
fn well(now: i64) -> Seen {
    let passed = now - BEGIN;
    let certificate = |on: &str, life: i64| {
        let from = now - passed % (life / 3 * 2);
        Certificate { on: on.into(), authority: false, from, until: from + life }
    };
    let authority = Certificate {
        on: "the box's own authority".into(),
        authority: true,
        from: BEGIN,
        until: BEGIN + 3650 * DAY,
    };
    let part = |on: &str| PartSeen {
        on: on.into(),
        engine: None,
        other: None,
        state: PartState::Ready,
        restarts: u32::from(passed % (40 * DAY) < HOUR),
    };
    let uplink = |name: &str, in_use: bool| UplinkStatus {
        name: name.parse().unwrap(),
        interface: name.parse().unwrap(),
        metered: !in_use,
        in_use,
        state: UplinkState::Good,
        for_seconds: passed.unsigned_abs(),
        loss_percent: 0,
        delay_ms: Some(12),
        lost_lately: 0,
        addresses: Vec::new(),
        silent_targets: Vec::new(),
        port: None,
        dead: None,
        stands_in: None,
    };
    let both = if passed % (30 * DAY) < 7 * DAY { 2 } else { 1 };
    Seen {
        now,
        kernel: Some(Vec::new()),
        space: Some(Space {
            free: DISK - ((both * 80) << 30) - passed.unsigned_abs() * 300,
            total: DISK,
            before: Vec::new(),
        }),
        memory: Some(HostMemory { total: 64 << 30, available: 20 << 30 }),
        clock: Clock { synchronised: Some(true), ..Clock::default() },
        certificates: Some(vec![
            certificate("oak.local", 90 * DAY),
            certificate("gpu.example.org", 47 * DAY),
            certificate("short.example.org", 6 * DAY),
            authority,
        ]),
        parts: Some(vec![part("the door"), part("the model fast")]),
        uplinks: vec![uplink("fibre", true), uplink("5g", false)],
        battery: Some(BatterySeen {
            on_mains: Some(true),
            charge: Some(100),
            installed: Some(BEGIN - 365 * DAY),
            tested: Some(now - passed % (30 * DAY)),
            ..BatterySeen::default()
        }),
        backup: Some(BackupSeen {
            to: Some("the disk in the shed".into()),
            last: Some(now - passed % HOUR),
            drill: Some(now - passed % (7 * DAY)),
            ..BackupSeen::default()
        }),
        ..Seen::default()
    }
}

fn lose(uplink: &mut UplinkStatus, since: i64) {
    (uplink.state, uplink.for_seconds) = (UplinkState::Silent, since.unsigned_abs());
}

/// What a year leaves: letters, issues that ended, and bytes of the memory on disk at each quarter.
struct Year {
    letters: usize,
    issues: usize,
    bytes: Vec<u64>,
    remembered: Remembered,
}

fn year(change: impl Fn(&mut Seen)) -> Year {
    let state = tempfile::tempdir().unwrap();
    let mut remembered = Remembered::default();
    let (mut letters, mut issues, mut bytes) = (0, 0, Vec::new());
    for look in 0..LOOKS {
        let mut seen = well(BEGIN + look * EVERY);
        if let Some(space) = &mut seen.space {
            remembered.note_space(seen.now, space.free);
            // As on a box: nobody looks at the forecast more often than room is noted.
            if look % 4 == 0 {
                space.before.clone_from(&remembered.space);
            }
        }
        change(&mut seen);
        remembered.ledger.take(seen.now, checks::all(&seen), &[]);
        issues = issues.max(remembered.ledger.standing.len());
        let told = remembered.told.entry(Channel::Mail).or_default();
        if let Some(letter) = told.due(&remembered.ledger.standing, Severity::Warning, seen.now) {
            letters += 1;
            told.sent(&letter, seen.now);
        }
        if look % (LOOKS / 12) == LOOKS / 12 - 1 {
            remembered.write(state.path()).unwrap();
            let file = state.path().join("health/memory.json");
            bytes.push(std::fs::metadata(file).unwrap().len());
            remembered = Remembered::read(state.path());
        }
    }
    let files = std::fs::read_dir(state.path().join("health")).unwrap().count();
    assert_eq!(files, 1, "something else was left");
    Year { letters, issues, bytes, remembered }
}

#[test]
fn a_year_of_a_box_that_is_well_brings_no_letter_and_no_growth() {
    let year = year(|_| {});
    assert_eq!((year.letters, year.issues), (0, 0), "{:?}", year.remembered.ledger.past);
    assert!(year.remembered.ledger.past.is_empty(), "{:?}", year.remembered.ledger.past);
    let (first, last) = (year.bytes[0], year.bytes[year.bytes.len() - 1]);
    assert!(last <= first + first / 10, "{:?}", year.bytes);
}

#[test]
fn a_year_of_troubles_is_told_each_once_with_its_end_and_does_not_grow() {
    let troubled = year(|seen| {
        let passed = seen.now - BEGIN;
        // The fibre is cut for two hours every ninth day, the disk for backups is away for two days every month, the clock is
        // an hour off once a quarter.
        let cut = passed % (9 * DAY);
        if (DAY..DAY + 2 * HOUR).contains(&cut) {
            lose(&mut seen.uplinks[0], cut - DAY);
        }
        let away = passed % (30 * DAY);
        if (10 * DAY..12 * DAY).contains(&away)
            && let Some(backup) = &mut seen.backup
        {
            backup.last = Some(seen.now - (away - 10 * DAY));
            backup.failed = Some("the disk is not there".into());
        }
        if (45 * DAY..45 * DAY + 2 * HOUR).contains(&(passed % (90 * DAY))) {
            let clock = &mut seen.clock;
            (clock.jumped, clock.jumped_at) = (Some(3600), Some(seen.now - passed % HOUR));
        }
    });
    // 41 cuts, 12 times without a disk, 4 clocks; each one begins and ends.
    let times = 41 + 12 + 4;
    assert!((times..=2 * times).contains(&troubled.letters), "{}", troubled.letters);
    let half: Vec<u64> = troubled.bytes[6..].to_vec();
    let (least, most) = (half.iter().min().unwrap(), half.iter().max().unwrap());
    assert!(most - least < least / 4, "{:?}", troubled.bytes);
    // What ended more than half a year ago is forgotten.
    let past = &troubled.remembered.ledger.past;
    assert!((20..=40).contains(&past.len()), "{}", past.len());
    assert!(troubled.remembered.ledger.standing.is_empty());
}

/// The daily letter about something urgent goes on for as long as it stands, and is one a day.
#[test]
fn a_full_year_without_anybody_who_looks_brings_one_letter_a_day() {
    let alone = year(|seen| {
        seen.certificates = None;
        for uplink in &mut seen.uplinks {
            lose(uplink, seen.now - BEGIN);
        }
    });
    assert!((366..=370).contains(&alone.letters), "{}", alone.letters);
    let told: &Told = &alone.remembered.told[&Channel::Mail];
    assert!(told.worked.is_some());
}
