//! A reset: what is written down before the machine starts again, and what is done when it has.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::ask::Reset;
use crate::root::SealError;

/// systemd-repart destroys and makes anew what may be reset, when it finds this.
const FACTORY_RESET: &str = "FactoryReset-8cf2644b-4b0b-428f-9387-6d876050dc67";
/// What was reset last, for the screen: nothing on the disk could still know.
const WAS_RESET: &str = "PolderReset-5f2b6b0c-6d0e-4e0b-9a3e-6e2a3d3c9b51";
/// Kept over a restart, for every program on the machine: as firmware writes such variables.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];
/// Says at the next start that everything on the disk but the models goes.
const FLAG: &str = ".polder-reset";
/// What stays then, as a path from the root of the disk.
const MODELS: &str = "lib/polder/weights";

/// Writes down that a reset is wanted. It happens at the next start; a power cut before that leaves the box as it
/// is or resets it, and nothing between.
pub(crate) fn write_down(reset: Reset, variables: &Path, var: &Path) -> Result<(), SealError> {
    match reset {
        Reset::Everything => {
            write_variable(&variables.join(WAS_RESET), "everything")?;
            write_variable(&variables.join(FACTORY_RESET), "1")
        }
        Reset::KeepModels => {
            // A firmware that keeps nothing costs a sentence on the screen, not the reset.
            if let Err(error) = write_variable(&variables.join(WAS_RESET), "all but models") {
                log::warn!("{error}");
            }
            let path = var.join(FLAG);
            let written = File::create(&path).and_then(|file| file.sync_all());
            written.and_then(|()| sync(var)).map_err(SealError::file("write", &path))
        }
    }
}

/// What the last reset left, while somebody may still want to know.
pub fn was_reset(variables: &Path) -> Option<Reset> {
    let text = fs::read(variables.join(WAS_RESET)).ok()?;
    match text.get(ATTRIBUTES.len()..).map(narrow).as_deref() {
        Some("everything") => Some(Reset::Everything),
        Some("all but models") => Some(Reset::KeepModels),
        _ => None,
    }
}

/// Removes everything below `var` but the models, if that was asked for before this start. Says whether it was.
pub fn forget(var: &Path) -> Result<bool, SealError> {
    let flag = var.join(FLAG);
    if !flag.exists() {
        return Ok(false);
    }
    let keep = var.join(MODELS);
    clear(var, &keep, &flag)?;
    sync(var).map_err(SealError::file("write", var))?;
    // Last: until then it is done again.
    fs::remove_file(&flag).map_err(SealError::file("remove", &flag))?;
    sync(var).map_err(SealError::file("write", var))?;
    Ok(true)
}

/// Removes what is in `folder`, but not `keep`, what leads to it, nor `flag`.
fn clear(folder: &Path, keep: &Path, flag: &Path) -> Result<(), SealError> {
    for entry in fs::read_dir(folder).map_err(SealError::file("read", folder))? {
        let entry = entry.map_err(SealError::file("read", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(SealError::file("read", &path))?;
        if path == flag || path == keep {
            continue;
        }
        if kind.is_dir() && keep.starts_with(&path) {
            clear(&path, keep, flag)?;
            continue;
        }
        let removed =
            if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(SealError::file("remove", &path))?;
    }
    Ok(())
}

/// A variable of the firmware; in one write, as its file system wants it.
fn write_variable(path: &Path, text: &str) -> Result<(), SealError> {
    let wide = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let bytes: Vec<u8> = ATTRIBUTES.into_iter().chain(wide).collect();
    let written = changeable(path).and_then(|()| {
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.write_all(&bytes)
    });
    written.map_err(SealError::file("write to the firmware", path))
}

/// A variable that is there already is marked so that nobody removes it by accident.
fn changeable(path: &Path) -> io::Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let Ok(file) = File::open(path) else { return Ok(()) };
    match ioctl_getflags(&file) {
        Ok(flags) if flags.contains(IFlags::IMMUTABLE) => {
            ioctl_setflags(&file, flags - IFlags::IMMUTABLE).map_err(io::Error::from)
        }
        _ => Ok(()),
    }
}

fn narrow(bytes: &[u8]) -> String {
    let wide = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(wide.take_while(|c| *c != 0)).map(|c| c.unwrap_or('?')).collect()
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn var() -> tempfile::TempDir {
        let var = tempfile::tempdir().unwrap();
        for file in [
            "lib/polder/weights/blobs/a",
            "lib/polder/site.toml",
            "lib/polder/pki/ca.key",
            "lib/systemd/random-seed",
            "log/x",
        ] {
            let path = var.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        symlink("/", var.path().join("lib/polder/run")).unwrap();
        var
    }

    fn left(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => found.extend(left(&entry.path())),
                false => found.push(entry.file_name().into_string().unwrap()),
            }
        }
        found.sort();
        found
    }

    #[test]
    fn nothing_is_forgotten_that_nobody_asked_to_forget() {
        let var = var();
        assert!(!forget(var.path()).unwrap());
        assert_eq!(left(var.path()).len(), 6);
    }

    #[test]
    fn the_models_alone_outlive_a_reset_that_keeps_them() {
        let (var, variables) = (var(), tempfile::tempdir().unwrap());
        write_down(Reset::KeepModels, variables.path(), var.path()).unwrap();
        assert!(forget(var.path()).unwrap());
        assert_eq!(left(var.path()), ["a"]);
        assert_eq!(was_reset(variables.path()), Some(Reset::KeepModels));
        assert!(!forget(var.path()).unwrap(), "once");
    }

    #[test]
    fn a_reset_that_was_cut_off_is_done_at_the_next_start() {
        let (var, variables) = (var(), tempfile::tempdir().unwrap());
        write_down(Reset::KeepModels, variables.path(), var.path()).unwrap();
        // Half of it is gone, and the power too.
        fs::remove_dir_all(var.path().join("lib/polder/pki")).unwrap();
        assert!(forget(var.path()).unwrap());
        assert_eq!(left(var.path()), ["a"]);
    }

    #[test]
    fn a_full_reset_is_left_to_the_firmware_and_touches_no_file() {
        let (var, variables) = (var(), tempfile::tempdir().unwrap());
        assert_eq!(was_reset(variables.path()), None);
        write_down(Reset::Everything, variables.path(), var.path()).unwrap();
        write_down(Reset::Everything, variables.path(), var.path()).unwrap();
        let told = fs::read(variables.path().join(FACTORY_RESET)).unwrap();
        assert_eq!(told, [7, 0, 0, 0, b'1', 0, 0, 0]);
        assert_eq!(was_reset(variables.path()), Some(Reset::Everything));
        assert_eq!(left(var.path()).len(), 6);
    }
}
