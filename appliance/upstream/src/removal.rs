//! Removes a folder with everything in it, however deep it is and whatever its folders say of who may read them. A path longer than the kernel takes
//! (4096 bytes) can be made by whoever goes into each folder in turn; so what lies deeper than the second folder is brought up instead of being gone into.
//! What was cut off goes on where it was.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, chmod, fstat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// What a folder is called that was brought up, before its number.
const RAISED: &str = ".raised-";

/// Removes it, if it is there. Links are removed and not followed. How many files went.
pub fn remove_tree(folder: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
        Ok(about) if !about.is_dir() => return fs::remove_file(folder).map(|()| 1),
        Ok(_) => {}
    }
    let top = enter(CWD, folder)?;
    let (mut files, mut raised) = (0, 0u64);
    loop {
        let within = entries(&top)?;
        if within.is_empty() {
            break;
        }
        for (name, is_folder) in within {
            if is_folder {
                files += empty_out(&top, &name, &mut raised)?;
                unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
            } else {
                unlinkat(&top, &name, AtFlags::empty())?;
                files += 1;
            }
        }
    }
    fs::remove_dir(folder)?;
    Ok(files)
}

/// Gives the owner of a folder, or of a file in it, all rights to it again: whoever shares the user can take them away. Nothing where there is none, or a
/// link.
pub fn open_up(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => enter(CWD, path).map(drop),
        Ok(about) if about.is_file() && about.mode() & 0o600 != 0o600 => {
            let file = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let known = openat(CWD, path, file, Mode::empty())?;
            Ok(chmod(format!("/proc/self/fd/{}", known.as_raw_fd()), Mode::RUSR | Mode::WUSR)?)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of a folder, and brings the folders in it up beside it.
fn empty_out(top: &OwnedFd, name: &CStr, raised: &mut u64) -> io::Result<u64> {
    let inner = enter(top, name)?;
    let mut files = 0;
    for (child, is_folder) in entries(&inner)? {
        if !is_folder {
            unlinkat(&inner, &child, AtFlags::empty())?;
            files += 1;
            continue;
        }
        match unlinkat(&inner, &child, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
            other => {
                other?;
                continue;
            }
        }
        // A folder is moved only by whoever may write in it: it gets another "..".
        enter(&inner, &child)?;
        loop {
            let to = format!("{RAISED}{raised}");
            *raised += 1;
            match renameat(&inner, &child, top, &to) {
                // Left by one that was cut off.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                other => break other?,
            }
        }
    }
    Ok(files)
}

/// A folder, open to be read, after its owner was given all rights to it. Never through a link.
fn enter<P: rustix::path::Arg>(at: impl AsFd, name: P) -> io::Result<OwnedFd> {
    let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let known = openat(at, name, OFlags::PATH | folder, Mode::empty())?;
    if fstat(&known)?.st_mode & 0o700 != 0o700 {
        chmod(format!("/proc/self/fd/{}", known.as_raw_fd()), Mode::RWXU)?;
    }
    Ok(openat(&known, c".", OFlags::RDONLY | folder, Mode::empty())?)
}

/// What is in a folder, and whether each is one.
fn entries(folder: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                FileType::from_raw_mode(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            known => known,
        };
        all.push((name.to_owned(), kind == FileType::Directory));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    /// A folder in a folder and so on, each with a file, deeper than any path may be long.
    fn dig(into: &Path, name: &str, depth: usize) {
        let mut at = openat(CWD, into, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..depth {
            mkdirat(&at, name, Mode::RWXU).unwrap();
            at = openat(&at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        }
    }

    #[test]
    fn a_folder_goes_however_deep_it_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("slot");
        fs::create_dir(&folder).unwrap();
        // More bytes than a path may have; and many levels.
        dig(&folder, "d", 200);
        dig(&folder, &"long-name-".repeat(20), 60);
        dig(&folder, ".raised-1", 5);
        assert_eq!(remove_tree(&folder).unwrap(), 265);
        assert!(!folder.exists());
        assert_eq!(remove_tree(&folder).unwrap(), 0);
    }

    #[test]
    fn one_that_was_cut_off_goes_on_and_what_links_lead_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let (folder, beside) = (place.path().join("slot"), place.path().join("beside"));
        fs::create_dir_all(folder.join(".raised-0/a/b")).unwrap();
        fs::write(folder.join(".raised-2"), "x").unwrap();
        fs::create_dir_all(folder.join("c/d/e/f")).unwrap();
        fs::create_dir_all(folder.join("shut/in/here")).unwrap();
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("letter"), "x").unwrap();
        symlink(&beside, folder.join("c/d/out")).unwrap();
        symlink(&beside, folder.join("out")).unwrap();
        for shut in ["shut/in", "shut"] {
            fs::set_permissions(folder.join(shut), fs::Permissions::from_mode(0o000)).unwrap();
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&folder).unwrap();
        assert!(!folder.exists() && beside.join("letter").exists());
        // A link in its place is a link.
        symlink(&beside, &folder).unwrap();
        assert_eq!(remove_tree(&folder).unwrap(), 1);
        assert!(!folder.exists() && beside.join("letter").exists());
    }
}
