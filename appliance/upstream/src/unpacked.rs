//! Whether what a slot has unpacked is still what podman wrote. podman writes much and syncs little: after a power cut files may be empty that it believes in,
//! and version 4 cannot look for that. So a note beside it says what is whole on the disk, and whether it is in use; it is there only while that is so.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use polder_site::{ImageDigest, write_durably};

/// The note, in the slot's folder.
const NOTE: &str = "unpacked";
/// Two short lines.
const LONGEST: u64 = 4096;
const AT_REST: &str = "at rest";
const IN_USE: &str = "in use since boot ";

/// What stands beside a slot's storage.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    folder: PathBuf,
    boot: Option<String>,
}

/// What becomes of what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is as podman left it.
    Sound,
    /// The machine went down while it was in use, so that nobody knows.
    CutOff,
    /// Another image, half of one, or none.
    Other,
}

impl Note {
    /// Beside what is unpacked in this folder.
    pub(crate) fn of(folder: &Path) -> Self {
        // One for each time that the machine was started.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        Self { folder: folder.to_owned(), boot: boot.map(|boot| boot.trim().to_owned()) }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NOTE)
    }

    fn read(&self) -> Option<String> {
        let path = self.path();
        let short = fs::symlink_metadata(&path)
            .is_ok_and(|about| about.is_file() && about.len() <= LONGEST);
        short.then(|| fs::read_to_string(path).ok()).flatten()
    }

    /// What is there, where this image is wanted.
    pub(crate) fn says(&self, image: &ImageDigest) -> Found {
        judge(self.read().as_deref(), image, self.boot.as_deref())
    }

    /// From now on it is not whole: on the disk before anything of it is changed.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => done?,
        }
        File::open(&self.folder)?.sync_all()
    }

    /// The image is whole: brings all of it to the disk, and then says so. Takes as long as the disk does.
    pub(crate) fn is_whole(&self, image: &ImageDigest) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.folder)?)?;
        write_durably(&self.path(), format!("{image}\n{AT_REST}\n").as_bytes())
    }

    /// podman is about to run a container of it, and writes there.
    pub(crate) fn is_used(&self) -> io::Result<()> {
        let boot = self.boot.as_deref().unwrap_or("unknown");
        self.change(&format!("{IN_USE}{boot}"))
    }

    /// It runs no more: brings what it wrote to the disk. Takes as long as the disk does.
    pub(crate) fn rests(&self) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.folder)?)?;
        self.change(AT_REST)
    }

    fn change(&self, state: &str) -> io::Result<()> {
        let note = self.read().unwrap_or_default();
        let Some(image) = note.lines().next() else { return Ok(()) };
        write_durably(&self.path(), format!("{image}\n{state}\n").as_bytes())
    }
}

/// Pure: what a note says of this image, in this life of the machine.
fn judge(note: Option<&str>, image: &ImageDigest, boot: Option<&str>) -> Found {
    let mut lines = note.unwrap_or_default().lines();
    let (of, state) = (lines.next(), lines.next());
    let used_in = state.and_then(|state| state.strip_prefix(IN_USE));
    match (of == Some(image.as_str()), state, used_in) {
        (true, Some(AT_REST), _) => Found::Sound,
        // Whoever used it was killed, and what they wrote is still in the kernel's hands.
        (true, _, Some(life)) if boot == Some(life) => Found::Sound,
        (true, _, Some(_)) => Found::CutOff,
        _ => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> ImageDigest {
        format!("sha256:{}", of.repeat(32)).parse().unwrap()
    }

    #[test]
    fn only_what_was_at_rest_or_is_of_this_life_is_sound() {
        let (image, other) = (digest("ab"), digest("cd"));
        let note = |of: &ImageDigest, state: &str| format!("{of}\n{state}\n");
        let says = |note: &str| judge(Some(note), &image, Some("now"));
        assert_eq!(says(&note(&image, AT_REST)), Found::Sound);
        assert_eq!(says(&note(&image, "in use since boot now")), Found::Sound);
        assert_eq!(says(&note(&image, "in use since boot then")), Found::CutOff);
        assert_eq!(
            judge(Some(&note(&image, "in use since boot now")), &image, None),
            Found::CutOff
        );
        for torn in ["", "\n", "\0\0\0", image.as_str(), "at rest", "in use since boot now"] {
            assert_eq!(says(torn), Found::Other, "{torn:?}");
        }
        assert_eq!(says(&note(&other, AT_REST)), Found::Other);
        assert_eq!(judge(None, &image, Some("now")), Found::Other);
    }

    #[test]
    fn a_note_is_there_only_while_it_is_so() {
        let folder = tempfile::tempdir().unwrap();
        let note = Note::of(folder.path());
        assert!(note.boot.as_deref().is_some_and(|boot| boot.len() == 36), "{note:?}");
        note.is_used().unwrap();
        assert_eq!(note.says(&digest("ab")), Found::Other, "nothing was unpacked");
        note.is_whole(&digest("ab")).unwrap();
        note.is_used().unwrap();
        let after = Note { boot: Some("another".to_owned()), ..note.clone() };
        assert_eq!(
            (note.says(&digest("ab")), after.says(&digest("ab"))),
            (Found::Sound, Found::CutOff)
        );
        note.rests().unwrap();
        assert_eq!(after.says(&digest("ab")), Found::Sound);
        note.forget().unwrap();
        note.forget().unwrap();
        assert_eq!(note.says(&digest("ab")), Found::Other);
    }
}
