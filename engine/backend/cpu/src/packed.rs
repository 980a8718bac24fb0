//! Packed weights on disk: packed once, and mapped by every start after that.
//!
//! The file says what it is of ([`PackedWeights::weights`]), and has a checksum for each piece of a mebibyte. It is read in
//! full when it is opened, by all threads: one that is not of these weights or not as it was written is as none, and
//! another takes its place. It is written after the model has been loaded, beside what the engine does.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polder_backend::Writer;

use crate::kernels::Lines;
use crate::team::Team;

/// Raised when packing means something else for the same weights.
const VERSION: u32 = 1;
const MAGIC: &[u8; 16] = b"polder packed 1\n";
/// Bytes under one checksum.
const PIECE: usize = 1 << 20;
/// Where matrices may begin.
const LINE: usize = 64;
/// The longest description that is believed.
const MOST_TOLD: usize = 64 << 10;
/// Most matrices that are believed.
const MOST: usize = 1 << 20;

/// Where packed weights are kept, and what of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedWeights {
    /// The file. Its folder is made.
    pub path: PathBuf,
    /// What tells the weights from all others, such as digests of their files.
    pub weights: String,
    /// Fewer bytes than this are packed each time.
    pub least_bytes: u64,
    /// Bytes that stay free on the disk for others.
    pub reserve_bytes: u64,
}

/// The bytes of a packed matrix, on a cache line's border.
#[derive(Debug)]
pub(crate) enum Bytes {
    Own(Lines),
    Mapped(Arc<memmap2::Mmap>, Range<usize>),
}

impl Bytes {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(lines) => lines.bytes(),
            Self::Mapped(map, range) => &map[range.clone()],
        }
    }
}

/// What is to be packed, in the order in which it is: a matrix's description and its bytes.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    there: Option<Opened>,
    /// How many were asked for.
    next: usize,
    made: Vec<(String, Arc<Bytes>)>,
}

/// A file that was found to be as it was written.
#[derive(Debug)]
struct Opened {
    map: Arc<memmap2::Mmap>,
    matrices: Vec<(String, Range<usize>)>,
}

impl Shelf {
    /// With what the file has, if it has these weights.
    pub(crate) fn open(kept: &PackedWeights, precision: &str, team: &mut Team) -> Self {
        let there = match open(&kept.path, &told(kept, precision), team) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = kept.path.display();
                log::warn!("packed weights in {path} are of no use ({error}); packing them again");
                None
            }
        };
        Self { there, ..Self::default() }
    }

    /// The next matrix, where the file has it as it is described; or `pack` makes it.
    pub(crate) fn next(&mut self, described: String, pack: impl FnOnce() -> Lines) -> Arc<Bytes> {
        let at = self.next;
        self.next += 1;
        let there = self.there.as_ref().and_then(|opened| {
            let (own, range) = opened.matrices.get(at)?;
            (*own == described).then(|| Bytes::Mapped(opened.map.clone(), range.clone()))
        });
        let bytes = Arc::new(there.unwrap_or_else(|| Bytes::Own(pack())));
        self.made.push((described, bytes.clone()));
        bytes
    }

    /// Whether the file had all that was asked for.
    pub(crate) fn had_all(&self) -> bool {
        self.made.iter().all(|(_, bytes)| matches!(**bytes, Bytes::Mapped(..)))
    }

    /// Writes the file in a thread of its own, where it is worth it and not there yet.
    pub(crate) fn keep(self, kept: &PackedWeights, precision: &str) -> Option<Writer> {
        let bytes: u64 = self.made.iter().map(|(_, bytes)| bytes.bytes().len() as u64).sum();
        if self.had_all() || bytes < kept.least_bytes {
            return None;
        }
        let (told, made) = (told(kept, precision), self.made);
        Writer::start(kept.path.clone(), bytes, kept.reserve_bytes, move |file, stop| {
            fill(file, &told, &made, stop)
        })
    }
}

/// Everything that decides what the file holds.
fn told(kept: &PackedWeights, precision: &str) -> String {
    format!("{VERSION} {} {precision}\n{}", env!("CARGO_PKG_VERSION"), kept.weights)
}

/// None where there is no file, or one of something else.
fn open(path: &Path, told: &str, team: &mut Team) -> io::Result<Option<Opened>> {
    let file = File::open(path)?;
    // SAFETY: private and read-only. The file was renamed into place when it was whole, and nothing in Polder changes or
    // cuts it afterwards. Should another program cut it, a read faults: the engine ends and is started anew.
    let map = unsafe { memmap2::Mmap::map(&file) }?;
    let Some(header) = Header::read(&map)? else { return Ok(None) };
    if header.told != told {
        return Ok(None);
    }
    let data = &map[header.data.clone()];
    let mut pieces: Vec<(&[u8], u32, bool)> =
        data.chunks(PIECE).zip(&header.sums).map(|(piece, sum)| (piece, *sum, false)).collect();
    team.each(&mut pieces, |_, (piece, sum, right)| *right = crc32fast::hash(piece) == *sum);
    if let Some(at) = pieces.iter().position(|(.., right)| !right) {
        return Err(damaged(&format!("its bytes from {} on", header.data.start + at * PIECE)));
    }
    let matrices = header.matrices;
    Ok(Some(Opened { map: Arc::new(map), matrices }))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} are not what was written"))
}

struct Header {
    told: String,
    /// Descriptions, and where in the file.
    matrices: Vec<(String, Range<usize>)>,
    sums: Vec<u32>,
    data: Range<usize>,
}

impl Header {
    /// The header's own checksum, how long the rest of it is, and the rest: texts with their lengths before them, then
    /// numbers.
    fn bytes(told: &str, matrices: &[(String, u64)], sums: &[u32]) -> Vec<u8> {
        let mut rest = Vec::new();
        let text = |rest: &mut Vec<u8>, text: &str| {
            rest.extend((text.len() as u64).to_le_bytes());
            rest.extend(text.as_bytes());
        };
        text(&mut rest, told);
        rest.extend((matrices.len() as u64).to_le_bytes());
        for (described, length) in matrices {
            text(&mut rest, described);
            rest.extend(length.to_le_bytes());
        }
        rest.extend((sums.len() as u64).to_le_bytes());
        rest.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        let mut all = MAGIC.to_vec();
        all.extend(crc32fast::hash(&rest).to_le_bytes());
        all.extend((rest.len() as u32).to_le_bytes());
        all.extend(rest);
        all.resize(all.len().next_multiple_of(LINE), 0);
        all
    }

    /// None where the file is something else altogether.
    fn read(file: &[u8]) -> io::Result<Option<Self>> {
        let broken = || damaged("its first bytes");
        let Some(rest) = file.strip_prefix(MAGIC) else { return Ok(None) };
        let mut head = Reader(rest);
        let (sum, length) = (head.u32().ok_or_else(broken)?, head.u32().ok_or_else(broken)?);
        let rest = head.take(length as usize).ok_or_else(broken)?;
        if crc32fast::hash(rest) != sum {
            return Err(broken());
        }
        let start = (MAGIC.len() + 8 + rest.len()).next_multiple_of(LINE);
        Self::take_apart(Reader(rest), start, file.len()).map(Some).ok_or_else(broken)
    }

    fn take_apart(mut rest: Reader<'_>, start: usize, file: usize) -> Option<Self> {
        let told = rest.text(MOST_TOLD)?;
        let count = usize::try_from(rest.u64()?).ok().filter(|count| *count <= MOST)?;
        let (mut matrices, mut at) = (Vec::new(), start);
        for _ in 0..count {
            let described = rest.text(MOST_TOLD)?;
            let end = at.checked_add(usize::try_from(rest.u64()?).ok()?)?;
            matrices.push((described, at..end));
            at = end.checked_next_multiple_of(LINE)?;
        }
        let pieces = usize::try_from(rest.u64()?).ok()?;
        let data = start..at;
        if at != file || pieces != data.len().div_ceil(PIECE) {
            return None;
        }
        let sums = (0..pieces).map(|_| rest.u32()).collect::<Option<_>>()?;
        Some(Self { told, matrices, sums, data })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self, most: usize) -> Option<String> {
        let length = usize::try_from(self.u64()?).ok().filter(|length| *length <= most)?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

/// False where it was told to stop.
fn fill(
    mut file: &File,
    told: &str,
    matrices: &[(String, Arc<Bytes>)],
    stop: &AtomicBool,
) -> io::Result<bool> {
    let lengths: Vec<(String, u64)> = matrices
        .iter()
        .map(|(described, bytes)| (described.clone(), bytes.bytes().len() as u64))
        .collect();
    let padded = |length: usize| length.next_multiple_of(LINE);
    let total: usize = matrices.iter().map(|(_, bytes)| padded(bytes.bytes().len())).sum();
    // As long as the real one, which needs the checksums, and of no use to anybody.
    let blank = Header::bytes(told, &lengths, &vec![0; total.div_ceil(PIECE)]).len();
    file.write_all(&vec![0; blank])?;
    let (mut sums, mut piece) = (Vec::new(), Vec::with_capacity(PIECE));
    let mut pour = |piece: &mut Vec<u8>| -> io::Result<()> {
        sums.push(crc32fast::hash(piece));
        file.write_all(piece)?;
        piece.clear();
        Ok(())
    };
    for (_, bytes) in matrices {
        let bytes = bytes.bytes();
        let padding = [0; LINE];
        for part in [bytes, &padding[..padded(bytes.len()) - bytes.len()]] {
            let mut rest = part;
            while !rest.is_empty() {
                if stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let (now, later) = rest.split_at(rest.len().min(PIECE - piece.len()));
                piece.extend_from_slice(now);
                rest = later;
                if piece.len() == PIECE {
                    pour(&mut piece)?;
                }
            }
        }
    }
    if !piece.is_empty() {
        pour(&mut piece)?;
    }
    file.write_all_at(&Header::bytes(told, &lengths, &sums), 0)?;
    Ok(true)
}
