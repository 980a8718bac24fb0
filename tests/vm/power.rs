//! A disk at the moment of a power cut: what was written before the last flush is there, of what came after it anything may
//! be.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The log of QEMU's blklogwrites, which is that of Linux's dm-log-writes.
const MAGIC: u64 = 0x006a_7366_7773_6872_u64;
const SECTOR: u64 = 512;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// One thing that a machine did to its disk.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// Bytes at a place of the disk; where they are in the log; whether they were on the disk before the next thing began.
    Write { at: u64, from: u64, bytes: u64, sure: bool },
    /// Everything before is on the disk.
    Flush,
}

/// Everything that a machine did to its disk, in order.
pub(crate) struct Log {
    file: File,
    deeds: Vec<Deed>,
}

impl Log {
    pub(crate) fn read(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let mut head = [0; 28];
        file.read_exact(&mut head).unwrap();
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(number(&head[..8]), MAGIC, "a log of writes");
        let count = number(&head[16..24]);
        let unit = u64::from(u32::from_le_bytes(head[24..28].try_into().unwrap()));
        let mut deeds = Vec::new();
        let mut place = unit;
        for _ in 0..count {
            file.seek(SeekFrom::Start(place)).unwrap();
            let mut entry = [0; 32];
            file.read_exact(&mut entry).unwrap();
            let [at, sectors, flags, _] = [0, 8, 16, 24].map(|from| number(&entry[from..from + 8]));
            place += unit;
            if flags & FLUSH != 0 {
                deeds.push(Deed::Flush);
            }
            let bytes = sectors * unit;
            if flags & DISCARD == 0 && bytes > 0 {
                let sure = flags & FUA != 0;
                deeds.push(Deed::Write { at: at * unit, from: place, bytes, sure });
                place += bytes;
            }
        }
        assert!(unit >= SECTOR && !deeds.is_empty());
        Self { file, deeds }
    }

    pub(crate) fn len(&self) -> usize {
        self.deeds.len()
    }

    /// Has `disk`, which is as it was before the first deed, done everything that was surely on it when the power went
    /// after so many deeds, and of the rest, sector by sector, what `luck` says. Only deeds from `since` on are looked at: a
    /// disk may be taken on from an earlier cut if nothing but sure things were done to it.
    pub(crate) fn replay(
        &self,
        disk: &File,
        since: usize,
        cut: usize,
        luck: &mut impl FnMut() -> bool,
    ) -> Vec<Undo> {
        let flushed = self.flushed(cut);
        let mut undo = Vec::new();
        for (number, deed) in self.deeds.iter().enumerate().take(cut).skip(since) {
            let Deed::Write { at, from, bytes, sure } = *deed else { continue };
            let mut content = vec![0; usize::try_from(bytes).unwrap()];
            self.file.read_exact_at(&mut content, from).unwrap();
            if number < flushed || sure {
                // Kept when the disk is taken on.
                if number >= flushed {
                    undo.push(Undo::of(disk, at, content.len()));
                }
                disk.write_all_at(&content, at).unwrap();
                continue;
            }
            undo.push(Undo::of(disk, at, content.len()));
            for (sector, content) in content.chunks(SECTOR as usize).enumerate() {
                if luck() {
                    disk.write_all_at(content, at + sector as u64 * SECTOR).unwrap();
                }
            }
        }
        undo
    }

    /// The deeds before this one are on the disk when the power goes after `cut` deeds.
    pub(crate) fn flushed(&self, cut: usize) -> usize {
        let last = self.deeds[..cut].iter().rposition(|deed| matches!(deed, Deed::Flush));
        last.map_or(0, |at| at + 1)
    }
}

/// What was at a place before.
pub(crate) struct Undo {
    at: u64,
    content: Vec<u8>,
}

impl Undo {
    fn of(disk: &File, at: u64, length: usize) -> Self {
        let mut content = vec![0; length];
        disk.read_exact_at(&mut content, at).unwrap();
        Self { at, content }
    }

    /// Puts everything back, the last first.
    pub(crate) fn all(undo: Vec<Self>, disk: &File) {
        for Self { at, content } in undo.into_iter().rev() {
            disk.write_all_at(&content, at).unwrap();
        }
    }
}

/// Numbers that follow from a seed, so that a cut that did harm can be looked at again (splitmix64).
pub(crate) struct Luck(pub(crate) u64);

impl Luck {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
