//! Packed weights on disk: packed once, and read by every start after that.
//!
//! One file holds what a [`Plan`] has, piece behind piece. It says what it is of, and has a checksum for each piece: a file of other
//! weights or of other tiles goes, a damaged piece is packed anew from the checkpoint and the file with it. What is part of the
//! key is the text of the code that packs, so that no version can be forgotten.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use polder_backend::Writer;
use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use crate::packing::{PAGE, Piece, Plan, ReadAhead};

/// Where packed weights are kept, and what of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedTiles {
    /// The file. Its folder is made.
    pub path: PathBuf,
    /// What tells the weights from all others, such as digests of their files.
    pub weights: String,
    /// Fewer bytes than this are packed each time.
    pub least_bytes: u64,
    /// Bytes that stay free on the disk for others.
    pub reserve_bytes: u64,
    /// How much of a start the cores must have packed, in percent, for it to be kept. Where they wait for the disk, what is kept
    /// is read no sooner than the checkpoint.
    pub least_packing: u32,
}

impl PackedTiles {
    /// Removes the file, with a sentence in the log where that cannot be.
    pub(crate) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("packed weights in {} cannot be removed: {error}", self.path.display());
        }
    }
}

/// What the system surely reads at one request.
const AT_ONCE: usize = 128 << 10;
const MAGIC: &[u8; 16] = b"polder tiles 1\n\n";
/// Magic, checksum, key, how many pieces there are; then their checksums.
const FIXED: usize = 16 + 4 + 32 + 8;

/// Everything that decides what the file holds.
type Key = [u8; 32];

fn key(kept: &PackedTiles, plan: &Plan<'_>) -> Key {
    let mut sha = Sha256::new();
    let mut tell = |text: &str| {
        sha.update((text.len() as u64).to_le_bytes());
        sha.update(text);
    };
    for text in [
        include_str!("packing.rs"),
        include_str!("strips.rs"),
        include_str!("tiles.rs"),
        env!("CARGO_PKG_VERSION"),
        &kept.weights,
    ] {
        tell(text);
    }
    polder_model::DECODING.iter().for_each(|text| tell(text));
    for part in &plan.parts {
        tell(&format!("{} {:?} {:?} {}", part.name, part.shape, part.format, part.count));
    }
    sha.finalize().into()
}

fn head_bytes(pieces: usize) -> usize {
    (FIXED + 4 * pieces).next_multiple_of(PAGE)
}

fn head(key: &Key, sums: &[u32]) -> Vec<u8> {
    let mut rest = key.to_vec();
    rest.extend((sums.len() as u64).to_le_bytes());
    rest.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
    let mut all = MAGIC.to_vec();
    all.extend(crc32fast::hash(&rest).to_le_bytes());
    all.extend(rest);
    all.resize(head_bytes(sums.len()), 0);
    all
}

fn file_bytes(pieces: &[Piece]) -> u64 {
    let end = pieces.last().map_or(0, |last| last.at + last.bytes as u64);
    head_bytes(pieces.len()) as u64 + end.next_multiple_of(PAGE as u64)
}

/// A file that has what a plan asks for, as far as its head says.
#[derive(Debug)]
pub struct Opened {
    file: File,
    pieces: Vec<Piece>,
    sums: Vec<u32>,
    ahead: ReadAhead,
}

impl Opened {
    /// None where there is no such file; one that is of no use is removed, with a sentence in the log.
    pub fn find(kept: &PackedTiles, plan: &Plan<'_>) -> Option<Self> {
        let path = kept.path.display();
        match Self::open(kept, plan) {
            Ok(opened) => Some(opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                log::warn!("packed weights in {path} are of no use ({error}); packing them again");
                // What cannot be read now may be whole.
                if error.kind() == io::ErrorKind::InvalidData {
                    kept.remove();
                }
                None
            }
        }
    }

    fn open(kept: &PackedTiles, plan: &Plan<'_>) -> io::Result<Self> {
        let damaged = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let file = File::open(&kept.path)?;
        let pieces = plan.pieces.clone();
        let mut found = vec![0; head_bytes(pieces.len())];
        if file.read_exact_at(&mut found, 0).is_err() {
            return damaged("it is cut off");
        }
        if !found.starts_with(MAGIC) {
            return damaged("it is something else");
        }
        let rest = &found[20..FIXED + 4 * pieces.len()];
        if rest[..32] != key(kept, plan) {
            return damaged("they are of other weights, or another version packed them");
        }
        let sums: Vec<u32> =
            rest[40..].as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        if found != head(&key(kept, plan), &sums) {
            return damaged("its head is damaged");
        }
        if file.metadata()?.len() != file_bytes(&pieces) {
            return damaged("it is cut off");
        }
        Ok(Self { file, pieces, sums, ahead: ReadAhead::default() })
    }

    /// Reads piece `n`, whose length `to` has. The system is asked to read what comes behind it.
    pub fn read(&self, n: usize, to: &mut [u8]) -> io::Result<()> {
        let start = head_bytes(self.pieces.len()) as u64;
        let at = |piece: &Piece| start + piece.at;
        self.ahead.of(&self.pieces, n, |later| {
            let from = at(&self.pieces[later]);
            let end = from + self.pieces[later].bytes as u64;
            for from in (from..end).step_by(AT_ONCE) {
                let length = NonZeroU64::new((end - from).min(AT_ONCE as u64));
                // A hint: what it answers changes nothing.
                let _ = fadvise(&self.file, from, length, Advice::WillNeed);
            }
        });
        let at = at(&self.pieces[n]);
        self.file.read_exact_at(to, at)?;
        if crc32fast::hash(to) != self.sums[n] {
            let what = format!("its bytes from {at} on are not what was written");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}

/// What is still to be written: after a start that packed, beside what the engine does.
#[derive(Debug)]
pub struct Keeping {
    kept: PackedTiles,
    key: Key,
    pieces: Vec<Piece>,
}

impl Keeping {
    /// None where it is not worth it, after a start in which the cores have packed so much of the time, in percent.
    pub fn of(kept: &PackedTiles, plan: &Plan<'_>, packing: u32) -> Option<Self> {
        let bytes = plan.bytes();
        if bytes < kept.least_bytes {
            return None;
        }
        // Formats of ggml become bf16: longer to read than to pack.
        let longer = bytes > plan.checkpoint_bytes() / 4 * 5;
        if packing < kept.least_packing || longer {
            log::info!(
                packing = packing, gigabytes:% = format!("{:.1}", bytes as f64 / 1e9);
                "packed weights are not kept: they would be read no sooner than they are packed"
            );
            return None;
        }
        let (key, pieces) = (key(kept, plan), plan.pieces.clone());
        Some(Self { kept: kept.clone(), key, pieces })
    }

    /// Writes in a thread of its own what `bytes` gives of each piece. What goes wrong is in the log.
    pub fn start<E: std::fmt::Display>(
        self,
        mut bytes: impl FnMut(&Piece, &mut Vec<u8>) -> Result<(), E> + Send + 'static,
    ) -> Option<Writer> {
        let (path, reserve) = (self.kept.path.clone(), self.kept.reserve_bytes);
        Writer::start(path, file_bytes(&self.pieces), reserve, move |file, stop| {
            self.fill(file, &mut bytes, stop)
        })
    }

    /// False where it was told to stop.
    fn fill<E: std::fmt::Display>(
        &self,
        file: &File,
        bytes: &mut impl FnMut(&Piece, &mut Vec<u8>) -> Result<(), E>,
        stop: &AtomicBool,
    ) -> io::Result<bool> {
        let start = head_bytes(self.pieces.len()) as u64;
        let (mut sums, mut piece_bytes) = (Vec::with_capacity(self.pieces.len()), Vec::new());
        for piece in &self.pieces {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            bytes(piece, &mut piece_bytes).map_err(|e| io::Error::other(e.to_string()))?;
            sums.push(crc32fast::hash(&piece_bytes));
            file.write_all_at(&piece_bytes, start + piece.at)?;
        }
        file.set_len(file_bytes(&self.pieces))?;
        file.write_all_at(&head(&self.key, &sums), 0)?;
        Ok(true)
    }
}
