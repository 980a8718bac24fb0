//! Root's part: writes a version into the slot that does not run, and tells the boot loader what to take.
//!
//! At no moment is there a boot entry for something that is not whole. First the entry of what the slot held goes;
//! then root and hashes are written and read back; then the partitions get the numbers by which they are found;
//! last comes the new entry, under another name until all of it is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use polder_recipes::Digest;
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::disk::{BOOT, Disk, ENTRIES, answer, disk, entries};
use crate::{
    Entry, Here, Keys, Manifest, Part, Shelf, Slots, TRIES, UpdateError, Version, judge, look,
};

/// Bytes that are moved at once.
const PIECE: usize = 4 << 20;

/// How far the writing is; for the page that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is written.
    pub version: Version,
    /// What is being done: `writing`, `reading back`.
    pub phase: String,
    /// Bytes done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Whether it is over.
    pub state: JobState,
}

/// Whether a job is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Not yet.
    Running,
    /// It is, well.
    Done,
    /// It is, because of this: one sentence.
    Failed(String),
}

/// Writes a version that was brought into the other slot, to be tried from the next start on.
pub fn write(
    shelf: &Shelf,
    version: &Version,
    keys: &Keys,
    here: &Here,
    tell: &mut dyn FnMut(&Job),
) -> Result<(), UpdateError> {
    // Whoever asked may have been wrong or worse: everything is judged here once more.
    let manifest = shelf.manifest(version, keys)?;
    if manifest.version != *version {
        return Err(UpdateError::NotHere(version.clone()));
    }
    judge(&manifest, here, None)?;
    let disk = disk(&here.arch)?;
    look(here, keys)?.fits(version, manifest.root.size, manifest.verity.size)?;
    let total = 2 * (manifest.root.size + manifest.verity.size) + manifest.entry.size;
    let phase = "writing".to_owned();
    let mut job = Job { version: version.clone(), phase, done: 0, total, state: JobState::Running };
    tell(&job);
    let boot = Path::new(BOOT);
    let entry = believed_entry(shelf, &manifest)?;
    forget_others(boot, here)?;
    fill(shelf, &manifest, &disk, &mut job, tell)?;
    name_partitions(&manifest, &disk)?;
    put_entry(boot, version, &entry)?;
    job.done = total;
    tell(&job);
    Ok(())
}

/// The boot entry, in memory, as the manifest says: it is read once only.
fn believed_entry(shelf: &Shelf, manifest: &Manifest) -> Result<Vec<u8>, UpdateError> {
    let Part { name, size, sha256 } = &manifest.entry;
    let path = shelf.file(manifest, name);
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(UpdateError::file("read", &path))?;
    file.take(size + 1).read_to_end(&mut bytes).map_err(UpdateError::file("read", &path))?;
    if digest(Sha256::new_with_prefix(&bytes)) != *sha256 {
        return Err(UpdateError::WrongFile { path, version: manifest.version.clone() });
    }
    Ok(bytes)
}

/// Removes the entries of everything but what runs: their slot is about to be written over.
fn forget_others(boot: &Path, here: &Here) -> Result<(), UpdateError> {
    let folder = boot.join(ENTRIES);
    let others = entries(boot)?.into_iter().filter(|entry| entry.version != here.version);
    for entry in others {
        let path = folder.join(entry.file());
        fs::remove_file(&path).map_err(UpdateError::file("remove", &path))?;
    }
    settle(&folder)
}

/// Writes root and hashes, and reads both back.
fn fill(
    shelf: &Shelf,
    manifest: &Manifest,
    disk: &Disk,
    job: &mut Job,
    tell: &mut dyn FnMut(&Job),
) -> Result<(), UpdateError> {
    let [root, verity] = &disk.other;
    let parts = [("its hashes", &manifest.verity, verity), ("the system", &manifest.root, root)];
    for (_, part, partition) in &parts {
        let from = shelf.file(manifest, &part.name);
        copy(&from, part, &partition.node, &manifest.version, &mut |bytes| {
            job.done += bytes;
            tell(job);
        })?;
    }
    "reading back".clone_into(&mut job.phase);
    for (what, part, partition) in parts {
        let place = &partition.node;
        let found = read(place, part.size, &mut |bytes| {
            job.done += bytes;
            tell(job);
        })?;
        if found != part.sha256 {
            let (version, place) = (manifest.version.clone(), place.clone());
            return Err(UpdateError::ReadBack { what, version, place });
        }
    }
    Ok(())
}

/// Copies a file that has to be as its manifest says, and does not come back before it is on the disk.
fn copy(
    from: &Path,
    part: &Part,
    to: &Path,
    version: &Version,
    tell: &mut dyn FnMut(u64),
) -> Result<(), UpdateError> {
    let source = File::open(from).map_err(UpdateError::file("read", from))?;
    let mut source = source.take(part.size + 1);
    let mut target =
        OpenOptions::new().write(true).open(to).map_err(UpdateError::file("open", to))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = source.read(&mut piece).map_err(UpdateError::file("read", from))?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
        target.write_all(&piece[..count]).map_err(UpdateError::file("write to", to))?;
        tell(count as u64);
    }
    target.sync_all().map_err(UpdateError::file("write to", to))?;
    if digest(hash) != part.sha256 {
        return Err(UpdateError::WrongFile { path: from.to_owned(), version: version.clone() });
    }
    // What is read next comes from the disk.
    let _ = fadvise(&target, 0, None, Advice::DontNeed);
    Ok(())
}

/// The digest of the first bytes of a place.
fn read(place: &Path, bytes: u64, tell: &mut dyn FnMut(u64)) -> Result<Digest, UpdateError> {
    let mut source = File::open(place).map_err(UpdateError::file("read", place))?.take(bytes);
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = source.read(&mut piece).map_err(UpdateError::file("read", place))?;
        if count == 0 {
            return Ok(digest(hash));
        }
        hash.update(&piece[..count]);
        tell(count as u64);
    }
}

/// Gives the partitions the numbers by which the boot entry finds them. The kernel's own view is left as it is; it is
/// read anew at the next start.
fn name_partitions(manifest: &Manifest, disk: &Disk) -> Result<(), UpdateError> {
    let [root, verity] = &disk.other;
    let [root_uuid, verity_uuid] = manifest.partition_uuids();
    let label = format!("polder_{}", manifest.version);
    for (partition, uuid) in [(root, root_uuid), (verity, verity_uuid)] {
        for (what, value) in [("--part-uuid", &uuid), ("--part-label", &label)] {
            let mut command = Command::new("sfdisk");
            command.args(["--quiet", "--no-reread", "--no-tell-kernel", what]);
            command.arg(&disk.device).arg(partition.number.to_string()).arg(value);
            answer("sfdisk", &mut command)?;
        }
    }
    Ok(())
}

/// Puts the boot entry in place, with its tries.
fn put_entry(boot: &Path, version: &Version, bytes: &[u8]) -> Result<(), UpdateError> {
    let folder = boot.join(ENTRIES);
    let entry = Entry { version: version.clone(), tries: Some((TRIES, 0)) };
    let path = folder.join(entry.file());
    // The boot loader takes only what ends in `.efi`.
    let beside = folder.join("polder.new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(UpdateError::file("write", &beside))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(UpdateError::file("write", &beside))?;
    settle(&folder)?;
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let found = read(&beside, bytes.len() as u64, &mut |_| {})?;
    if found != digest(Sha256::new_with_prefix(bytes)) {
        let (what, version) = ("the boot entry", version.clone());
        return Err(UpdateError::ReadBack { what, version, place: beside });
    }
    fs::rename(&beside, &path).map_err(UpdateError::file("write", &path))?;
    settle(&folder)
}

/// Leaves what runs: the boot loader takes the other slot at the next start.
pub fn go_back(here: &Here, keys: &Keys) -> Result<Slots, UpdateError> {
    let slots = look(here, keys)?;
    slots.back()?;
    let own = slots.own().ok_or_else(|| {
        UpdateError::Disk(format!("{} runs and has no boot entry of its own", here.version))
    })?;
    let folder = Path::new(BOOT).join(ENTRIES);
    let left = Entry { version: own.version.clone(), tries: Some((0, 1)) };
    let (from, to) = (folder.join(own.file()), folder.join(left.file()));
    fs::rename(&from, &to).map_err(UpdateError::file("rename", &from))?;
    settle(&folder)?;
    look(here, keys)
}

/// Everything of this folder's file system is on the disk when this returns.
fn settle(folder: &Path) -> Result<(), UpdateError> {
    let open = File::open(folder).map_err(UpdateError::file("open", folder))?;
    rustix::fs::syncfs(&open).map_err(|error| UpdateError::file("write", folder)(error.into()))
}

fn digest(hash: Sha256) -> Digest {
    Digest::from_bytes(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::manifest::tests::manifest;

    fn boot(files: &[&str]) -> tempfile::TempDir {
        let boot = tempfile::tempdir().unwrap();
        fs::create_dir_all(boot.path().join(ENTRIES)).unwrap();
        for file in files {
            fs::write(boot.path().join(ENTRIES).join(file), "x").unwrap();
        }
        boot
    }

    fn names(boot: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(boot.join(ENTRIES))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn here() -> Here {
        Here { version: "0.1.0".parse().unwrap(), arch: "x86_64".into() }
    }

    #[test]
    fn only_the_running_versions_entry_is_left_before_anything_is_written() {
        let boot = boot(&["polder_0.1.0.efi", "polder_0.0.9.efi", "polder_0.2.0+0-3.efi", "x.efi"]);
        forget_others(boot.path(), &here()).unwrap();
        assert_eq!(names(boot.path()), ["polder_0.1.0.efi", "x.efi"]);
    }

    #[test]
    fn a_new_entry_comes_with_its_tries_and_leaves_nothing_beside_it() {
        let boot = boot(&["polder_0.1.0.efi"]);
        put_entry(boot.path(), &"0.2.0".parse().unwrap(), b"kernel").unwrap();
        assert_eq!(names(boot.path()), ["polder_0.1.0.efi", "polder_0.2.0+3.efi"]);
        let found = entries(boot.path()).unwrap();
        assert_eq!(found[1].tries, Some((TRIES, 0)));
    }

    fn part(content: &str) -> Part {
        let mut part = manifest("0.2.0").root;
        part.size = content.len() as u64;
        part.sha256 = digest(Sha256::new_with_prefix(content));
        part
    }

    fn place(folder: &Path, name: &str, content: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn what_is_copied_reads_back_with_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let from = place(folder.path(), "from", "a system");
        let to = place(folder.path(), "to", &"old ".repeat(100));
        let (part, version) = (part("a system"), "0.2.0".parse().unwrap());
        let mut told = 0;
        copy(&from, &part, &to, &version, &mut |bytes| told += bytes).unwrap();
        assert_eq!(told, part.size);
        assert_eq!(read(&to, part.size, &mut |_| {}).unwrap(), part.sha256);
        assert_eq!(fs::metadata(&to).unwrap().len(), 400);
    }

    #[test]
    fn a_file_that_is_not_as_its_manifest_says_is_refused_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let to = place(folder.path(), "to", "");
        let (part, version) = (part("a system"), "0.2.0".parse().unwrap());
        for other in ["b system", "a syst", "a system and more"] {
            let from = place(folder.path(), "from", other);
            let error = copy(&from, &part, &to, &version, &mut |_| {}).unwrap_err();
            assert!(matches!(error, UpdateError::WrongFile { .. }), "{other}: {error}");
        }
        let gone = copy(&folder.path().join("none"), &part, &to, &version, &mut |_| {});
        assert!(gone.unwrap_err().to_string().contains("none"));
    }
}
