//! Which chunks of a file are on disk already, and whether that may still be believed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// More chunks than this and they are made larger, which bounds a journal to 16 KiB.
const MOST: u64 = 65_536;

/// A file cut into equal chunks, the last one shorter, with one bit for each that is on disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunks {
    size: u64,
    chunk: u64,
    have: Vec<bool>,
    done: u64,
    /// The first chunk that is missing.
    first: usize,
}

impl Chunks {
    /// Nothing of `size` bytes is here yet.
    pub(crate) fn new(size: u64, chunk: u64) -> Self {
        let chunk = chunk.max(1).max(size.div_ceil(MOST));
        let have = vec![false; size.div_ceil(chunk) as usize];
        Self { size, chunk, have, done: 0, first: 0 }
    }
    /// Bytes that are here.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        let start = (index as u64).saturating_mul(self.chunk).min(self.size);
        start..start.saturating_add(self.chunk).min(self.size)
    }
    pub(crate) fn set(&mut self, index: usize) {
        let range = self.range(index);
        if let Some(have) = self.have.get_mut(index).filter(|have| !**have) {
            *have = true;
            self.done += range.end - range.start;
        }
        while self.have.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }
    /// Everything between two places is here now. Gives the end of the last chunk that is whole.
    pub(crate) fn set_between(&mut self, from: u64, at: u64) -> u64 {
        let first = from.div_ceil(self.chunk);
        let last = if at == self.size { self.have.len() as u64 } else { at / self.chunk };
        (first..last).for_each(|index| self.set(index as usize));
        if first < last { last.saturating_mul(self.chunk).min(self.size) } else { from }
    }
    pub(crate) fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        self.have.iter().enumerate().filter(|(_, have)| !**have).map(|(index, _)| index)
    }
    /// Bytes from the start without a gap.
    pub(crate) fn frontier(&self) -> u64 {
        self.range(self.first).start
    }
}

/// What a journal file says about the partial file beside it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    version: u32,
    size: u64,
    chunk: u64,
    source: String,
    mark: Option<String>,
    have: String,
}

/// What is wanted now, to be compared with a journal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    /// Bytes of the whole file.
    pub(crate) size: u64,
    /// Where it comes from, as an opaque name.
    pub(crate) source: String,
    /// What the source says that changes when the file changes: ETag, modification time.
    pub(crate) mark: Option<String>,
    /// Whether a digest will tell in the end: then chunks of different sources may be mixed.
    pub(crate) pinned: bool,
}

impl Journal {
    pub(crate) fn of(chunks: &Chunks, wanted: &Wanted) -> Self {
        let Wanted { size, source, mark, .. } = wanted.clone();
        let nibble = |four: &[bool]| four.iter().rev().fold(0, |n, bit| n * 2 + u32::from(*bit));
        let digit = |four| char::from_digit(nibble(four), 16).expect("four bits are below 16");
        let have = chunks.have.chunks(4).map(digit).collect();
        Self { version: 1, size, chunk: chunks.chunk, source, mark, have }
    }
    /// The chunks that may still be used, or why none may.
    pub(crate) fn resume(&self, wanted: &Wanted) -> Result<Chunks, &'static str> {
        if self.version != 1 || self.size != wanted.size {
            return Err("its size changed since last time");
        }
        let same_source = self.source == wanted.source;
        if same_source && self.mark != wanted.mark {
            return Err("it changed at its source since last time");
        }
        if !wanted.pinned && (!same_source || self.mark.is_none()) {
            return Err("nothing says that it is still the same file as last time");
        }
        let mut chunks = Chunks::new(self.size, self.chunk);
        if chunks.chunk != self.chunk || self.have.len() != chunks.have.len().div_ceil(4) {
            return Err("the note of what was fetched last time is damaged");
        }
        for (place, digit) in self.have.chars().enumerate() {
            let bits = digit.to_digit(16).ok_or("the note of last time is damaged")?;
            (0..4).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| chunks.set(place * 4 + bit));
        }
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(size: u64) -> Wanted {
        Wanted { size, source: "s".into(), mark: Some("\"1\"".into()), pinned: true }
    }

    #[test]
    fn the_last_chunk_is_shorter() {
        let mut chunks = Chunks::new(25, 10);
        assert_eq!(chunks.range(2), 20..25);
        assert_eq!(chunks.missing().collect::<Vec<_>>(), [0, 1, 2]);
        chunks.set(2);
        chunks.set(2);
        assert_eq!((chunks.done(), chunks.frontier()), (5, 0));
        chunks.set(0);
        assert_eq!((chunks.done(), chunks.frontier()), (15, 10));
        chunks.set(1);
        assert_eq!((chunks.done(), chunks.frontier()), (25, 25));
    }
    #[test]
    fn a_stream_marks_only_chunks_it_filled() {
        let mut chunks = Chunks::new(25, 10);
        assert_eq!(chunks.set_between(0, 9), 0);
        assert_eq!(chunks.set_between(0, 19), 10);
        assert_eq!(chunks.done(), 10);
        assert_eq!(chunks.set_between(10, 25), 25);
        assert_eq!(chunks.done(), 25);
    }
    #[test]
    fn a_huge_file_has_larger_chunks() {
        let chunks = Chunks::new(u64::MAX, 1);
        assert!(chunks.have.len() <= MOST as usize);
        assert_eq!(chunks.range(usize::MAX).end, u64::MAX);
    }
    #[test]
    fn a_file_that_changed_at_its_source_starts_over() {
        let journal = Journal::of(&Chunks::new(25, 10), &wanted(25));
        let changed = Wanted { mark: Some("\"2\"".into()), ..wanted(25) };
        assert!(journal.resume(&changed).is_err());
        assert!(journal.resume(&wanted(26)).is_err());
        journal.resume(&wanted(25)).unwrap();
    }
    #[test]
    fn another_source_goes_on_only_where_a_digest_decides() {
        let journal = Journal::of(&Chunks::new(25, 10), &wanted(25));
        let other = Wanted { source: "t".into(), mark: None, ..wanted(25) };
        journal.resume(&other).unwrap();
        assert!(journal.resume(&Wanted { pinned: false, ..other }).is_err());
    }
    #[test]
    fn without_a_mark_an_unpinned_file_starts_over() {
        let unsure = Wanted { mark: None, pinned: false, ..wanted(25) };
        assert!(Journal::of(&Chunks::new(25, 10), &unsure).resume(&unsure).is_err());
    }

    proptest! {
        #[test]
        fn a_journal_comes_back_as_it_was(size in 0u64..10_000, chunk in 1u64..500, set in proptest::collection::vec(0usize..100, 0..50)) {
            let mut chunks = Chunks::new(size, chunk);
            set.into_iter().for_each(|index| chunks.set(index));
            let text = serde_json::to_string(&Journal::of(&chunks, &wanted(size))).unwrap();
            let journal: Journal = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(journal.resume(&wanted(size)).unwrap(), chunks);
        }
        #[test]
        fn no_journal_panics(size in any::<u64>(), chunk in any::<u64>(), have in "[0-9a-g]{0,20}") {
            let journal = Journal { version: 1, size, chunk, source: "s".into(), mark: None, have };
            let _ = journal.resume(&Wanted { mark: None, ..wanted(size) });
        }
    }
}
