//! How a back end keeps what it made at a start for the starts after it: one file, written beside what the engine does.
//!
//! It is written under another name and renamed when it is whole and on the disk, so that a power cut leaves all of it or none.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The thread that writes such a file. Dropping it ends it, whether it is done or not.
#[derive(Debug)]
pub struct Writer {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Has `fill` write `bytes` bytes, as long as `reserve` bytes stay free beside them. It answers false where it left off because the
    /// flag that it is given says so. What goes wrong is in the log.
    pub fn start(
        path: PathBuf,
        bytes: u64,
        reserve: u64,
        fill: impl FnOnce(&File, &AtomicBool) -> io::Result<bool> + Send + 'static,
    ) -> Option<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let work = move || match write(&path, bytes, reserve, |file| fill(file, &stop)) {
            Ok(true) => log::info!("packed weights are in {} for the next start", path.display()),
            Ok(false) => {}
            Err(error) => log::warn!("packed weights are not kept in {}: {error}", path.display()),
        };
        let thread = std::thread::Builder::new().name("polder-packed".into()).spawn(work).ok()?;
        Some(Self { ended, thread: Some(thread) })
    }

    /// Waits until it is done.
    pub fn settle(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It says itself what went wrong.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.settle();
    }
}

/// False where `fill` left off.
fn write(
    path: &Path,
    bytes: u64,
    reserve: u64,
    fill: impl FnOnce(&File) -> io::Result<bool>,
) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    clear_partials(folder)?;
    let disk = rustix::fs::statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < bytes.saturating_add(reserve) {
        let (bytes, free, keep) = (bytes >> 20, free >> 20, reserve >> 20);
        return Err(io::Error::other(format!(
            "they take {bytes} MiB, and {free} MiB are free, of which {keep} MiB stay so"
        )));
    }
    // With this process in its name: another one may still be writing its own.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let file = File::create(&partial)?;
    let done = fill(&file);
    match done.and_then(|done| if done { file.sync_all().map(|()| true) } else { Ok(false) }) {
        Ok(true) => {
            std::fs::rename(&partial, path)?;
            File::open(folder)?.sync_all()?;
            Ok(true)
        }
        other => {
            if let Err(error) = std::fs::remove_file(&partial) {
                log::warn!("{} cannot be removed: {error}", partial.display());
            }
            other
        }
    }
}

/// What writers left that are gone.
fn clear_partials(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "partial") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn three(mut file: &File) -> io::Result<bool> {
        file.write_all(b"new")?;
        Ok(true)
    }

    #[test]
    fn a_file_is_there_whole_or_as_it_was_and_what_others_left_half_written_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/weights.bin");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "old").unwrap();
        std::fs::write(path.with_extension("1.partial"), "half").unwrap();
        assert!(!write(&path, 3, 0, |file| three(file).map(|_| false)).unwrap());
        assert!(write(&path, 3, 0, |_| Err(io::Error::other("no"))).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(path.parent().unwrap()), ["weights.bin"]);
        assert!(write(&path, 3, 0, three).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(path.parent().unwrap()), ["weights.bin"]);
    }

    #[test]
    fn what_stays_free_for_others_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        let why = write(&path, 1 << 20, u64::MAX - 1, |_| panic!("there is no room")).unwrap_err();
        assert!(why.to_string().starts_with("they take 1 MiB, and "), "{why}");
        assert!(!path.exists());
    }

    #[test]
    fn a_writer_that_is_dropped_is_told_to_leave_off_and_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        let (begun, begins) = std::sync::mpsc::channel();
        let writer = Writer::start(path.clone(), 3, 0, move |file, stop| {
            begun.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            three(file).map(|_| false)
        });
        begins.recv().unwrap();
        drop(writer.unwrap());
        assert_eq!(names(folder.path()), [""; 0]);
        let mut writer = Writer::start(path.clone(), 3, 0, |file, _| three(file)).unwrap();
        writer.settle();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }
}
