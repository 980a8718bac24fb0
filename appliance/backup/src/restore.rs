//! Brings a box back: fetched beside what is there, looked at, then put in place. A power cut at any moment leaves the old state or the new
//! one: until [`ready`] the folder is only added to, and from then on [`settle`] goes forward, however often it is begun.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use polder_control::Progress;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::flush;
use crate::gather::LABEL;
pub use crate::gather::clear;
use crate::key::private_folder;
use crate::what::fate;
use crate::{BackupError, Examined, Fate, Folders, KitKey, Record, Repository, Snapshot, Stop};

/// Folders that parts are given by name before they start: an empty one is in no backup, and without it they would not start.
pub const ALWAYS_THERE: [&str; 8] =
    ["audit", "health", "kv", "packed", "power", "uplinks", "upstreams", "weights"];
/// Where the key of the backups of the box before is, in what was put aside.
pub const FORMER_KEY: &str = "backup-key";

/// Says that everything is there and what is done with it.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// Where the state goes that was there before.
    aside: String,
}

/// What was put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Where the state is that was there before.
    pub aside: PathBuf,
}

/// A clock that goes wrong by less than this is no reason to refuse a backup.
const AHEAD: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Which of the backups: the newest, or the one whose name begins so. One that lies more than a day in the future is not taken for the newest: either it hides
/// the newest for ever, or this machine's clock is wrong, and with it whatever else follows from it.
pub fn choose(
    snapshots: &[Snapshot],
    wanted: Option<&str>,
    place: &str,
) -> Result<Snapshot, BackupError> {
    choose_at(jiff::Timestamp::now(), snapshots, wanted, place)
}

fn choose_at(
    now: jiff::Timestamp,
    snapshots: &[Snapshot],
    wanted: Option<&str>,
    place: &str,
) -> Result<Snapshot, BackupError> {
    let newest = snapshots.last().filter(|_| wanted.is_none());
    if let Some(newest) = newest
        && newest.at().is_none_or(|at| at.duration_since(now) > AHEAD)
    {
        let plain = |text: &str| text.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(BackupError::Future {
            wanted: newest.id.chars().filter(char::is_ascii_hexdigit).take(8).collect(),
            place: place.to_owned(),
            time: plain(&newest.time),
            now: now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        });
    }
    let found = match wanted {
        None => snapshots.last(),
        Some(wanted) if wanted.len() < 4 => None,
        Some(wanted) => snapshots.iter().find(|snapshot| snapshot.id.starts_with(wanted)),
    };
    match (found, wanted) {
        (Some(found), _) => found.readable().map(|()| found.clone()),
        (None, None) => Err(BackupError::NoStore(place.to_owned())),
        (None, Some(wanted)) => Err(BackupError::NoSnapshot {
            wanted: wanted.chars().filter(|c| !c.is_control()).take(70).collect(),
            place: place.to_owned(),
        }),
    }
}

/// The newest in a store on this machine's own disk where nobody can name one, as before a takeover. Where the clocks contradict each other, it is the
/// one that arrived last: a main box whose clock was wrong for an hour must not keep its spare from serving for ever.
pub fn choose_arrived(
    snapshots: &[Snapshot],
    store: &Path,
    place: &str,
) -> Result<Snapshot, BackupError> {
    let future = match choose(snapshots, None, place) {
        Err(future @ BackupError::Future { .. }) => future,
        chosen => return chosen,
    };
    let arrived = |snapshot: &Snapshot| {
        let file = fs::metadata(store.join("snapshots").join(&snapshot.id));
        file.and_then(|file| file.modified()).ok()
    };
    let last = snapshots.iter().filter(|one| arrived(one).is_some()).max_by_key(|one| arrived(one));
    let last = last.ok_or_else(|| BackupError::NoStore(place.to_owned()))?;
    log::warn!("{future}; the backup that arrived last is {} of {}", last.id, last.time);
    last.readable().map(|()| last.clone())
}

/// Keeps the key that somebody typed for a restore, until it is over.
pub fn expect(folders: &Folders, key: &KitKey) -> Result<(), BackupError> {
    key.keep(&folders.restore_key())
}

/// The key that was typed for a restore.
pub fn expected(folders: &Folders) -> Result<KitKey, BackupError> {
    let path = folders.restore_key();
    let text = fs::read_to_string(&path).map_err(|source| BackupError::File { path, source })?;
    KitKey::typed(&text)
}

/// Removes what a restore has fetched that does not go on, and its key. One that is being put in place goes on.
pub fn give_up(folders: &Folders) -> Result<(), BackupError> {
    if pending(folders) {
        return Ok(());
    }
    remove(&folders.restore_key())?;
    clear(&folders.restore())
}

/// Fetches a backup beside what is there, anew: what an earlier try has left is removed first. `all` are those of the store, as it listed them: to ask again
/// would make the key once more.
pub fn fetch(
    folders: &Folders,
    repository: &dyn Repository,
    snapshot: &Snapshot,
    all: &[Snapshot],
    observer: &mut dyn FnMut(Progress),
    stop: &Stop,
) -> Result<(), BackupError> {
    if pending(folders) {
        let why = "an earlier restore is being put in place; start the box, and it is finished"
            .to_owned();
        return Err(BackupError::NotWhole(why));
    }
    clear(&folders.restore())?;
    private_folder(&folders.restore())?;
    let into = incoming(folders);
    flush::while_it_comes(&folders.restore(), || {
        repository.fetch(snapshot, &into, observer, stop)
    })?;
    gone_since(folders, repository, snapshot, all)
}

/// An older backup than the newest knows nothing of who was removed since: the newest one does.
fn gone_since(
    folders: &Folders,
    repository: &dyn Repository,
    snapshot: &Snapshot,
    all: &[Snapshot],
) -> Result<(), BackupError> {
    let Some(newest) = all.last().filter(|newest| newest.id != snapshot.id) else {
        return Ok(());
    };
    let lines = repository.lines(newest, polder_members::GONE)?;
    let path = incoming(folders).join(polder_members::GONE);
    let keep = || polder_members::keep_gone_lines(&incoming(folders), &lines.join("\n"));
    keep().map(drop).map_err(|source| BackupError::File { path, source })
}

/// Looks at what was fetched.
pub fn examine(folders: &Folders) -> Result<Examined, BackupError> {
    crate::examine(&incoming(folders))
}

/// What was asked for and not yet settled when the backup was made may have been refused or withdrawn since: it is not revived. Nobody is
/// signed in, and no invite is good. To be called before [`ready`], but for a state that never served elsewhere.
pub fn begin_anew(folders: &Folders) -> Result<(), BackupError> {
    let path = incoming(folders).join("polder.db");
    if !path.exists() {
        return Ok(());
    }
    let fail = BackupError::Restored;
    let db = Connection::open(&path).map_err(fail)?;
    // With a sign-in goes what was done in it.
    db.pragma_update(None, "foreign_keys", true).map_err(fail)?;
    for table in ["recovery", "proposals", "ending", "invites", "sessions"] {
        if has(&db, table).map_err(fail)? {
            db.execute(&format!("DELETE FROM {table}"), []).map_err(fail)?;
        }
    }
    db.close().map_err(|(_, error)| fail(error))
}

/// What no list knows of: a password that was changed after the backup is the former one again, which somebody else may know. Everybody reads so
/// on their first page. `made_at`: of the backup, RFC 3339. To be called before [`ready`].
pub fn tell_of_passwords(folders: &Folders, made_at: &str) -> Result<(), BackupError> {
    let path = incoming(folders).join("polder.db");
    if !path.exists() {
        return Ok(());
    }
    let fail = BackupError::Restored;
    let db = Connection::open(&path).map_err(fail)?;
    // An older version's has no such table.
    if has(&db, "announcements").map_err(fail)? {
        let text = old_passwords(made_at);
        let now = jiff::Timestamp::now().as_second();
        db.execute(
            "INSERT INTO announcements (at, by, text) VALUES (?1, 'the box', ?2)",
            rusqlite::params![now, text],
        )
        .map_err(fail)?;
    }
    db.close().map_err(|(_, error)| fail(error))
}

/// What whoever restores a box has to know, in words.
pub fn old_passwords(made_at: &str) -> String {
    let when = match made_at.parse::<jiff::Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "an earlier day".to_owned(),
    };
    format!(
        "The box was restored from a backup of {when}. Passwords are those of then: whoever changed theirs since signs in with the former one, and should change it again at once, above all if somebody else knew it."
    )
}

fn has(db: &Connection, table: &str) -> rusqlite::Result<bool> {
    db.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1)",
        [table],
        |row| row.get(0),
    )
}

/// From here on the restore is put in place, by this process or by the next start. The key goes with it, so that the box goes on with its
/// backups.
pub fn ready(folders: &Folders, key: &KitKey) -> Result<(), BackupError> {
    ready_as(folders, key, &aside_now())
}

/// A name for the folder to which what is there now is put aside.
pub fn aside_now() -> String {
    format!("before-restore-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"))
}

/// Where files wait that are put over whatever is at their place, with the restored state and in the same go: what this machine keeps.
pub fn also(folders: &Folders) -> PathBuf {
    folders.restore().join("also")
}

/// The same with a name from [`aside_now`] that the caller has to know afterwards.
pub fn ready_as(folders: &Folders, key: &KitKey, aside: &str) -> Result<(), BackupError> {
    key.keep(&folders.restore().join("key"))?;
    flush::all(&folders.restore())?;
    let order = Order { aside: aside.to_owned() };
    let text = serde_json::to_vec(&order).expect("an order has only plain values");
    let path = order_path(folders);
    polder_site::write_durably(&path, &text).map_err(|source| BackupError::File { path, source })
}

/// Whether a restore waits to be put in place. Nothing may use the state folder before it was.
pub fn pending(folders: &Folders) -> bool {
    order_path(folders).exists() || placing_path(folders).exists()
}

/// Puts in place what is ready, if anything is. To be called before anything else opens the state folder.
pub fn settle(state: &Path) -> Result<Option<Settled>, BackupError> {
    let folders = Folders::of(state);
    if !pending(&folders) {
        return Ok(None);
    }
    let (order_at, placing_at) = (order_path(&folders), placing_path(&folders));
    if !placing_at.exists() {
        let order = read_order(&order_at)?;
        put_aside(state, &state.join(&order.aside))?;
        rename(&order_at, &placing_at)?;
        sync(&folders.restore())?;
    }
    let order = read_order(&placing_at)?;
    put_in_place(&incoming(&folders), state, Path::new(""))?;
    put_over(&also(&folders), state, Path::new(""))?;
    for name in ALWAYS_THERE {
        private_folder(&state.join(name))?;
    }
    let key = folders.restore().join("key");
    if key.exists() {
        private_folder(&folders.own())?;
        keep_former_key(&folders, &key, &state.join(&order.aside))?;
        rename(&key, &folders.key())?;
    }
    // Whoever restored from the paper has the paper.
    Record::change(&folders, |record| {
        let confirmed = Some(jiff::Timestamp::now().as_second());
        *record = Record { kit_confirmed: confirmed, ..Record::default() };
    })?;
    let path = folders.restored();
    fs::write(&path, "").map_err(|source| BackupError::File { path, source })?;
    sync(state)?;
    remove(&folders.restore_key())?;
    remove(&placing_at)?;
    clear(&folders.restore())?;
    Ok(Some(Settled { aside: state.join(order.aside) }))
}

/// The backups of the box that was here before are still wherever they were sent, and only this opens them.
fn keep_former_key(folders: &Folders, key: &Path, aside: &Path) -> Result<(), BackupError> {
    let read = |path: &Path| match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => {
            read.map(Some).map_err(|source| BackupError::File { path: path.to_owned(), source })
        }
    };
    match read(&folders.key())? {
        Some(former) if Some(&former) != read(key)?.as_ref() => {
            private_folder(aside)?;
            rename(&folders.key(), &aside.join(FORMER_KEY))?;
            sync(aside)
        }
        _ => Ok(()),
    }
}

/// Where what was fetched lies until it is put in place.
pub fn incoming(folders: &Folders) -> PathBuf {
    folders.restore().join("incoming")
}
fn order_path(folders: &Folders) -> PathBuf {
    folders.restore().join("ready.json")
}
fn placing_path(folders: &Folders) -> PathBuf {
    folders.restore().join("placing.json")
}

fn read_order(path: &Path) -> Result<Order, BackupError> {
    let fail = |source| BackupError::File { path: path.to_owned(), source };
    let text = fs::read(path).map_err(fail)?;
    let order: Order = serde_json::from_slice(&text).map_err(|e| fail(e.into()))?;
    // It becomes a path.
    match order.aside.starts_with("before-restore-") && !order.aside.contains('/') {
        true => Ok(order),
        false => Err(fail(io::Error::other("it names no folder of ours"))),
    }
}

/// Everything that a backup may have, and what follows from it, leaves its place. Models stay: they are asked for by digest.
fn put_aside(state: &Path, aside: &Path) -> Result<(), BackupError> {
    private_folder(aside)?;
    let fail = |source| BackupError::File { path: state.to_owned(), source };
    for entry in fs::read_dir(state).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let path = Path::new(&name);
        let shown = name.to_string_lossy();
        let moved = match fate(path) {
            Fate::Copied | Fate::Database => !matches!(fate(&path.join("any")), Fate::Left(_)),
            Fate::Left(_) => shown.starts_with("polder.db-") || shown.starts_with("runs."),
        };
        // Who was removed is not let in again by what is restored.
        if name == polder_members::GONE {
            continue;
        }
        // What models read was kept for members of the former box, by numbers that others have now.
        if name == "kv" {
            clear(&state.join(path))?;
        } else if moved {
            rename(&state.join(path), &aside.join(path))?;
        }
    }
    sync(aside)?;
    sync(state)
}

/// Moves what was restored to its place; what is there already was moved before a crash.
fn put_in_place(incoming: &Path, state: &Path, below: &Path) -> Result<(), BackupError> {
    let folder = incoming.join(below);
    let fail = |source| BackupError::File { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let path = below.join(entry.file_name());
        if path == Path::new(LABEL) {
            continue;
        }
        let is_folder = entry.file_type().map_err(fail)?.is_dir();
        // Folders that both have, such as weights/, are merged.
        if is_folder && state.join(&path).is_dir() {
            put_in_place(incoming, state, &path)?;
            continue;
        }
        if matches!(fate(&path), Fate::Left(_)) && path != Path::new("weights") {
            continue;
        }
        if path == Path::new(polder_members::GONE) {
            let merge = || -> io::Result<()> {
                let lines = fs::read_to_string(entry.path())?;
                polder_members::keep_gone_lines(state, &lines)?;
                fs::remove_file(entry.path())
            };
            merge().map_err(fail)?;
            continue;
        }
        rename(&entry.path(), &state.join(&path))?;
    }
    sync(&state.join(below))
}

/// Moves files over those at the same places; one that was moved before a crash is there already.
fn put_over(from: &Path, state: &Path, below: &Path) -> Result<(), BackupError> {
    let folder = from.join(below);
    let fail = |source| BackupError::File { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    private_folder(&state.join(below))?;
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let path = below.join(entry.file_name());
        match entry.file_type().map_err(fail)?.is_dir() {
            true => put_over(from, state, &path)?,
            false => rename(&entry.path(), &state.join(&path))?,
        }
    }
    sync(&state.join(below))
}

fn rename(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::rename(from, to).map_err(|source| BackupError::File { path: from.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::File { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), BackupError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| BackupError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A box that was set up a little, with a restore that is ready.
    fn about_to() -> (tempfile::TempDir, KitKey) {
        let state = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("site.toml", "old"),
            ("polder.db", "old"),
            ("polder.db-wal", "old"),
            ("pki/ca.pem", "old"),
            ("runs.json", "old"),
            ("kv/fast/x", "old"),
            ("weights/blobs/sha256/aa", "old"),
            ("weights/manifests/there.toml", "old"),
            ("restore/incoming/site.toml", "new"),
            ("restore/incoming/polder.db", "new"),
            ("restore/incoming/pki/ca.pem", "new"),
            ("restore/incoming/pki/authority-1.pem", "new"),
            ("restore/incoming/audit/trail.jsonl", "new"),
            ("restore/incoming/weights/manifests/tiny.toml", "new"),
            ("restore/incoming/polder-backup.toml", "new"),
            ("gone.jsonl", "{\"number\":1,\"at\":1,\"what\":{\"kind\":\"key\",\"key\":\"a\"}}\n"),
            (
                "restore/incoming/gone.jsonl",
                "{\"number\":1,\"at\":2,\"what\":{\"kind\":\"key\",\"key\":\"b\"}}\n",
            ),
        ] {
            write(state.path().join(path), text);
        }
        let key = KitKey::make().unwrap();
        ready(&Folders::of(state.path()), &key).unwrap();
        (state, key)
    }

    fn is_restored(state: &Path, key: &KitKey) {
        let text = |path: &str| fs::read_to_string(state.join(path)).unwrap();
        for path in [
            "site.toml",
            "polder.db",
            "pki/ca.pem",
            "pki/authority-1.pem",
            "audit/trail.jsonl",
            "weights/manifests/tiny.toml",
        ] {
            assert_eq!(text(path), "new", "{path}");
        }
        assert_eq!(text("weights/blobs/sha256/aa"), "old");
        let gone = text("gone.jsonl");
        assert!(
            gone.contains("\"a\"") && gone.contains("\"b\""),
            "who was removed comes back: {gone}"
        );
        for name in ALWAYS_THERE {
            assert!(state.join(name).is_dir(), "{name}");
        }
        for gone in ["polder.db-wal", "runs.json", "kv/fast", "restore", "polder-backup.toml"] {
            assert!(!state.join(gone).exists(), "{gone}");
        }
        let folders = Folders::of(state);
        assert_eq!(KitKey::read(&folders).unwrap().unwrap(), *key);
        assert!(Record::read(&folders).kit_confirmed.is_some() && folders.restored().exists());
        let aside: Vec<_> = fs::read_dir(state)
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("before-restore-"))
            .collect();
        assert_eq!(aside.len(), 1);
        let kept = |path: &str| fs::read_to_string(aside[0].path().join(path)).unwrap();
        assert_eq!(
            [kept("site.toml"), kept("polder.db"), kept("pki/ca.pem"), kept("polder.db-wal")],
            ["old"; 4]
        );
    }

    #[test]
    fn a_restored_box_is_in_place_and_what_was_there_before_is_put_aside() {
        let (state, key) = about_to();
        let settled = settle(state.path()).unwrap().unwrap();
        assert!(settled.aside.join("site.toml").exists());
        is_restored(state.path(), &key);
        assert_eq!(settle(state.path()).unwrap(), None);
    }

    /// The order of a crash: after every single rename the process dies, and the next one goes on.
    #[test]
    fn wherever_it_is_cut_off_the_next_start_finishes_it() {
        for steps in 0..12 {
            let (state, key) = about_to();
            let folders = Folders::of(state.path());
            let order = read_order(&order_path(&folders)).unwrap();
            let aside = state.path().join(&order.aside);
            // Renames as `settle` does them, one by one.
            let mut renames: Vec<(PathBuf, PathBuf)> = Vec::new();
            for name in ["polder.db", "pki", "site.toml", "polder.db-wal", "runs.json"] {
                renames.push((state.path().join(name), aside.join(name)));
            }
            renames.push((order_path(&folders), placing_path(&folders)));
            for name in ["audit", "pki", "polder.db", "site.toml", "weights/manifests/tiny.toml"] {
                renames.push((incoming(&folders).join(name), state.path().join(name)));
            }
            fs::create_dir_all(&aside).unwrap();
            for (number, (from, to)) in renames.iter().take(steps).enumerate() {
                if number == 5 {
                    fs::remove_dir_all(state.path().join("kv")).unwrap();
                }
                fs::rename(from, to).unwrap();
            }
            settle(state.path()).unwrap().unwrap();
            is_restored(state.path(), &key);
        }
    }

    #[test]
    fn what_a_machine_keeps_is_put_over_what_came_in_the_same_go() {
        let (state, key) = about_to();
        let folders = Folders::of(state.path());
        fs::remove_file(order_path(&folders)).unwrap();
        write(state.path().join("spare/term.json"), "old");
        write(state.path().join("restore/incoming/power/login"), "theirs");
        write(also(&folders).join("spare/term.json"), "raised");
        write(also(&folders).join("power/login"), "ours");
        let aside = aside_now();
        ready_as(&folders, &key, &aside).unwrap();
        assert_eq!(fs::read_to_string(state.path().join("spare/term.json")).unwrap(), "old");
        assert_eq!(settle(state.path()).unwrap().unwrap().aside, state.path().join(aside));
        let text = |path: &str| fs::read_to_string(state.path().join(path)).unwrap();
        assert_eq!([text("spare/term.json"), text("power/login")], ["raised", "ours"]);
        is_restored(state.path(), &key);
    }

    #[test]
    fn the_key_of_the_former_boxs_backups_is_put_aside_with_it() {
        let (state, key) = about_to();
        let folders = Folders::of(state.path());
        let former = KitKey::of_box(&folders).unwrap();
        let aside = settle(state.path()).unwrap().unwrap().aside;
        is_restored(state.path(), &key);
        let kept = fs::read_to_string(aside.join(FORMER_KEY)).unwrap();
        assert_eq!(KitKey::typed(&kept).unwrap(), former);
    }

    #[test]
    fn a_restore_that_is_given_up_leaves_no_key_and_one_that_is_ready_goes_on() {
        let (state, key) = about_to();
        let folders = Folders::of(state.path());
        expect(&folders, &key).unwrap();
        give_up(&folders).unwrap();
        assert_eq!(expected(&folders).unwrap(), key);
        fs::remove_file(order_path(&folders)).unwrap();
        give_up(&folders).unwrap();
        assert!(!folders.restore_key().exists() && !folders.restore().exists());
    }

    #[test]
    fn nothing_that_waited_for_a_word_comes_back_and_nobody_is_signed_in() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        begin_anew(&folders).unwrap();
        fs::create_dir_all(incoming(&folders)).unwrap();
        let db = Connection::open(incoming(&folders).join("polder.db")).unwrap();
        // As of an older version, that has not all of them.
        db.execute_batch(
            "CREATE TABLE members (id INTEGER); INSERT INTO members VALUES (1);
             CREATE TABLE invites (id INTEGER); INSERT INTO invites VALUES (1);
             CREATE TABLE sessions (id INTEGER PRIMARY KEY); INSERT INTO sessions VALUES (1);
             CREATE TABLE visits (session INTEGER REFERENCES sessions ON DELETE CASCADE);
             INSERT INTO visits VALUES (1);",
        )
        .unwrap();
        begin_anew(&folders).unwrap();
        for (table, rows) in [("members", 1), ("invites", 0), ("sessions", 0), ("visits", 0)] {
            let count = format!("SELECT count(*) FROM {table}");
            let found: i64 = db.query_row(&count, [], |row| row.get(0)).unwrap();
            assert_eq!(found, rows, "{table}");
        }
    }

    #[test]
    fn everybody_reads_that_passwords_are_those_of_the_backup() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        tell_of_passwords(&folders, "2026-11-20T10:00:00Z").unwrap();
        fs::create_dir_all(incoming(&folders)).unwrap();
        let path = incoming(&folders).join("polder.db");
        // As of a version that announces nothing.
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE members (id INTEGER)")
            .unwrap();
        tell_of_passwords(&folders, "2026-11-20T10:00:00Z").unwrap();
        fs::remove_file(&path).unwrap();
        let members = polder_members::Members::open(&path).unwrap();
        let new = polder_members::NewMember {
            name: "ada".into(),
            email: None,
            password: polder_members::Secret::new("four words in a row".into()),
        };
        let ada = members.add_member(&new, polder_members::Role::Steward).unwrap();
        drop(members);
        tell_of_passwords(&folders, "2026-11-20T10:00:00.5Z").unwrap();
        let members = polder_members::Members::open(&path).unwrap();
        let told = members.unread(&ada).unwrap();
        let text = &told[0].text;
        assert!(
            text.contains("backup of 2026-11-20 10:00 UTC. Passwords are those of then"),
            "{text}"
        );
        assert!(old_passwords("not a time").contains("of an earlier day"));
    }

    #[test]
    fn what_is_not_ready_is_never_put_in_place() {
        let (state, _) = about_to();
        fs::remove_file(order_path(&Folders::of(state.path()))).unwrap();
        assert_eq!(settle(state.path()).unwrap(), None);
        assert_eq!(fs::read_to_string(state.path().join("site.toml")).unwrap(), "old");
    }

    #[test]
    fn a_backup_is_chosen_by_the_beginning_of_its_name_and_the_newest_without_one() {
        let of = |id: &str| Snapshot {
            id: id.into(),
            time: "2026-11-27T10:00:00Z".into(),
            hostname: "b".into(),
            tags: None,
            parent: None,
        };
        let all = [of("aaaa1111"), of("bbbb2222")];
        assert_eq!(choose(&all, None, "x").unwrap().id, "bbbb2222");
        assert_eq!(choose(&all, Some("aaaa"), "x").unwrap().id, "aaaa1111");
        assert!(choose(&all, Some("a"), "x").is_err());
        assert!(choose(&all, Some("cccc"), "x").unwrap_err().to_string().contains("cccc"));
        assert!(choose(&[], None, "x").unwrap_err().to_string().contains("no backups at x"));
    }

    #[test]
    fn where_clocks_contradict_each_other_a_spare_takes_what_arrived_last() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join("snapshots")).unwrap();
        let day = |days: i64| {
            (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)).to_string()
        };
        let of = |id: &str, days: i64, arrived: u64| {
            let file = fs::File::create(store.path().join("snapshots").join(id)).unwrap();
            let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(arrived);
            file.set_modified(when).unwrap();
            let time = day(days);
            Snapshot { id: id.into(), time, hostname: "b".into(), tags: None, parent: None }
        };
        let newest = |all: &[Snapshot]| choose_arrived(all, store.path(), "x").map(|s| s.id);
        // The main box's clock was a month ahead for an hour.
        let all = [of("aaaa", -2, 100), of("cccc", 0, 300), of("bbbb", 30, 200)];
        assert_eq!(newest(&all).unwrap(), "cccc");
        // This machine's own is a month behind.
        let all = [of("aaaa", 28, 100), of("bbbb", 29, 200), of("cccc", 30, 300)];
        assert_eq!(newest(&all).unwrap(), "cccc");
        // Neither: the newest is the newest, whenever it was copied here.
        assert_eq!(newest(&[of("aaaa", -2, 300), of("bbbb", -1, 200)]).unwrap(), "bbbb");
        assert!(newest(&[]).is_err());
    }

    #[test]
    fn a_backup_of_the_future_is_not_taken_for_the_newest_and_can_be_named() {
        let now: jiff::Timestamp = "2026-11-27T10:00:00Z".parse().unwrap();
        let of = |time: &str| Snapshot {
            id: "aaaa1111".into(),
            time: time.into(),
            hostname: "b".into(),
            tags: None,
            parent: None,
        };
        for near in ["2026-11-27T10:00:00Z", "2026-11-28T11:59:59.9+02:00", "1970-01-01T00:00:00Z"]
        {
            assert!(choose_at(now, &[of(near)], None, "x").is_ok(), "{near}");
        }
        for far in [
            "2026-11-28T10:00:00.1Z",
            "2026-11-28T05:00:01-05:00",
            "2107-01-01T00:00:00Z",
            "soon\n",
        ] {
            let error = choose_at(now, &[of(far)], None, "x").unwrap_err().to_string();
            assert!(
                error.contains("aaaa1111") && error.contains("2026-11-27 10:00 UTC"),
                "{error}"
            );
            assert!(!error.contains('\n') && error.contains("clock"), "{error}");
            assert!(choose_at(now, &[of(far)], Some("aaaa"), "x").is_ok());
        }
    }
}
