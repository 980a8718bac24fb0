//! The folder: who may use it, and whether what lies there is for us.
//!
//! ```text
//! lock            held by the engine that uses the folder
//! store           what it was made for, in lines of text with a check
//! clock           the newest time that the store has seen
//! keys/           keys.rs
//! blocks-000000   segments.rs
//! entries-000000
//! ```

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use crate::digest::hex;
use crate::keys::{KeyFolder, not_elsewhere, random};
use crate::options::{OpenError, StoreOptions};
use crate::record::StoreIdentity;

/// Changes with everything that changes a byte on disk.
const FORMAT: u32 = 1;

/// Removes a store's folder that no engine uses, keys first: what lay there can be read by nobody. A folder that is not there
/// is no failure. Waits for the disk.
pub fn erase(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Folder { path: path.to_owned(), source };
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let _lock = lock(path)?;
    let keys = path.join("keys");
    // A link in its place would lead to somebody else's keys; it goes with the rest.
    if keys.symlink_metadata().is_ok_and(|about| about.is_dir()) {
        KeyFolder::open(keys).and_then(|keys| keys.destroy_all()).map_err(failed)?;
    }
    match std::fs::remove_dir_all(path) {
        // A folder that is mounted here, or whose own place is read-only, stays; it is empty.
        Err(_) if std::fs::read_dir(path).is_ok_and(|mut there| there.next().is_none()) => Ok(()),
        done => done.map_err(failed),
    }
}

/// Bytes of the whole file system that this folder, or the nearest one above it, is on.
pub fn disk_size(path: &Path) -> io::Result<u64> {
    let there = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(there)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) identity: StoreIdentity,
    pub(crate) keys: KeyFolder,
    _lock: File,
}

impl Folder {
    /// Locks the folder, and empties it where it was kept for something else.
    pub(crate) fn open(path: &Path, options: &StoreOptions) -> Result<Self, OpenError> {
        let at = |path: PathBuf| move |source| OpenError::Folder { path, source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path.to_owned()))?;
        let lock = lock(path)?;
        let keys_path = path.join("keys");
        let keys = KeyFolder::open(keys_path.clone()).map_err(at(keys_path))?;
        let text = ours(path, &keys, options).map_err(at(path.join("store")))?;
        let mut identity = [0; 32];
        identity.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Ok(Self { path: path.to_owned(), identity: StoreIdentity(identity), keys, _lock: lock })
    }

    /// The newest time that was noted, if it can be read.
    pub(crate) fn seen(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.path.join("clock")).ok()?;
        let (time, check) = text.trim_end().split_once(' ')?;
        (check_of(time) == check).then(|| time.parse().ok())?
    }

    /// Notes the time.
    pub(crate) fn note(&self, now: u64) -> io::Result<()> {
        let time = now.to_string();
        replace(&self.path.join("clock"), &format!("{time} {}\n", check_of(&time)))
    }
}

/// Takes the folder for this process, until what is returned is dropped.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = path.join("lock");
    let at = |source| OpenError::Folder { path: lock_path.clone(), source };
    // What is no plain file is not ours, and must not keep the folder from being erased.
    if lock_path.symlink_metadata().is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        std::fs::remove_file(&lock_path).map_err(at)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(not_elsewhere());
    let lock = options.open(&lock_path).map_err(at)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(at(error)),
    }
}

/// What the folder was made for: what is there if that fits, or a new beginning.
fn ours(path: &Path, keys: &KeyFolder, options: &StoreOptions) -> io::Result<String> {
    let store = path.join("store");
    let found = std::fs::read_to_string(&store).unwrap_or_default();
    let number = found.lines().find_map(|line| line.strip_prefix("number "));
    if let Some(number) = number
        && description(options, number) == found
    {
        return Ok(found);
    }
    let before = empty(path, keys)?;
    if before {
        log::info!(
            "kept KV is dropped: it was for another model, another block size or another version"
        );
    }
    let text = description(options, &hex(&random::<16>()?));
    replace(&store, &text)?;
    Ok(text)
}

fn description(options: &StoreOptions, number: &str) -> String {
    let lines = format!(
        "polder-kv {FORMAT}\nmodel {}\nblock_bytes {}\nblock_tokens {}\nsegment_bytes {}\nnumber {number}\n",
        hex(&options.model.0),
        options.block_bytes,
        options.block_tokens,
        options.segment_bytes,
    );
    let check = check_of(&lines);
    format!("{lines}check {check}\n")
}

fn check_of(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// Removes what is ours, keys first. Says whether there was anything.
fn empty(path: &Path, keys: &KeyFolder) -> io::Result<bool> {
    keys.destroy_all()?;
    let mut any = false;
    for entry in path.read_dir()? {
        let name = entry?.file_name();
        let ours = name.to_str().is_some_and(|name| {
            ["store", "clock"].contains(&name)
                || name.starts_with("blocks-")
                || name.starts_with("entries-")
        });
        if ours {
            std::fs::remove_file(path.join(name))?;
            any = true;
        }
    }
    Ok(any)
}

/// Writes a small file so that either the old or the new one is there.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
