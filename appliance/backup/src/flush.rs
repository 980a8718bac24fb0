//! Has the disk write restored files: large ones while the rest still comes, all of them before anything counts on them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::BackupError;

/// Between two looks at what has come.
const LOOK: Duration = Duration::from_millis(100);
/// Smaller ones are left for the end: each costs the disk the same.
const LARGE: u64 = 1 << 20;
/// So many files at once: the disk puts what it is asked for together.
const AT_ONCE: usize = 4;

/// Does `work`, which fills a folder, and has the disk write meanwhile what is there already. Promises nothing: [`all`] does.
pub(crate) fn while_it_comes<T>(folder: &Path, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            let mut flushed = HashMap::new();
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                for path in files_in(folder).unwrap_or_default() {
                    let Some(seen) = seen(&path) else { continue };
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    if flushed.insert(path.clone(), seen) != Some(seen) {
                        // What goes wrong here goes wrong again at the end, and is told then.
                        let _ = File::open(&path).and_then(|file| file.sync_data());
                    }
                }
            }
        });
        // However the work ends, the other thread does.
        let _ends = Ends(&done, flushing.thread().clone());
        work()
    })
}

/// Every file and folder below is on the disk when this returns.
pub(crate) fn all(folder: &Path) -> Result<(), BackupError> {
    let fail = |path: &Path, source| BackupError::File { path: path.to_owned(), source };
    let files = files_in(folder).map_err(|source| fail(folder, source))?;
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(source) = File::open(path).and_then(|file| file.sync_all()) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some(fail(path, source));
                        return;
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => folders(folder),
    }
}

/// The folders, from within: what is named in one that is not written is lost with the power.
fn folders(folder: &Path) -> Result<(), BackupError> {
    let fail = |source| BackupError::File { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            folders(&entry.path())?;
        }
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// How a large file is at this moment; nothing where it is small or gone.
fn seen(path: &Path) -> Option<(u64, Option<std::time::SystemTime>)> {
    let data = fs::metadata(path).ok().filter(|data| data.len() >= LARGE)?;
    Some((data.len(), data.modified().ok()))
}

struct Ends<'a>(&'a AtomicBool, std::thread::Thread);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_flushed_also_where_there_are_many_and_what_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let below = folder.path().join(format!("{}", number % 3));
            fs::create_dir_all(&below).unwrap();
            fs::write(below.join(number.to_string()), "x").unwrap();
        }
        assert_eq!(files_in(folder.path()).unwrap().len(), 20);
        all(folder.path()).unwrap();
        assert!(all(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn work_that_fills_a_folder_is_waited_for_whatever_comes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let done = while_it_comes(folder.path(), || {
            fs::write(&file, vec![7; 2 << 20]).unwrap();
            std::thread::sleep(LOOK * 2);
            fs::remove_file(&file).unwrap();
            7
        });
        assert_eq!(done, 7);
        let broke = std::panic::catch_unwind(|| while_it_comes(folder.path(), || panic!("no")));
        assert!(broke.is_err());
    }
}
