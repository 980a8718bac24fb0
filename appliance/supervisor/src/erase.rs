//! The end of a box: everything that it keeps of its members is overwritten and removed, keys first, and what is left is a new box. What is
//! to be done is written down before; from then on every start goes on with it until it is done.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use polder_control::{AuditHead, END, ENDED, EndedBox, Lock, Plan, Step};
use polder_site::write_durably;
use polder_upstream::{open_up, remove_tree};
use serde::{Deserialize, Serialize};

/// What stays while it goes on: the order itself, and the lock that says that we are the only one here.
const LOCK: &str = "run/supervisor.lock";
const MODELS: &str = "weights";
/// Images of servers of others, as they were fetched and unpacked: public.
const CONTAINERS: &str = "containers";
/// Zeros are written in pieces of this size.
const PIECE: usize = 1 << 20;
/// After this many looks at what is left, the box says what it could not remove.
const LOOKS: u32 = 3;
/// So many names of what is left are told.
const MOST_LEFT: usize = 20;

/// What was decided, as far as it has to be known to carry it out: no name is in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) keep_models: bool,
    /// SHA-256 of the record's text.
    pub(crate) record: String,
    /// The last entry of the trail.
    pub(crate) audit: AuditHead,
}

/// Something in the state folder, as the plan shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// How a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Opens something: overwritten before all others.
    Key,
    /// Says something of members: overwritten.
    Precious,
    /// Public, or encrypted with a key that is overwritten by then: only removed.
    Bulk,
}

/// What the end would do, for people who are about to agree to it.
pub(crate) fn plan(seen: &[Seen], keep_models: bool, disk: Option<Lock>) -> Plan {
    let step = |id: &str, title: String| Step { id: id.to_owned(), title };
    let size = |name: &str| seen.iter().find(|s| s.name == name).map_or(0, |s| s.bytes);
    let known = [
        "polder.db",
        "polder.db-wal",
        "polder.db-shm",
        "gone.jsonl",
        "pki",
        "backup",
        "site.toml",
        "HISTORY",
        "audit",
        "kv",
        "packed",
        CONTAINERS,
        "run",
        "runs.json",
        MODELS,
        END,
        ENDED,
    ];
    let others: Vec<&str> =
        seen.iter().map(|s| s.name.as_str()).filter(|name| !known.contains(name)).collect();
    let mut steps = vec![
        step("write-down", "Write down that the box ends, so that a power cut stops nothing".to_owned()),
        step("close", "End every answer, sign everybody out, close the door".to_owned()),
        step(
            "keys",
            "Overwrite the keys: of kept conversations, of the backups, of the box's own certificate authority, and those it signs in with elsewhere"
                .to_owned(),
        ),
        step("members", "Overwrite the members, their passwords, API keys and figures".to_owned()),
        step("site", "Overwrite the settings, all their versions, and who did what".to_owned()),
        step(
            "kept",
            format!("Remove what models keep of conversations ({}), which no key opens any more", bytes(size("kv") + size("packed"))),
        ),
    ];
    if size(CONTAINERS) > 0 {
        let title = format!("Remove the images of containers ({})", bytes(size(CONTAINERS)));
        steps.push(step("containers", title));
    }
    if !others.is_empty() {
        let some: Vec<&str> = others.iter().take(20).copied().collect();
        let more = others.len().saturating_sub(some.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let title =
            format!("Overwrite everything else in the state folder: {}{more}", some.join(", "));
        steps.push(step("others", title));
    }
    steps.push(match keep_models {
        true => step("models", format!("Leave the models ({})", bytes(size(MODELS)))),
        false => step("models", format!("Remove the models ({})", bytes(size(MODELS)))),
    });
    steps.push(step("look", "Look whether anything is left, and say so".to_owned()));
    match (disk, keep_models) {
        (Some(_), false) => steps.push(step(
            "disk",
            "Destroy the key of the disk with everything on it, and start the machine again with a new one".to_owned(),
        )),
        (Some(_), true) => steps.push(step(
            "disk",
            "Remove everything else on the disk but the models, and start the machine again; the disk's key stays, because the models need it"
                .to_owned(),
        )),
        (None, _) => {}
    }
    steps.push(step("new", "Be a new box, which whoever stands at it can claim".to_owned()));
    Plan { title: "End this box".to_owned(), steps }
}

/// What there is to be erased, by name.
pub(crate) fn look(state: &Path) -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        seen.push(Seen { name, bytes: size_of(&entry.path())? });
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// From here on it is carried out, by this process or by the next start.
pub(crate) fn order(state: &Path, order: &Order) -> io::Result<()> {
    let text = serde_json::to_vec(order).expect("an order has only plain values");
    write_durably(&state.join(END), &text)
}

/// Whether a box is being ended. Nothing may use the state folder before it was.
pub fn ending(state: &Path) -> bool {
    state.join(END).exists()
}

/// Carries out what was ordered, if anything was; no part of the box may run. What was done is written down at its end, and the order goes
/// when [`over`] is called: until then every start does it again.
pub(crate) fn carry_out(state: &Path) -> io::Result<Option<EndedBox>> {
    if !ending(state) {
        return Ok(None);
    }
    let order = read_order(&state.join(END));
    // What an earlier try had counted.
    let before = EndedBox::read(state);
    let (mut overwritten, mut removed) = before.map_or((0, 0), |b| (b.overwritten, b.removed));
    let mut left = Vec::new();
    for _ in 0..LOOKS {
        let mut all = walk(state, order.keep_models)?;
        all.files.sort_by(|a, b| (turn(a), a).cmp(&(turn(b), b)));
        left.clear();
        let mut not_erased = Vec::new();
        for file in all.files {
            match erase(&state.join(&file), turn(&file)) {
                Ok(true) => overwritten += 1,
                Ok(false) => removed += 1,
                Err(error) => {
                    left.push(format!("{}: {error}", file.display()));
                    not_erased.push(file);
                }
            }
        }
        // From the inside. One that cannot be removed holds something that is told of.
        for folder in all.folders.iter().rev() {
            let _ = fs::remove_dir(state.join(folder));
        }
        for part in only_removed(&not_erased, &all.unread) {
            match remove_tree(&state.join(&part)) {
                Ok(files) => removed += files,
                Err(error) => log::error!("{} cannot be removed: {error}", part.display()),
            }
        }
        sync(state)?;
        let again = walk(state, order.keep_models)?;
        if again.files.is_empty() && again.unread.is_empty() {
            left.clear();
            break;
        }
        left.extend(again.unread.iter().map(|(path, why)| format!("{}: {why}", path.display())));
    }
    left.truncate(MOST_LEFT);
    let ended = EndedBox {
        at: jiff::Timestamp::now().to_string(),
        record: order.record,
        audit: order.audit,
        overwritten,
        removed,
        keep_models: order.keep_models,
        left,
        disk: None,
    };
    write_ended(state, &ended)?;
    Ok(Some(ended))
}

/// What was done, for the pages of the box that is new since.
pub(crate) fn write_ended(state: &Path, ended: &EndedBox) -> io::Result<()> {
    let text = serde_json::to_vec(ended).expect("plain values");
    write_durably(&state.join(ENDED), &text)
}

/// It is done: the next start is an ordinary one.
pub(crate) fn over(state: &Path) -> io::Result<()> {
    fs::remove_file(state.join(END))?;
    sync(state)
}

/// An order that cannot be read was one all the same: everything goes.
fn read_order(path: &Path) -> Order {
    let read = fs::read(path).map_err(|error| error.to_string());
    let order = read.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
    order.unwrap_or_else(|error| {
        log::error!("{} cannot be read ({error}): everything is erased", path.display());
        let audit = AuditHead { number: 0, hash: String::new() };
        Order { keep_models: false, record: String::new(), audit }
    })
}

/// Pure: when a file goes, by its path in the state folder.
fn turn(path: &Path) -> Turn {
    let names: Vec<&str> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().unwrap_or("?"),
            _ => "..",
        })
        .collect();
    match names[..] {
        [MODELS | CONTAINERS | "packed", ..] => Turn::Bulk,
        ["kv", _, "keys", ..] => Turn::Key,
        ["kv", ..] => Turn::Bulk,
        ["pki" | "backup" | "restore" | "upstreams", ..] => Turn::Key,
        [name] if name.ends_with(".pass") || name.ends_with(".key") => Turn::Key,
        [.., name] if name.ends_with(".key") || name == "key" => Turn::Key,
        _ => Turn::Precious,
    }
}

/// What goes.
#[derive(Debug, Default)]
struct Found {
    /// Every file, link and socket.
    files: Vec<PathBuf>,
    /// Each before those in it.
    folders: Vec<PathBuf>,
    /// Folders that cannot be read, and why. They stop nothing.
    unread: Vec<(PathBuf, io::Error)>,
}

fn walk(state: &Path, keep_models: bool) -> io::Result<Found> {
    let mut found = Found::default();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let folder = state.join(&below);
        // An engine that was taken over may have shut what it keeps: it has the same user.
        let _ = open_up(&folder);
        let within = match read(&folder) {
            Err(error) if below.as_os_str().is_empty() => return Err(error),
            Err(error) => {
                log::error!("{} cannot be read: {error}", below.display());
                found.unread.push((below, error));
                continue;
            }
            Ok(within) => within,
        };
        for (name, is_folder) in within {
            let path = below.join(name);
            if stays(&path, keep_models) {
                continue;
            }
            match is_folder {
                true => {
                    found.folders.push(path.clone());
                    open.push(path);
                }
                false => found.files.push(path),
            }
        }
    }
    Ok(found)
}

/// What is in a folder, and whether each is one. A link to a folder is none: it is removed, not followed.
fn read(folder: &Path) -> io::Result<Vec<(OsString, bool)>> {
    let entries = fs::read_dir(folder)?;
    entries
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_dir()))))
        .collect()
}

/// Pure: which parts go as they are, without that what is in them is overwritten: those with folders that are deeper than a path may be long, in which this
/// box itself keeps nothing. Not while there is something else in the part that could not be overwritten, or not be gone into: that is told of.
fn only_removed(not_erased: &[PathBuf], unread: &[(PathBuf, io::Error)]) -> BTreeSet<PathBuf> {
    let too_deep = |error: &io::Error| error.kind() == io::ErrorKind::InvalidFilename;
    let shut = unread.iter().filter(|(_, error)| !too_deep(error)).map(|(path, _)| path);
    let stay: BTreeSet<PathBuf> = not_erased.iter().chain(shut).map(|path| part_of(path)).collect();
    let deep = unread.iter().filter(|(_, error)| too_deep(error)).map(|(path, _)| part_of(path));
    deep.filter(|part| !stay.contains(part)).collect()
}

/// What goes as a whole where something in it cannot be gone into. Of `run` that is one more folder: there is something that stays.
fn part_of(path: &Path) -> PathBuf {
    let parts = if path.starts_with("run") { 2 } else { 1 };
    path.components().take(parts).collect()
}

fn stays(path: &Path, keep_models: bool) -> bool {
    let is = |name: &str| path == Path::new(name);
    is(END) || is(ENDED) || is(LOCK) || (keep_models && is(MODELS)) || is("lost+found")
}

/// True where it was overwritten.
fn erase(path: &Path, turn: Turn) -> io::Result<bool> {
    let about = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        about => about?,
    };
    // The bytes of a file that has another name elsewhere are somebody else's too.
    let overwrite = about.is_file() && turn != Turn::Bulk && about.nlink() == 1;
    if overwrite && about.len() > 0 {
        let _ = open_up(path);
        overwrite_with_zeros(path, about.len())?;
    }
    fs::remove_file(path)?;
    Ok(overwrite)
}

fn overwrite_with_zeros(path: &Path, length: u64) -> io::Result<()> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut file = OpenOptions::new().write(true).custom_flags(no_link).open(path)?;
    let zeros = vec![0; PIECE];
    let mut left = length;
    while left > 0 {
        let piece = left.min(PIECE as u64) as usize;
        file.write_all(&zeros[..piece])?;
        left -= piece as u64;
    }
    file.sync_all()?;
    file.set_len(0)
}

/// What is below, as far as it can be looked at: what goes meanwhile has no size, nor what is deeper than a path may be long.
fn size_of(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut open = vec![(path.to_owned(), path.symlink_metadata()?)];
    while let Some((path, about)) = open.pop() {
        if !about.is_dir() {
            bytes += about.len();
            continue;
        }
        let within = read(&path).unwrap_or_default();
        let within = within.into_iter().map(|(name, _)| path.join(name));
        open.extend(
            within.filter_map(|path| path.symlink_metadata().ok().map(|about| (path, about))),
        );
    }
    Ok(bytes)
}

fn bytes(count: u64) -> String {
    match count {
        0..=1_048_575 => format!("{} KiB", count.div_ceil(1 << 10)),
        1_048_576..=1_073_741_823 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-of-the-marsh-4711";

    fn state() -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        for file in [
            "polder.db",
            "polder.db-wal",
            "gone.jsonl",
            "site.toml",
            "HISTORY/000001.toml",
            "audit/trail.jsonl",
            "pki/ca.key",
            "pki/leaf.pem",
            "backup/key",
            "relay.pass",
            "seed.toml",
            "runs.json",
            "kv/fast/keys/aa",
            "kv/fast/blocks",
            "packed/fast/w.bin",
            "containers/fetched/images/aa/bb",
            "upstreams/secrets.json",
            "run/x.json",
            "run/supervisor.lock",
            "weights/blobs/sha256/aa",
            "before-restore-1/polder.db",
            "of-a-newer-version/deep/secret",
        ] {
            let path = state.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{CANARY} {file}")).unwrap();
        }
        state
    }

    fn ordered(state: &Path, keep_models: bool) {
        let audit = AuditHead { number: 3, hash: "ab".into() };
        order(state, &Order { keep_models, record: "cd".into(), audit }).unwrap();
    }

    fn files(state: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![state.to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => open.push(entry.path()),
                    false => {
                        found.push(entry.path().strip_prefix(state).unwrap().display().to_string())
                    }
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_plan_is_as_written_down() {
        let seen = |name: &str, bytes| Seen { name: name.into(), bytes };
        let there = [
            seen("polder.db", 1 << 20),
            seen("kv", 3 << 30),
            seen("weights", 40 << 30),
            seen("containers", 9 << 30),
            seen("relay.pass", 99),
            seen("notes", 5),
        ];
        let text = format!(
            "{}\n\n{}\n\n{}\n",
            plan(&there, false, Some(Lock::Sealed)),
            plan(&there, true, Some(Lock::Sealed)),
            plan(&there[..2], false, None)
        );
        assert_eq!(text, include_str!("erase.golden.txt"));
    }

    #[test]
    fn nothing_is_left_but_the_record_and_the_models_where_they_stay() {
        for keep in [true, false] {
            let state = state();
            assert_eq!(carry_out(state.path()).unwrap(), None, "nobody asked for it");
            ordered(state.path(), keep);
            let ended = carry_out(state.path()).unwrap().unwrap();
            assert_eq!(ended.left, Vec::<String>::new());
            assert_eq!(ended.overwritten + ended.removed, if keep { 20 } else { 21 });
            let mut expected = vec![END, ENDED, "run/supervisor.lock"];
            if keep {
                expected.push("weights/blobs/sha256/aa");
            }
            assert_eq!(files(state.path()), expected);
            over(state.path()).unwrap();
            assert!(!ending(state.path()));
            assert_eq!(EndedBox::read(state.path()), Some(ended));
        }
    }

    #[test]
    fn a_power_cut_anywhere_is_gone_on_from_at_the_next_start() {
        let mut all = Vec::new();
        all.append(&mut walk(state().path(), false).unwrap().files);
        all.sort_by(|a, b| (turn(a), a).cmp(&(turn(b), b)));
        assert_eq!(all[0], Path::new("backup/key"), "keys go first");
        for cut in 0..all.len() {
            let state = state();
            ordered(state.path(), false);
            for file in &all[..cut] {
                erase(&state.path().join(file), turn(file)).unwrap();
            }
            // One that was overwritten and not removed yet.
            let path = state.path().join(&all[cut]);
            fs::write(&path, vec![0; 10]).unwrap();
            carry_out(state.path()).unwrap().unwrap();
            // And once more, since the order was not taken away.
            let ended = carry_out(state.path()).unwrap().unwrap();
            assert_eq!(files(state.path()), [END, ENDED, "run/supervisor.lock"]);
            assert_eq!(ended.audit.number, 3);
        }
    }

    #[test]
    fn the_bytes_themselves_are_overwritten_and_a_file_that_is_also_elsewhere_is_not() {
        let (state, elsewhere) = (state(), tempfile::tempdir().unwrap());
        let letter = elsewhere.path().join("letter");
        fs::write(&letter, CANARY).unwrap();
        fs::hard_link(&letter, state.path().join("hard")).unwrap();
        std::os::unix::fs::symlink(&letter, state.path().join("soft")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), state.path().join("folder")).unwrap();
        // Somebody still has it open: what they read is what is on the disk.
        let open = File::open(state.path().join("polder.db")).unwrap();
        let before =
            io::read_to_string(File::open(state.path().join("polder.db")).unwrap()).unwrap();
        assert!(before.contains(CANARY));
        overwrite_with_zeros(&state.path().join("polder.db"), before.len() as u64).unwrap();
        assert_eq!(io::read_to_string(open).unwrap(), "");
        ordered(state.path(), false);
        assert_eq!(carry_out(state.path()).unwrap().unwrap().left, Vec::<String>::new());
        assert_eq!(fs::read_to_string(&letter).unwrap(), CANARY);
    }

    #[test]
    fn what_is_deeper_than_a_path_may_be_long_or_shut_goes_too() {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        use std::os::unix::fs::PermissionsExt;
        let (state, name) = (state(), "d".repeat(200));
        for dug in ["containers/slots/big/storage", "kv/fast/blocks-of-later", "notes"] {
            let at = state.path().join(dug);
            fs::create_dir_all(&at).unwrap();
            let folder = OFlags::RDONLY | OFlags::DIRECTORY;
            let mut at = openat(CWD, &at, folder, Mode::empty()).unwrap();
            for _ in 0..25 {
                mkdirat(&at, &name, Mode::RWXU).unwrap();
                at = openat(&at, &name, folder, Mode::empty()).unwrap();
            }
            openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        }
        fs::create_dir_all(state.path().join("run/shut/in")).unwrap();
        fs::set_permissions(state.path().join("run/shut"), fs::Permissions::from_mode(0o000))
            .unwrap();
        assert!(look(state.path()).unwrap().iter().any(|seen| seen.name == "notes"));
        ordered(state.path(), true);
        assert_eq!(carry_out(state.path()).unwrap().unwrap().left, Vec::<String>::new());
        let stays = [END, ENDED, "run/supervisor.lock", "weights/blobs/sha256/aa"];
        assert_eq!(files(state.path()), stays);
        assert!(!state.path().join("containers").exists() && !state.path().join("kv").exists());
    }

    #[test]
    fn keys_that_an_engine_shut_away_are_overwritten_all_the_same() {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
        use std::os::unix::fs::PermissionsExt;
        let state = state();
        let keys = state.path().join("kv/fast/keys");
        let key = File::open(keys.join("aa")).unwrap();
        for shut in [keys.join("aa"), keys, state.path().join("kv/fast"), state.path().join("run")]
        {
            fs::set_permissions(shut, fs::Permissions::from_mode(0o000)).unwrap();
        }
        ordered(state.path(), false);
        let at = state.path().to_owned();
        let ended = std::thread::spawn(move || {
            // Somebody whom rights bind: root's own are put off, for this thread.
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            set_capabilities(None, none).unwrap();
            carry_out(&at).unwrap().unwrap()
        });
        let ended = ended.join().unwrap();
        assert_eq!(ended.left, Vec::<String>::new());
        assert_eq!(ended.overwritten, 17);
        assert_eq!(io::read_to_string(key).unwrap(), "", "its bytes are on the disk no more");
        assert_eq!(files(state.path()), [END, ENDED, "run/supervisor.lock"]);
    }

    #[test]
    fn what_could_not_be_overwritten_is_not_removed_with_what_is_too_deep() {
        let deep = |at: &str| (PathBuf::from(at), io::Error::from_raw_os_error(36));
        let shut = |at: &str| (PathBuf::from(at), io::Error::from_raw_os_error(13));
        let parts = |not_erased: &[&str], unread: &[(PathBuf, io::Error)]| {
            let not_erased: Vec<PathBuf> = not_erased.iter().map(PathBuf::from).collect();
            let parts = only_removed(&not_erased, unread).into_iter();
            parts.map(|part| part.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            parts(&[], &[deep("kv/a/d/d"), deep("run/a/b"), deep("notes/d")]),
            ["kv", "notes", "run/a"]
        );
        assert!(parts(&[], &[shut("kv/a/keys"), deep("kv/b/d/d")]).is_empty());
        assert!(parts(&["kv/a/keys/aa"], &[deep("kv/b/d/d")]).is_empty());
        assert_eq!(parts(&["pki/ca.key"], &[deep("kv/b/d/d")]), ["kv"]);
    }

    #[test]
    fn an_order_that_cannot_be_read_is_one_for_everything() {
        let state = state();
        fs::write(state.path().join(END), "{").unwrap();
        let ended = carry_out(state.path()).unwrap().unwrap();
        assert!(!ended.keep_models && !state.path().join("weights").exists());
    }
}
