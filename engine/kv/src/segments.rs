//! The files with the blocks: slots of one size, and beside them an entry for each slot.
//!
//! Slot `n` lies in segment `n / per`. Its bytes come from a multiple of 4096 bytes on in `blocks-…`, its entry in
//! `entries-…`. A segment is a sparse file: a cleared slot takes no room.
//!
//! Files are opened for each call. That takes microseconds beside a block's hundreds, and a terabyte of open segments
//! would be more files than a process may have.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use crate::record::{ENTRY, TAG};
use crate::system::System;

const PAGE: u64 = 4096;
const BLOCKS: &str = "blocks-";
const ENTRIES: &str = "entries-";

/// Where slots lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// Bytes from one slot to the next.
    pub(crate) slot: u64,
    /// Bytes of a slot that are used.
    sealed: usize,
    /// Slots in a segment.
    per: u64,
}

impl Geometry {
    pub(crate) fn new(block_bytes: usize, segment_bytes: u64) -> Self {
        let sealed = block_bytes + TAG;
        let slot = (sealed as u64).next_multiple_of(PAGE);
        Self { slot, sealed, per: (segment_bytes / slot).max(1) }
    }

    /// Bytes that a slot and its entry take.
    pub(crate) fn cost(&self) -> u64 {
        self.slot + ENTRY as u64
    }
}

/// All segments.
pub(crate) struct Segments {
    folder: PathBuf,
    geometry: Geometry,
    system: Arc<dyn System>,
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Segments {
    pub(crate) fn new(folder: &Path, geometry: Geometry, system: Arc<dyn System>) -> Self {
        Self { folder: folder.to_owned(), geometry, system }
    }

    /// Reads the entries of all segments, but none of their blocks. Every slot that takes room is handed on; its entry is all zeros
    /// where there is none, or where the block cannot be there.
    pub(crate) fn scan(&self, mut entry: impl FnMut(u64, &[u8; ENTRY])) -> io::Result<()> {
        let Geometry { slot, sealed, per } = self.geometry;
        for number in self.numbers()? {
            let length = or_nothing(self.path(BLOCKS, number).metadata().map(|file| file.len()))?;
            let all = or_nothing(std::fs::read(self.path(ENTRIES, number)))?;
            let entries = all.as_chunks::<ENTRY>().0;
            let slots = length.div_ceil(slot).max(entries.len() as u64).min(per);
            for within in 0..slots {
                let whole = within * slot + sealed as u64 <= length;
                let found = entries.get(within as usize).filter(|_| whole);
                entry(number * per + within, found.unwrap_or(&[0; ENTRY]));
            }
        }
        Ok(())
    }

    /// Removes all segments but these, which are in order.
    pub(crate) fn keep_only(&self, segments: &[u64]) -> io::Result<()> {
        for number in self.numbers()? {
            if segments.binary_search(&number).is_err() {
                or_nothing(std::fs::remove_file(self.path(ENTRIES, number)))?;
                or_nothing(std::fs::remove_file(self.path(BLOCKS, number)))?;
            }
        }
        Ok(())
    }

    /// Writes a block's sealed bytes.
    pub(crate) fn write_block(&self, slot: u64, sealed: &[u8]) -> io::Result<()> {
        let (number, within) = self.place(slot);
        self.system.write_at(&self.file(BLOCKS, number)?, sealed, within * self.geometry.slot)
    }

    /// Writes a slot's entry.
    pub(crate) fn write_entry(&self, slot: u64, entry: &[u8; ENTRY]) -> io::Result<()> {
        let (number, within) = self.place(slot);
        self.system.write_at(&self.file(ENTRIES, number)?, entry, within * ENTRY as u64)
    }

    /// Reads a block's sealed bytes. They are not kept in the page cache: what is read goes to the device, and memory is for
    /// the model.
    pub(crate) fn read_block(&self, slot: u64) -> io::Result<Vec<u8>> {
        let (number, within) = self.place(slot);
        let (blocks, at) = (File::open(self.path(BLOCKS, number))?, within * self.geometry.slot);
        let mut sealed = vec![0; self.geometry.sealed];
        self.system.read_at(&blocks, &mut sealed, at)?;
        forget_pages(&blocks, at, self.geometry.slot)?;
        Ok(sealed)
    }

    /// Overwrites a slot's entry, and gives the room of its bytes back.
    pub(crate) fn clear(&self, slot: u64) -> io::Result<()> {
        let (number, within) = self.place(slot);
        let (blocks, entries) = (self.file(BLOCKS, number)?, self.file(ENTRIES, number)?);
        let at = within * ENTRY as u64;
        if entries.metadata()?.len() > at {
            self.system.write_at(&entries, &[0; ENTRY], at)?;
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&blocks, hole, within * self.geometry.slot, self.geometry.slot) {
            // A file system without holes keeps the room for the next block in this slot.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the system write what it still holds of a segment, and forget its pages.
    pub(crate) fn settle(&self, number: u64) -> io::Result<()> {
        let blocks = self.file(BLOCKS, number)?;
        blocks.sync_data()?;
        self.file(ENTRIES, number)?.sync_data()?;
        forget_pages(&blocks, 0, 0)
    }

    /// The segment in which a slot lies.
    pub(crate) fn segment_of(&self, slot: u64) -> u64 {
        self.place(slot).0
    }

    fn place(&self, slot: u64) -> (u64, u64) {
        (slot / self.geometry.per, slot % self.geometry.per)
    }

    fn path(&self, what: &str, number: u64) -> PathBuf {
        self.folder.join(format!("{what}{number:06}"))
    }

    /// A file to be written to.
    fn file(&self, what: &str, number: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(self.path(what, number))
    }

    /// The numbers of the segments of which a file is there, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in self.folder.read_dir()? {
            let name = entry?.file_name();
            let digits = name
                .to_str()
                .and_then(|name| name.strip_prefix(BLOCKS).or_else(|| name.strip_prefix(ENTRIES)));
            // Six digits hold more than any disk; what has more is not ours.
            numbers.extend(digits.filter(|d| d.len() == 6).and_then(|d| d.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }
}

/// What is not there is empty.
fn or_nothing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

fn forget_pages(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    fadvise(file, from, std::num::NonZeroU64::new(bytes), Advice::DontNeed)?;
    Ok(())
}
