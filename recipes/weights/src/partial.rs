//! A file that is not whole yet: its bytes, and a journal of which of them are safely on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polder_recipes::Digest;
use rustix::fs::{FallocateFlags, OFlags};
use sha2::{Digest as _, Sha256};

use crate::WeightsError;
use crate::chunks::{Chunks, Journal, Wanted};
use crate::progress::{CancelFlag, Event, Teller};

/// Bytes are moved and hashed in blocks of this size.
pub(crate) const BLOCK: usize = 1 << 20;
/// After so many new chunks, or so long, the journal is written again.
const SAVE_CHUNKS: u32 = 8;
const SAVE_AFTER: Duration = Duration::from_secs(2);
/// No journal of ours is larger.
const LONGEST_JOURNAL: u64 = 64 << 10;

/// A file being brought. Dropping it keeps what is on disk, for the next time.
pub(crate) struct Partial {
    name: String,
    path: PathBuf,
    file: File,
    /// What is kept for the next time; none for a stream that cannot be gone on with.
    kept: Option<Kept>,
}

struct Kept {
    chunks: Chunks,
    wanted: Wanted,
    unsaved: u32,
    saved: Instant,
}

impl Partial {
    /// Goes on with the partial file `key` where its journal allows it, else starts it.
    pub(crate) fn open(
        folder: &Path,
        key: &str,
        name: &str,
        wanted: Wanted,
        chunk: u64,
        teller: &mut Teller<'_>,
    ) -> Result<Self, WeightsError> {
        let path = folder.join(format!("{key}.part"));
        let before = path.exists().then(|| read_journal(&path)).flatten();
        let chunks = match before.map(|journal| journal.resume(&wanted)) {
            Some(Ok(chunks)) => Some(chunks),
            Some(Err(why)) => {
                let (file, why) = (name.to_owned(), why.to_owned());
                teller.say(Event::StartingOver { file, why });
                None
            }
            None => None,
        };
        if chunks.is_none() {
            remove(&path)?;
        }
        let file = open(&path).map_err(WeightsError::writing(name, &path))?;
        reserve(&file, wanted.size).map_err(WeightsError::writing(name, &path))?;
        let chunks = chunks.unwrap_or_else(|| Chunks::new(wanted.size, chunk));
        teller.had(chunks.done());
        let kept = Some(Kept { chunks, wanted, unsaved: 0, saved: Instant::now() });
        Ok(Self { name: name.to_owned(), path, file, kept })
    }
    /// Starts it, for a stream that cannot be gone on with: nothing is kept for the next time.
    pub(crate) fn anew(
        folder: &Path,
        key: &str,
        name: &str,
        size: Option<u64>,
    ) -> Result<Self, WeightsError> {
        let path = folder.join(format!("{key}.part"));
        remove(&path)?;
        let file = open(&path)
            .and_then(|file| reserve(&file, size.unwrap_or(0)).map(|()| file))
            .map_err(WeightsError::writing(name, &path))?;
        Ok(Self { name: name.to_owned(), path, file, kept: None })
    }
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    /// Bytes from the start that are safely here.
    pub(crate) fn frontier(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.chunks.frontier())
    }
    pub(crate) fn missing(&self) -> Vec<(usize, std::ops::Range<u64>)> {
        let chunks = self
            .kept
            .iter()
            .flat_map(|kept| kept.chunks.missing().map(|index| (index, kept.chunks.range(index))));
        chunks.collect()
    }
    /// This chunk was written.
    pub(crate) fn wrote_chunk(&mut self, index: usize) -> Result<(), WeightsError> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.chunks.set(index);
        kept.unsaved += 1;
        self.save_if_due()
    }
    /// Everything from `from` to `to` was written, in order; gives the end of the last whole chunk.
    fn wrote(&mut self, from: u64, to: u64) -> Result<u64, WeightsError> {
        let Some(kept) = &mut self.kept else { return Ok(to) };
        let whole_to = kept.chunks.set_between(from, to);
        if whole_to > from {
            kept.unsaved += 1;
            self.save_if_due()?;
        }
        Ok(whole_to)
    }
    fn save_if_due(&mut self) -> Result<(), WeightsError> {
        match &self.kept {
            Some(kept) if kept.unsaved >= SAVE_CHUNKS => self.save(),
            Some(kept) if kept.unsaved > 0 && kept.saved.elapsed() >= SAVE_AFTER => self.save(),
            _ => Ok(()),
        }
    }
    /// Writes the journal, after the bytes that it speaks of.
    pub(crate) fn save(&mut self) -> Result<(), WeightsError> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if kept.unsaved == 0 {
            return Ok(());
        }
        let journal = Journal::of(&kept.chunks, &kept.wanted);
        let text = serde_json::to_vec(&journal).expect("a journal is plain data");
        let journal = journal_path(&self.path);
        let fresh = journal.with_extension("fresh");
        self.file
            .sync_data()
            .and_then(|()| write_new(&fresh, &text))
            .and_then(|()| fs::rename(&fresh, &journal))
            .map_err(WeightsError::writing(&self.name, &self.path))?;
        (kept.unsaved, kept.saved) = (0, Instant::now());
        Ok(())
    }
    /// Copies a stream to its end behind `at`, hashing as it goes. Stops one byte after `limit`:
    /// the place where it ended tells the caller that it was too long.
    pub(crate) fn pour(
        &mut self,
        from: &mut dyn Read,
        at: u64,
        limit: u64,
        hash: &mut Hash,
        teller: &mut Teller<'_>,
        cancel: &CancelFlag,
    ) -> Result<u64, PourError> {
        let mut place = at;
        let mut whole_to = at;
        let mut block = vec![0; BLOCK];
        loop {
            cancel.check()?;
            let left = usize::try_from((limit - place).saturating_add(1)).unwrap_or(BLOCK);
            let count = match from.read(&mut block[..left.min(BLOCK)]) {
                Ok(0) => return Ok(place),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(PourError::Read(e)),
            };
            if place + count as u64 > limit {
                return Ok(place + count as u64);
            }
            let bytes = &block[..count];
            self.file
                .write_all_at(bytes, place)
                .map_err(WeightsError::writing(&self.name, &self.path))?;
            hash.state.update(bytes);
            place += count as u64;
            hash.at = place;
            teller.moved(count as u64);
            whole_to = self.wrote(whole_to, place)?;
        }
    }
    /// It was the wrong file, or is of no use: nothing of it is kept.
    pub(crate) fn discard(mut self) -> Result<(), WeightsError> {
        self.kept = None;
        remove(&self.path)
    }
    /// Makes it the file `to`, which appears whole or not at all.
    pub(crate) fn finish(mut self, to: &Path) -> Result<(), WeightsError> {
        self.kept = None;
        let size = self.file.metadata().map_err(WeightsError::writing(&self.name, &self.path))?;
        log::debug!(bytes = size.len(); "a file is whole: {}", self.name);
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        self.file
            .set_permissions(permissions)
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.path, to))
            .and_then(|()| sync_folder_of(to))
            .map_err(WeightsError::writing(&self.name, to))?;
        remove(&self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(why) = self.save() {
            log::warn!("what was fetched cannot be kept for next time: {why}");
        }
    }
}

/// Why pouring stopped.
pub(crate) enum PourError {
    /// The stream failed.
    Read(io::Error),
    /// Writing did, or somebody cancelled.
    Other(WeightsError),
}
impl From<WeightsError> for PourError {
    fn from(why: WeightsError) -> Self {
        Self::Other(why)
    }
}

/// The digest of a file so far.
#[derive(Default)]
pub(crate) struct Hash {
    state: Sha256,
    at: u64,
}

impl Hash {
    /// Bytes hashed.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }
    /// Reads on in `file` up to `to`, at most `budget` bytes of it.
    pub(crate) fn follow(&mut self, file: &File, to: u64, budget: u64) -> io::Result<u64> {
        let end = to.min(self.at.saturating_add(budget));
        let before = self.at;
        let mut block =
            vec![0; BLOCK.min(usize::try_from(end.saturating_sub(before)).unwrap_or(BLOCK))];
        while self.at < end {
            let want = usize::try_from(end - self.at).unwrap_or(BLOCK).min(BLOCK);
            file.read_exact_at(&mut block[..want], self.at)?;
            self.state.update(&block[..want]);
            self.at += want as u64;
        }
        Ok(self.at - before)
    }
    pub(crate) fn digest(self) -> Digest {
        Digest::from_bytes(self.state.finalize().into())
    }
}

/// Bytes of the disk that the partial file `key` holds already.
pub(crate) fn allocated(folder: &Path, key: &str) -> u64 {
    let path = folder.join(format!("{key}.part"));
    fs::symlink_metadata(path).map_or(0, |found| found.blocks().saturating_mul(512))
}

/// Makes a rename or removal in the folder of `path` survive a power cut.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Writes a new file and waits until it is on disk.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

/// Gives the file its full length and its blocks, so that the disk cannot fill up half-way.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return file.set_len(0);
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
        Err(why) => Err(why.into()),
    }
}

fn read_journal(partial: &Path) -> Option<Journal> {
    let mut text = Vec::new();
    let file = File::open(journal_path(partial)).ok()?;
    file.take(LONGEST_JOURNAL).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn journal_path(partial: &Path) -> PathBuf {
    partial.with_extension("journal")
}

/// Removes a partial file and its journal, the journal first: it must never speak of other bytes.
fn remove(path: &Path) -> Result<(), WeightsError> {
    for path in [journal_path(path), path.to_owned()] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(WeightsError::store("remove", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}
