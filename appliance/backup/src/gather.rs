use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use crate::key::private_folder;
use crate::{BackupError, FORMAT, Fate, fate};

/// The file in a backup that says what it is.
pub(crate) const LABEL: &str = "polder-backup.toml";

/// What a backup says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) format: u32,
    pub(crate) name: String,
    pub(crate) made_at: String,
    pub(crate) made_by: String,
}

/// What was laid out to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Lays out a copy of the small precious state of the box called `name` in `stage`, anew. The box may go on meanwhile: what it writes,
/// it writes whole and renames, or appends; the database is copied in one of its own read transactions.
pub fn gather(state: &Path, stage: &Path, name: &str) -> Result<Gathered, BackupError> {
    clear(stage)?;
    private_folder(stage)?;
    let mut gathered = Gathered::default();
    walk(state, Path::new(""), stage, &mut gathered)?;
    let label = Label {
        format: FORMAT,
        name: name.to_owned(),
        made_at: jiff::Timestamp::now().to_string(),
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let text = toml::to_string(&label).expect("a label has only plain values");
    let path = stage.join(LABEL);
    fs::write(&path, text).map_err(|source| BackupError::File { path, source })?;
    Ok(gathered)
}

/// Removes a folder with everything in it, if it is there.
pub fn clear(folder: &Path) -> Result<(), BackupError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::File { path: folder.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn walk(
    state: &Path,
    below: &Path,
    stage: &Path,
    gathered: &mut Gathered,
) -> Result<(), BackupError> {
    let folder = state.join(below);
    let fail = |source| BackupError::File { path: folder.clone(), source };
    let mut entries: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(fail)?,
        // It may go while we look.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = below.join(entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            walk_folder(state, &path, stage, gathered)?;
            continue;
        }
        // A link may lead anywhere, a socket nowhere.
        if !kind.is_file() {
            continue;
        }
        let (from, to) = (state.join(&path), stage.join(&path));
        let copied = match fate(&path) {
            Fate::Left(_) => continue,
            Fate::Copied => copy(&from, &to),
            Fate::Database => database(&from, &to),
        };
        let bytes = match copied {
            Err(BackupError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !from.exists() =>
            {
                continue;
            }
            copied => copied?,
        };
        gathered.files += 1;
        gathered.bytes += bytes;
    }
    Ok(())
}

/// Folders of which nothing is copied are not even looked into: models have many files.
fn walk_folder(
    state: &Path,
    path: &Path,
    stage: &Path,
    gathered: &mut Gathered,
) -> Result<(), BackupError> {
    let inside = path.join("any");
    let left = matches!(fate(&inside), Fate::Left(_));
    if left && path != Path::new("weights") {
        return Ok(());
    }
    walk(state, path, stage, gathered)
}

/// Copies a file. One that only grows by lines is cut after its last whole one.
fn copy(from: &Path, to: &Path) -> Result<u64, BackupError> {
    let fail = |source| BackupError::File { path: from.to_owned(), source };
    private_folder(to.parent().expect("it is in the stage"))?;
    let mut source = File::open(from).map_err(fail)?;
    let meta = source.metadata().map_err(fail)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    source.read_to_end(&mut bytes).map_err(fail)?;
    if from.extension().is_some_and(|end| end == "jsonl") {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(meta.permissions().mode() & 0o700)
        .open(to)
        .map_err(|source| BackupError::File { path: to.to_owned(), source })?;
    let written = file.write_all(&bytes).and_then(|()| file.set_modified(meta.modified()?));
    written.map_err(|source| BackupError::File { path: to.to_owned(), source })?;
    Ok(bytes.len() as u64)
}

/// Copies the database through a second connection, which only reads: its one writer stays the gateway.
fn database(from: &Path, to: &Path) -> Result<u64, BackupError> {
    let fail = BackupError::Database;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags).map_err(fail)?;
    source.busy_timeout(std::time::Duration::from_secs(10)).map_err(fail)?;
    let mut copy = Connection::open(to).map_err(fail)?;
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(to, private)
        .map_err(|source| BackupError::File { path: to.to_owned(), source })?;
    {
        let backup = rusqlite::backup::Backup::new(&source, &mut copy).map_err(fail)?;
        // All pages in one step: one read transaction, so one moment of the database. Writers go on beside it.
        loop {
            use rusqlite::backup::StepResult::{Busy, Done, Locked, More};
            match backup.step(-1).map_err(fail)? {
                Done => break,
                More => {}
                Busy | Locked => std::thread::sleep(std::time::Duration::from_millis(20)),
                _ => {}
            }
        }
    }
    // One file, and nothing beside it.
    copy.pragma_update(None, "journal_mode", "DELETE").map_err(fail)?;
    drop(copy);
    Ok(fs::metadata(to).map_or(0, |meta| meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_in_the_copy_while_another_one_writes_on() {
        let state = tempfile::tempdir().unwrap();
        let members = Connection::open(state.path().join("polder.db")).unwrap();
        members
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1);",
            )
            .unwrap();
        members.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (2);").unwrap();
        let stage = state.path().join("backup/stage");
        let gathered = gather(state.path(), &stage, "birch").unwrap();
        assert_eq!(gathered.files, 1);
        let copy = Connection::open(stage.join("polder.db")).unwrap();
        let count: i64 = copy.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
        assert!(!stage.join("polder.db-wal").exists());
    }

    #[test]
    fn half_a_line_of_the_trail_is_not_copied_and_no_link_is_followed() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("audit")).unwrap();
        fs::write(state.path().join("audit/trail.jsonl"), "{\"a\":1}\n{\"b\"").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", state.path().join("link")).unwrap();
        let stage = state.path().join("backup/stage");
        gather(state.path(), &stage, "birch").unwrap();
        assert_eq!(fs::read_to_string(stage.join("audit/trail.jsonl")).unwrap(), "{\"a\":1}\n");
        assert!(!stage.join("link").exists());
        // Again, over what an earlier one left.
        gather(state.path(), &stage, "birch").unwrap();
    }
}
