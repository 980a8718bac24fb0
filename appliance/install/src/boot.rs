//! What the firmware and the boot loader read of a box: which of the stick's files that are, how they come to the
//! disk, and whether they are right there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// What firmware looks for on a disk that it knows nothing about. It gets its name last.
const STARTERS: &str = "EFI/BOOT";
/// Until then.
const UNFINISHED: &str = "unfinished";

/// A file of the boot partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootFile {
    /// Below the boot partition.
    pub(crate) name: PathBuf,
    pub(crate) from: From,
}

/// Where its content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    File(PathBuf),
    Text(String),
}

/// What is on the disk, and what must be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// As it is called now.
    pub(crate) name: PathBuf,
    digest: [u8; 32],
}

/// The files that a box of this version has, of those in the stick's boot partition. People keep other things
/// there, and systems that see a stick leave things behind: none of that goes on.
pub(crate) fn boot_files(stick: &Path, version: &str) -> io::Result<Vec<BootFile>> {
    let mut names = vec![PathBuf::from(format!("EFI/Linux/polder_{version}.efi"))];
    for folder in ["EFI/systemd", "loader/keys", STARTERS] {
        collect(stick, Path::new(folder), &mut names)?;
    }
    if stick.join("loader/entries.srel").is_file() {
        names.push("loader/entries.srel".into());
    }
    let file = |name: PathBuf| BootFile { from: From::File(stick.join(&name)), name };
    Ok(names.into_iter().map(file).collect())
}

fn collect(root: &Path, folder: &Path, names: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut found = entries.collect::<io::Result<Vec<_>>>()?;
    found.sort_by_key(std::fs::DirEntry::file_name);
    for entry in found {
        let name = folder.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => collect(root, &name, names)?,
            false => names.push(name),
        }
    }
    Ok(())
}

/// Which side a file could not be copied because of.
#[derive(Debug)]
pub(crate) enum Side {
    Stick(PathBuf, io::Error),
    Disk(io::Error),
}

/// Writes files to a boot partition that is mounted at `to`. What firmware starts from has another name still.
pub(crate) fn write(files: &[BootFile], to: &Path) -> Result<Vec<Written>, Side> {
    files.iter().map(|file| write_one(file, to)).collect()
}

fn write_one(file: &BootFile, to: &Path) -> Result<Written, Side> {
    let content = match &file.from {
        From::Text(text) => text.clone().into_bytes(),
        From::File(path) => fs::read(path).map_err(|error| Side::Stick(path.clone(), error))?,
    };
    let name = match file.name.starts_with(STARTERS) {
        true => file.name.with_extension(UNFINISHED),
        false => file.name.clone(),
    };
    let path = to.join(&name);
    let put = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&path)?;
        file.write_all(&content)?;
        file.sync_all()
    };
    put().map_err(Side::Disk)?;
    Ok(Written { name, digest: Sha256::digest(&content).into() })
}

/// The first file below `at` that is not as it was written.
pub(crate) fn first_different(written: &[Written], at: &Path) -> io::Result<Option<PathBuf>> {
    for file in written {
        let mut hash = Sha256::new();
        let mut from = File::open(at.join(&file.name))?;
        let mut piece = vec![0; 1 << 20];
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                break;
            }
            hash.update(&piece[..length]);
        }
        if <[u8; 32]>::from(hash.finalize()) != file.digest {
            return Ok(Some(file.name.clone()));
        }
    }
    Ok(None)
}

/// Gives what firmware starts from its name: from here on the disk is a box.
pub(crate) fn finish(files: &[BootFile], at: &Path) -> io::Result<()> {
    for file in files.iter().filter(|file| file.name.starts_with(STARTERS)) {
        let name = at.join(&file.name);
        fs::rename(name.with_extension(UNFINISHED), &name)?;
    }
    Ok(())
}

/// Whether firmware finds something to start from.
pub(crate) fn has_starter(at: &Path) -> io::Result<bool> {
    let mut names = Vec::new();
    collect(at, Path::new(STARTERS), &mut names)?;
    let named = |name: &PathBuf| name.extension().is_some_and(|e| e.eq_ignore_ascii_case("efi"));
    Ok(names.iter().any(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stick() -> tempfile::TempDir {
        let stick = tempfile::tempdir().unwrap();
        for name in [
            "EFI/BOOT/BOOTX64.EFI",
            "EFI/Linux/polder_0.1.0.efi",
            "EFI/Linux/polder_0.0.9.efi",
            "EFI/systemd/systemd-bootx64.efi",
            "loader/entries.srel",
            "loader/loader.conf",
            "loader/keys/polder/db.auth",
            "seed.html",
            "System Volume Information/x",
        ] {
            let path = stick.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        stick
    }

    #[test]
    fn a_box_gets_its_own_boot_files_and_nothing_else_of_the_stick() {
        let stick = stick();
        let files = boot_files(stick.path(), "0.1.0").unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "EFI/Linux/polder_0.1.0.efi",
                "EFI/systemd/systemd-bootx64.efi",
                "loader/keys/polder/db.auth",
                "EFI/BOOT/BOOTX64.EFI",
                "loader/entries.srel",
            ]
        );
    }

    #[test]
    fn a_disk_on_which_the_power_was_cut_does_not_start() {
        let (stick, disk) = (stick(), tempfile::tempdir().unwrap());
        let files = boot_files(stick.path(), "0.1.0").unwrap();
        let starter = disk.path().join("EFI/BOOT/BOOTX64.EFI");
        write(&files, disk.path()).unwrap();
        assert!(!starter.exists() && !has_starter(disk.path()).unwrap());
        finish(&files, disk.path()).unwrap();
        assert_eq!(fs::read_to_string(starter).unwrap(), "EFI/BOOT/BOOTX64.EFI");
        assert!(has_starter(disk.path()).unwrap());
    }

    #[test]
    fn a_file_that_reads_back_differently_is_named() {
        let (stick, disk) = (stick(), tempfile::tempdir().unwrap());
        let mut files = boot_files(stick.path(), "0.1.0").unwrap();
        files.push(BootFile { name: "loader/loader.conf".into(), from: From::Text("x".into()) });
        let written = write(&files, disk.path()).unwrap();
        assert_eq!(first_different(&written, disk.path()).unwrap(), None);
        let entry = Path::new("EFI/Linux/polder_0.1.0.efi");
        fs::write(disk.path().join(entry), "EFI/Linux/polder_0.1.0.eFi").unwrap();
        assert_eq!(first_different(&written, disk.path()).unwrap().as_deref(), Some(entry));
    }

    #[test]
    fn a_stick_without_the_running_version_is_the_sticks_fault() {
        let (stick, disk) = (stick(), tempfile::tempdir().unwrap());
        let files = boot_files(stick.path(), "9.9.9").unwrap();
        assert!(matches!(write(&files, disk.path()), Err(Side::Stick(..))));
    }
}
