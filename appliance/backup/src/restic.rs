use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use polder_control::Progress;
use polder_site::Retention;
use serde::Deserialize;

use crate::passage::Passage;
use crate::progress::{self, News};
use crate::record::Saved;
use crate::{BackupError, KitKey, Location};

/// Backups of ours, among others that may be in the same store, and of which format they are.
const TAG: &str = "polder";
const FORMAT_TAG: &str = "polder-format-";
/// How large it is: to ask the store costs a start of the program, which makes the key anew each time.
const BYTES_TAG: &str = "polder-bytes-";
/// Another program than the one in PATH.
const PROGRAM: &str = "POLDER_RESTIC";
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// More of its complaints than this is not read.
const COMPLAINTS: u64 = 64 << 10;

/// Stops from elsewhere what goes on.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Whether it was.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One backup in a store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    /// Its whole name.
    pub id: String,
    /// RFC 3339.
    pub time: String,
    /// The box that made it.
    pub hostname: String,
    /// What it is.
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// The one that it was made from, where there was one.
    #[serde(default)]
    pub parent: Option<String>,
}

impl Snapshot {
    /// When it was made, by the clock of the box that made it; none where that is no time.
    pub fn at(&self) -> Option<jiff::Timestamp> {
        self.time.parse().ok()
    }

    /// Bytes of all its files, where whoever made it has said so.
    fn bytes(&self) -> Option<u64> {
        let tags = self.tags.iter().flatten();
        tags.filter_map(|tag| tag.strip_prefix(BYTES_TAG)).next()?.parse().ok()
    }

    /// An error where it is of a format that this version does not know.
    pub fn readable(&self) -> Result<(), BackupError> {
        let tags = self.tags.iter().flatten();
        let format = tags.filter_map(|tag| tag.strip_prefix(FORMAT_TAG)).next().unwrap_or("1");
        match format.parse::<u32>() {
            Ok(known) if known <= crate::FORMAT => Ok(()),
            _ => Err(BackupError::Newer { found: format.chars().take(20).collect() }),
        }
    }
}

/// A store of backups in the restic format. One trait, so that something else than the `restic` program can stand behind it one day.
pub trait Repository: Send + Sync {
    /// Makes a store where there is none.
    fn make(&self) -> Result<(), BackupError>;
    /// Adds a backup of this folder, made by this box.
    fn save(
        &self,
        folder: &Path,
        host: &str,
        observer: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<Saved, BackupError>;
    /// Backups of ours, oldest first.
    fn snapshots(&self) -> Result<Vec<Snapshot>, BackupError>;
    /// Removes those that are not to be kept; false where the store lets nothing be removed.
    fn thin(&self, keep: &Retention, stop: &Stop) -> Result<bool, BackupError>;
    /// Bytes of all files of a backup.
    fn size(&self, snapshot: &Snapshot) -> Result<u64, BackupError>;
    /// Brings a backup into a folder that is empty or not there yet.
    fn fetch(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        observer: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<u64, BackupError>;
    /// The lines of a small file of a backup; none where it has no such file.
    fn lines(&self, snapshot: &Snapshot, file: &str) -> Result<Vec<String>, BackupError>;
    /// Reads that part of everything that is stored, in percent, and compares it with its digests.
    fn check(&self, percent: u8, stop: &Stop) -> Result<(), BackupError>;
}

/// The `restic` program.
///
/// The key goes to its standard input: it is in no argument, no environment and no file. Where a server asks for a name and password,
/// they are in the address, which restic reads from a file of the owner's for that reason.
#[derive(Debug, Clone)]
pub struct Restic {
    program: OsString,
    location: Location,
    key: KitKey,
    limit_kib: u32,
    /// Where its temporary files may be.
    private: PathBuf,
}

impl Restic {
    /// The store at this location, opened with this key. `private` is a folder of the owner's.
    pub fn of(location: &Location, key: &KitKey, limit_kib: u32, private: &Path) -> Self {
        let program = std::env::var_os(PROGRAM).unwrap_or_else(|| "restic".into());
        let (location, key, private) = (location.clone(), key.clone(), private.to_owned());
        Self { program, location, key, limit_kib, private }
    }

    fn place(&self) -> String {
        self.location.shown()
    }

    /// Runs it; `line` is given what it says on standard output, `tick` is called now and then.
    fn run(
        &self,
        arguments: &[&str],
        folder: Option<&Path>,
        line: &mut dyn FnMut(String),
        tick: &mut dyn FnMut(),
        stop: &Stop,
    ) -> Result<(), BackupError> {
        let address = self.address_file()?;
        let passage = match &self.location {
            Location::Spare { address, .. } => Some(Passage::to(address).map_err(|error| {
                BackupError::Away { place: self.place(), why: error.to_string() }
            })?),
            _ => None,
        };
        let mut command = Command::new(&self.program);
        match (&self.location, &address) {
            (_, Some(file)) => command.arg("--repository-file").arg(&file.0),
            (Location::Folder(path), None) => command.arg("--repo").arg(path),
            (Location::Server { address, .. }, None) => {
                command.arg("--repo").arg(format!("rest:{address}"))
            }
            (Location::Spare { pinned, identity, .. }, None) => {
                let address = passage.as_ref().map(Passage::address).unwrap_or_default();
                command.arg("--repo").arg(format!("rest:https://{address}/backup/"));
                command.arg("--cacert").arg(pinned).arg("--tls-client-cert").arg(identity)
            }
        };
        command.args(["--password-file", "/dev/stdin", "--no-cache"]);
        if self.limit_kib > 0 {
            command.args(["--limit-upload", &self.limit_kib.to_string()]);
        }
        command.args(arguments).env("RESTIC_PROGRESS_FPS", "4").env("TMPDIR", &self.private);
        // What the caller's environment says of other stores is not about this one.
        for name in [
            "REPOSITORY",
            "REPOSITORY_FILE",
            "PASSWORD",
            "PASSWORD_FILE",
            "PASSWORD_COMMAND",
            "KEY_HINT",
        ] {
            command.env_remove(format!("RESTIC_{name}"));
        }
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        crate::key::private_folder(&self.private)?;
        let spawned =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                BackupError::NoRestic(self.program.to_string_lossy().into_owned())
            }
            _ => BackupError::File { path: self.program.clone().into(), source },
        })?;
        let mut input = child.stdin.take().expect("asked to be a pipe");
        // It may have ended already; then its complaint says more.
        let _ = writeln!(input, "{}", self.key.expose());
        drop(input);
        let errors = child.stderr.take().expect("asked to be a pipe");
        let complaints = std::thread::spawn(move || {
            let (mut kept, mut errors) = (Vec::new(), errors);
            let _ = (&mut errors).take(COMPLAINTS).read_to_end(&mut kept);
            // Whoever does not read would hold it up.
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
            String::from_utf8_lossy(&kept).into_owned()
        });
        let output = child.stdout.take().expect("asked to be a pipe");
        let (send, lines) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut stopped = false;
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(said) => line(said),
                Err(RecvTimeoutError::Timeout) => tick(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if stop.asked() && !stopped {
                stopped = true;
                let _ = child.kill();
            }
        }
        let status = child
            .wait()
            .map_err(|source| BackupError::File { path: self.program.clone().into(), source })?;
        let _ = reader.join();
        let complaint = complaints.join().unwrap_or_default();
        if stopped {
            return Err(BackupError::Stopped);
        }
        if status.success() {
            return Ok(());
        }
        log::debug!("restic {}: {complaint}", arguments.first().unwrap_or(&""));
        Err(BackupError::of_restic(&self.place(), &complaint))
    }

    /// Does something that needs a lock. One of a process that is gone, after a power cut, keeps nobody out.
    fn alone(&self, mut work: impl FnMut() -> Result<(), BackupError>) -> Result<(), BackupError> {
        match work() {
            Err(BackupError::Busy(_)) => self.text(&["unlock"]).and_then(|_| work()),
            done => done,
        }
    }

    /// Runs it and gives what it printed.
    fn text(&self, arguments: &[&str]) -> Result<String, BackupError> {
        let mut text = String::new();
        let mut keep = |line: String| text = format!("{text}{line}\n");
        self.run(arguments, None, &mut keep, &mut || {}, &Stop::default())?;
        Ok(text)
    }

    /// The address with name and password, in a file that lives as long as the program.
    fn address_file(&self) -> Result<Option<Removed>, BackupError> {
        let Location::Server { address, login: Some(login) } = &self.location else {
            return Ok(None);
        };
        let (scheme, rest) = address.split_once("://").unwrap_or(("https", address));
        crate::key::private_folder(&self.private)?;
        let path = self.private.join(format!("address-{}", std::process::id()));
        let fail = |source| BackupError::File { path: path.clone(), source };
        let _ = fs::remove_file(&path);
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let mut file = options.open(&path).map_err(fail)?;
        write!(file, "rest:{scheme}://{login}@{rest}").map_err(fail)?;
        Ok(Some(Removed(path)))
    }

    fn odd(&self, what: &str) -> BackupError {
        BackupError::Other { place: self.place(), why: format!("restic did not say {what}") }
    }
}

/// A file that goes with its owner.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Repository for Restic {
    fn make(&self) -> Result<(), BackupError> {
        self.text(&["init"]).map(drop)
    }

    fn save(
        &self,
        folder: &Path,
        host: &str,
        observer: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<Saved, BackupError> {
        let begun = Instant::now();
        let mut summary = None;
        let mut line = |line: String| match progress::read(&line) {
            Some(News::Further(progress)) => observer(progress),
            Some(News::Done(done)) => summary = Some(done),
            None => {}
        };
        let format = format!("{FORMAT_TAG}{}", crate::FORMAT);
        let bytes = format!("{BYTES_TAG}{}", size_of(folder));
        let mut arguments = vec!["backup", "--json", "--host", host];
        arguments.extend(["--tag", TAG, "--tag", &format, "--tag", &bytes, "."]);
        self.alone(|| self.run(&arguments, Some(folder), &mut line, &mut || {}, stop))?;
        let summary = summary.ok_or_else(|| self.odd("that it is done"))?;
        Ok(Saved {
            at: jiff::Timestamp::now().as_second(),
            id: summary.snapshot_id,
            files: summary.total_files_processed,
            bytes: summary.total_bytes_processed,
            added: summary.data_added,
            milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            thinned: false,
        })
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>, BackupError> {
        let text = self.text(&["snapshots", "--json", "--no-lock", "--tag", TAG])?;
        let found: Option<Vec<Snapshot>> =
            serde_json::from_str(text.trim()).map_err(|_| self.odd("which backups there are"))?;
        Ok(in_order(found.unwrap_or_default()))
    }

    fn thin(&self, keep: &Retention, stop: &Stop) -> Result<bool, BackupError> {
        let kept = [
            ("--keep-hourly", keep.hours),
            ("--keep-daily", keep.days),
            ("--keep-weekly", keep.weeks),
            ("--keep-monthly", keep.months),
        ];
        let kept: Vec<String> = kept
            .iter()
            .filter(|(_, count)| *count > 0)
            .flat_map(|(name, count)| [(*name).to_owned(), count.to_string()])
            .collect();
        // Without a rule it would keep nothing.
        if kept.is_empty() {
            return Ok(false);
        }
        // All boxes that ever had this store are one: a restored one goes on with it.
        let mut arguments = vec!["forget", "--tag", TAG, "--group-by", "", "--prune", "--quiet"];
        arguments.extend(kept.iter().map(String::as_str));
        match self.alone(|| self.run(&arguments, None, &mut |_| {}, &mut || {}, stop)) {
            Ok(()) => Ok(true),
            Err(BackupError::AppendOnly(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn size(&self, snapshot: &Snapshot) -> Result<u64, BackupError> {
        #[derive(Deserialize)]
        struct Stats {
            total_size: u64,
        }
        let id = snapshot.id.as_str();
        let text = self.text(&["stats", "--json", "--no-lock", "--mode", "restore-size", id])?;
        let line = text.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
        let stats: Stats = serde_json::from_str(line).map_err(|_| self.odd("how large it is"))?;
        Ok(stats.total_size)
    }

    fn fetch(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        observer: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<u64, BackupError> {
        snapshot.readable()?;
        let total = match snapshot.bytes() {
            Some(bytes) => bytes,
            None => self.size(snapshot)?,
        };
        crate::key::private_folder(into)?;
        room(into, total)?;
        let begun = Instant::now();
        let target = into.to_string_lossy();
        let arguments = ["restore", &snapshot.id, "--no-lock", "--target", &target];
        let mut tick = || {
            let (done, seconds) = (size_of(into), begun.elapsed().as_secs_f64());
            observer(progress::progress("fetching", done.min(total), Some(total), seconds));
        };
        self.run(&arguments, None, &mut |_| {}, &mut tick, stop)?;
        Ok(total)
    }

    fn lines(&self, snapshot: &Snapshot, file: &str) -> Result<Vec<String>, BackupError> {
        snapshot.readable()?;
        let (mut lines, stop) = (Vec::new(), Stop::default());
        let name = format!("/{file}");
        // What is not there it says nothing of.
        let mut there = false;
        let look = ["ls", &snapshot.id, "--no-lock", &name];
        self.run(&look, None, &mut |line| there |= line.trim() == name, &mut || {}, &stop)?;
        if there {
            let dump = ["dump", &snapshot.id, "--no-lock", &name];
            self.run(&dump, None, &mut |line| lines.push(line), &mut || {}, &stop)?;
        }
        Ok(lines)
    }

    fn check(&self, percent: u8, stop: &Stop) -> Result<(), BackupError> {
        let part = format!("--read-data-subset={}%", percent.clamp(1, 100));
        self.run(&["check", "--no-lock", &part], None, &mut |_| {}, &mut || {}, stop)
    }
}

/// Oldest first, by the moment and not by how it is written: offsets and fractions differ from box to box. Of two at one moment the one that was made from
/// the other is the later, else the one that the store names later.
fn in_order(mut found: Vec<Snapshot>) -> Vec<Snapshot> {
    found.sort_by_cached_key(Snapshot::at);
    let at_one = |a: &Snapshot, b: &Snapshot| a.at() == b.at();
    found.chunk_by(at_one).flat_map(by_descent).collect()
}

/// Parents before children, and else as they were. So many at one moment as no box makes are left as they are.
fn by_descent(group: &[Snapshot]) -> Vec<Snapshot> {
    const MOST: usize = 100;
    let mut left = group.to_vec();
    let mut ordered = Vec::new();
    while (2..=MOST).contains(&left.len()) {
        let is_there = |id: &String| left.iter().any(|other| other.id == *id);
        let first = left.iter().position(|one| !one.parent.as_ref().is_some_and(is_there));
        ordered.push(left.remove(first.unwrap_or(0)));
    }
    ordered.append(&mut left);
    ordered
}

/// Whether so many bytes fit, with some to spare.
fn room(folder: &Path, bytes: u64) -> Result<(), BackupError> {
    const SPARE: u64 = 16 << 20;
    let fs = rustix::fs::statvfs(folder)
        .map_err(|e| BackupError::File { path: folder.to_owned(), source: e.into() })?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if free >= bytes.saturating_add(SPARE) {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let folder = folder.display();
    Err(BackupError::NoSpace(format!(
        "the backup has {} MiB and {folder} has {} MiB free; make room there",
        mib(bytes),
        mib(free)
    )))
}

/// Bytes of all files in a folder.
pub(crate) fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_of_a_newer_format_says_so_before_it_is_fetched() {
        let of = |tags: &[&str]| Snapshot {
            id: "x".into(),
            time: "2026-01-01T00:00:00Z".into(),
            hostname: "birch".into(),
            tags: Some(tags.iter().map(|tag| (*tag).to_owned()).collect()),
            parent: None,
        };
        assert!(of(&["polder"]).readable().is_ok());
        assert!(of(&["polder", "polder-format-1"]).readable().is_ok());
        for newer in ["polder-format-2", "polder-format-x"] {
            let error = of(&["polder", newer]).readable().unwrap_err().to_string();
            assert!(error.contains("newer format"), "{error}");
        }
    }

    #[test]
    fn what_a_backup_says_of_its_size_is_a_number_or_nothing() {
        let of = |tags: &[&str]| {
            let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            Snapshot {
                id: "x".into(),
                time: "2026-01-01T00:00:00Z".into(),
                hostname: "birch".into(),
                tags: Some(tags),
                parent: None,
            }
            .bytes()
        };
        assert_eq!(of(&["polder", "polder-format-1", "polder-bytes-70000"]), Some(70_000));
        for none in
            [&["polder"][..], &["polder-bytes-"], &["polder-bytes--1"], &["polder-bytes-1e9"]]
        {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_newest_is_the_newest_by_the_clock_and_not_by_how_its_time_is_written() {
        let of = |(id, time, parent): &(&str, &str, &str)| Snapshot {
            id: (*id).into(),
            time: (*time).into(),
            hostname: "birch".into(),
            tags: None,
            parent: (!parent.is_empty()).then(|| (*parent).into()),
        };
        let ids = |all: &[(&str, &str, &str)]| -> Vec<String> {
            in_order(all.iter().map(of).collect()).into_iter().map(|found| found.id).collect()
        };
        // By its text the first of these would be the last.
        let offsets = [
            ("a", "2026-11-27T11:30:00+02:00", ""),
            ("c", "2026-11-27T10:00:00.5Z", ""),
            ("b", "2026-11-27T10:00:00Z", ""),
            ("d", "2026-11-27T05:00:00.500000001-05:00", ""),
            ("e", "2026-11-27T10:00:01.1Z", ""),
            ("f", "2026-11-27T10:00:01.09Z", ""),
        ];
        assert_eq!(ids(&offsets), ["a", "b", "c", "d", "f", "e"]);
        // At one moment: as they follow from each other, else as the store has them.
        let one = "2026-11-27T10:00:00Z";
        assert_eq!(ids(&[("b", one, "a"), ("a", "2026-11-27T12:00:00+02:00", "")]), ["a", "b"]);
        assert_eq!(ids(&[("c", one, "b"), ("b", one, "a"), ("a", one, "")]), ["a", "b", "c"]);
        assert_eq!(ids(&[("c", one, "b"), ("a", one, ""), ("b", one, "a")]), ["a", "b", "c"]);
        assert_eq!(ids(&[("x", one, ""), ("a", one, "")]), ["x", "a"]);
        // Two that call each other their parents are no reason to go on for ever.
        assert_eq!(ids(&[("x", one, "a"), ("a", one, "x")]), ["x", "a"]);
        // What has no time is never the newest.
        assert_eq!(ids(&[("a", one, ""), ("z", "zzz", "a")]), ["z", "a"]);
    }

    proptest::proptest! {
        #[test]
        fn an_order_has_everything_once_and_time_goes_on_in_it(
            seconds in proptest::collection::vec((0i64..4, -14i8..=14, 0u32..3, 0usize..6), 0..12),
        ) {
            let all: Vec<Snapshot> = seconds.iter().enumerate().map(|(number, (second, hours, nanos, parent))| {
                let at = jiff::Timestamp::new(1_800_000_000 + second, *nanos as i32).unwrap();
                let offset = jiff::tz::Offset::constant(*hours);
                Snapshot {
                    id: number.to_string(),
                    time: at.display_with_offset(offset).to_string(),
                    hostname: "birch".into(),
                    tags: None,
                    parent: (*parent < number).then(|| parent.to_string()),
                }
            }).collect();
            let ordered = in_order(all.clone());
            proptest::prop_assert!(ordered.iter().is_sorted_by_key(|found| found.at()));
            let mut ids: Vec<usize> = ordered.iter().map(|found| found.id.parse().unwrap()).collect();
            ids.sort_unstable();
            proptest::prop_assert_eq!(ids, (0..all.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_figures() {
        let place = tempfile::tempdir().unwrap();
        assert!(room(place.path(), 1).is_ok());
        let error = room(place.path(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("MiB free; make room"), "{error}");
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Folder(place.path().join("store"));
        let mut restic = Restic::of(&location, &KitKey::make().unwrap(), 0, place.path());
        restic.program = "/nowhere/restic".into();
        let error = restic.snapshots().unwrap_err().to_string();
        assert!(error.contains("apt install restic"), "{error}");
    }
}
