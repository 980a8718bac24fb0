//! A model's large tensors as a card keeps them: which there are, where each lies in one long row of bytes, and what its bytes
//! are. It needs no card.
//!
//! The row is cut into pieces of about 8 MiB. A piece can be packed by itself from the checkpoint, on any core and in any order, has
//! its own place in the file of packed weights, and goes to the card as one copy.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use polder_model::{FfnWeights, Format, Gated, LayerWeights, Model, Tensor};

use crate::strips::{self, Sixteen};
use crate::tiles::{COLUMNS, Rows, STRIP, TileFormat, pack_strip, packed_bytes};
use crate::weights::WeightError;

/// Most bytes of a piece, where a strip is not longer.
const PIECE: usize = 8 << 20;
/// Where pieces begin in a file: pages of the system's cache.
pub(crate) const PAGE: usize = 4096;
/// Bytes of pieces that the system is asked to read before they are packed.
const AHEAD: u64 = 256 << 20;
/// More pieces than threads are apart who read all of them.
const FURTHER: usize = 256;

/// What a model's large tensors become.
#[derive(Debug)]
pub struct Plan<'a> {
    model: &'a Model,
    /// Bytes of a piece.
    most: usize,
    /// One for each piece of the card's memory.
    pub parts: Vec<Part<'a>>,
    /// Of all parts, in order.
    pub pieces: Vec<Piece>,
    /// What each piece is the first to read.
    reads: Vec<Vec<&'a Tensor>>,
    ahead: ReadAhead,
}

/// One matrix, several alike (experts), or rows that are looked up.
#[derive(Debug)]
pub struct Part<'a> {
    /// What it is, for people and to tell packed weights apart.
    pub name: String,
    /// Rows and columns of each.
    pub shape: (usize, usize),
    /// How they are kept; rows that are looked up are plain bf16.
    pub format: TileFormat,
    /// How many.
    pub count: usize,
    /// Bytes of all.
    pub bytes: usize,
    source: Source<'a>,
}

/// Some bytes of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which part.
    pub part: usize,
    /// First byte in the part.
    pub from: usize,
    /// How many.
    pub bytes: usize,
    /// First byte in a file of packed weights, behind its head.
    pub at: u64,
    /// Rows, or strips of all matrices one after the other.
    units: Range<usize>,
}

#[derive(Debug)]
enum Source<'a> {
    Rows(&'a Tensor),
    Matrices(Vec<Layout<'a>>),
}

impl<'a> Plan<'a> {
    /// Refuses widths that the kernels do not take. Parts are the embedding; of each layer the matrices of attention, a router, those
    /// of the second half; the head.
    pub fn of(model: &'a Model) -> Result<Self, WeightError> {
        Self::in_pieces(model, PIECE)
    }

    /// In pieces of other sizes.
    pub fn in_pieces(model: &'a Model, most: usize) -> Result<Self, WeightError> {
        let hidden = model.spec.hidden as usize;
        multiple("a hidden state", COLUMNS, hidden)?;
        let mut plan = Self {
            model,
            most,
            parts: Vec::new(),
            pieces: Vec::new(),
            reads: Vec::new(),
            ahead: ReadAhead::default(),
        };
        let embedding = &model.weights.embedding;
        plan.add("embedding".into(), Source::Rows(embedding), TileFormat::Bf16, hidden * 2);
        for (n, layer) in model.weights.layers.iter().enumerate() {
            plan.layer(n, layer)?;
        }
        let head = model.weights.output.as_ref().unwrap_or(embedding);
        plan.matrix("head".into(), vec![head])?;
        plan.note_reads();
        Ok(plan)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes as u64).sum()
    }

    /// Bytes of the checkpoint that it is packed from.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.model.bytes_of_files()
    }

    /// Bytes of the longest piece.
    pub fn longest(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0)
    }

    fn layer(&mut self, n: usize, layer: &'a LayerWeights) -> Result<(), WeightError> {
        for tensor in [&layer.q, &layer.k, &layer.v] {
            multiple("heads all together", STRIP, tensor.rows)?;
        }
        multiple("query heads all together", COLUMNS, layer.o.cols)?;
        self.matrix(format!("layer {n} qkv"), vec![&layer.q, &layer.k, &layer.v])?;
        self.matrix(format!("layer {n} output"), vec![&layer.o])?;
        match &layer.ffn {
            FfnWeights::Dense(gated) => {
                multiple("the feed-forward part", COLUMNS, gated.gate.rows)?;
                self.experts(n, std::slice::from_ref(gated))
            }
            FfnWeights::Moe { router, experts } => {
                multiple("an expert", COLUMNS, experts[0].gate.rows)?;
                let layouts = vec![Layout::Stack(vec![router])];
                self.matrices(format!("layer {n} router"), layouts, TileFormat::Bf16)?;
                self.experts(n, experts)
            }
        }
    }

    /// Gate and up of all, and down of all.
    fn experts(&mut self, n: usize, experts: &'a [Gated]) -> Result<(), WeightError> {
        let all = |of: fn(&Gated) -> [&Tensor; 2]| {
            let tensors: Vec<&Tensor> = experts.iter().flat_map(of).collect();
            common_format(self.model, &tensors)
        };
        let (gate_up, down) = (all(|e| [&e.gate, &e.up]), all(|e| [&e.down, &e.down]));
        let turns = experts.iter().map(|e| Layout::Turns([&e.gate, &e.up])).collect();
        let stacks = experts.iter().map(|e| Layout::Stack(vec![&e.down])).collect();
        self.matrices(format!("layer {n} gate and up"), turns, gate_up)?;
        self.matrices(format!("layer {n} down"), stacks, down)
    }

    /// Tensors one below the other.
    fn matrix(&mut self, name: String, tensors: Vec<&'a Tensor>) -> Result<(), WeightError> {
        let format = common_format(self.model, &tensors);
        self.matrices(name, vec![Layout::Stack(tensors)], format)
    }

    fn matrices(
        &mut self,
        name: String,
        layouts: Vec<Layout<'a>>,
        format: TileFormat,
    ) -> Result<(), WeightError> {
        let columns = layouts[0].columns();
        multiple("a matrix's columns", COLUMNS, columns)?;
        self.add(name, Source::Matrices(layouts), format, format.strip_bytes(columns));
        Ok(())
    }

    /// `unit` is the bytes of a strip or a row.
    fn add(&mut self, name: String, source: Source<'a>, format: TileFormat, unit: usize) {
        let (shape, count) = match &source {
            Source::Rows(tensor) => ((tensor.rows, tensor.cols), 1),
            Source::Matrices(all) => ((all[0].rows(), all[0].columns()), all.len()),
        };
        let bytes = match &source {
            Source::Rows(tensor) => tensor.rows * unit,
            Source::Matrices(all) => packed_bytes(shape.0, shape.1, format) * all.len(),
        };
        let part = self.parts.len();
        let most = (self.most / unit).max(1);
        let units = bytes / unit;
        for first in (0..units).step_by(most) {
            let units = first..units.min(first + most);
            let at = self
                .pieces
                .last()
                .map_or(0, |last| (last.at + last.bytes as u64).next_multiple_of(PAGE as u64));
            let (from, bytes) = (units.start * unit, units.len() * unit);
            self.pieces.push(Piece { part, from, bytes, at, units });
        }
        self.parts.push(Part { name, shape, format, count, bytes, source });
    }

    /// What a piece reads of the checkpoint that no piece before it does.
    fn note_reads(&mut self) {
        let mut last: Vec<&Tensor> = Vec::new();
        for piece in &self.pieces {
            let part = &self.parts[piece.part];
            let now = match &part.source {
                Source::Rows(tensor) => vec![*tensor],
                Source::Matrices(layouts) => {
                    let strips = part.shape.0.div_ceil(STRIP);
                    let matrices = piece.units.start / strips..piece.units.end.div_ceil(strips);
                    layouts[matrices].iter().flat_map(Layout::tensors).copied().collect()
                }
            };
            let new = now.iter().filter(|t| !last.iter().any(|old| std::ptr::eq(*old, **t)));
            self.reads.push(new.copied().collect());
            last = now;
        }
    }

    /// Writes the bytes of piece `n`, from the checkpoint. The system is asked to read what pieces soon after it need.
    ///
    /// # Panics
    /// If the length is not the piece's.
    pub fn pack(&self, n: usize, out: &mut [u8]) {
        let piece = &self.pieces[n];
        assert_eq!(out.len(), piece.bytes, "bytes of a piece");
        self.ahead.of(&self.pieces, n, |later| {
            self.reads[later].iter().for_each(|tensor| self.model.read_ahead(tensor));
        });
        match &self.parts[piece.part].source {
            Source::Rows(tensor) => {
                let row_bytes = 2 * tensor.cols;
                let mut values = Vec::new();
                for (row, out) in piece.units.clone().zip(out.chunks_exact_mut(row_bytes)) {
                    out.copy_from_slice(bf16_row(self.model, tensor, row, &mut values));
                }
            }
            Source::Matrices(layouts) => {
                let part = &self.parts[piece.part];
                let strips = part.shape.0.div_ceil(STRIP);
                let strip_bytes = part.format.strip_bytes(part.shape.1);
                let places: Vec<_> =
                    piece.units.clone().map(|n| (&layouts[n / strips], n % strips)).collect();
                pack(self.model, &places, part.format, strip_bytes, out);
            }
        }
    }
}

/// Which pieces the system was asked to read: each once, in order, some way ahead of what is read.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    asked: AtomicUsize,
}

impl ReadAhead {
    /// Has `ask` ask for piece `n`, which is about to be read, and for those behind it, as far as nobody did.
    pub(crate) fn of(&self, pieces: &[Piece], n: usize, mut ask: impl FnMut(usize)) {
        let limit = pieces[n].at + AHEAD;
        loop {
            let asked = self.asked.load(Ordering::Relaxed);
            // Who reads only a piece here and there does not want what lies between.
            let next = if n > asked + FURTHER { n } else { asked };
            if pieces.get(next).is_none_or(|piece| piece.at > limit) {
                break;
            }
            // Somebody else may have taken it meanwhile.
            let taken =
                self.asked.compare_exchange(asked, next + 1, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                ask(next);
            }
        }
    }
}

pub(crate) fn multiple(
    what: &'static str,
    multiple: usize,
    value: usize,
) -> Result<(), WeightError> {
    match value.is_multiple_of(multiple) {
        true => Ok(()),
        false => Err(WeightError::Width { what, multiple, value }),
    }
}

/// One format for all: their own where it is the same, else bf16, which holds each.
fn common_format(model: &Model, tensors: &[&Tensor]) -> TileFormat {
    let mut formats = tensors.iter().map(|t| (own_format(model, t), model.group_of(t)));
    let first = formats.next().unwrap_or((TileFormat::Bf16, None));
    if formats.all(|format| format == first) { first.0 } else { TileFormat::Bf16 }
}

fn own_format(model: &Model, tensor: &Tensor) -> TileFormat {
    let format = TileFormat::of(model, tensor);
    if format == TileFormat::Fp8 {
        let mut scales = vec![0.0; tensor.cols / COLUMNS];
        if model.bytes_and_scales(tensor, 0, COLUMNS, &mut scales).is_none() {
            return TileFormat::Bf16;
        }
    }
    format
}

/// Which rows a matrix has.
#[derive(Debug)]
enum Layout<'a> {
    /// Of the first, then of the second, and so on.
    Stack(Vec<&'a Tensor>),
    /// A strip of the first, a strip of the second, in turn.
    Turns([&'a Tensor; 2]),
}

impl<'a> Layout<'a> {
    fn tensors(&self) -> &[&'a Tensor] {
        match self {
            Self::Stack(tensors) => tensors,
            Self::Turns(tensors) => tensors,
        }
    }

    fn rows(&self) -> usize {
        self.tensors().iter().map(|t| t.rows).sum()
    }

    fn columns(&self) -> usize {
        self.tensors()[0].cols
    }

    /// Where a packed row comes from.
    fn row(&self, strip: usize, row: usize) -> Option<(&'a Tensor, usize)> {
        match self {
            Self::Stack(tensors) => {
                let mut row = strip * STRIP + row;
                for tensor in tensors {
                    if row < tensor.rows {
                        return Some((*tensor, row));
                    }
                    row -= tensor.rows;
                }
                None
            }
            Self::Turns(tensors) => Some((tensors[strip % 2], strip / 2 * STRIP + row)),
        }
    }
}

/// Strips of matrices alike: a matrix and the strip's number in it.
type Place<'p, 'a> = (&'p Layout<'a>, usize);

fn pack(
    model: &Model,
    places: &[Place<'_, '_>],
    format: TileFormat,
    strip_bytes: usize,
    out: &mut [u8],
) {
    if let TileFormat::Int4 { group } = format
        && let Some(stored) = sixteens(model, places, group)
    {
        let columns = places[0].0.columns();
        return strips::four_bits(&stored, columns, group, out);
    }
    for ((layout, strip), out) in places.iter().zip(out.chunks_exact_mut(strip_bytes)) {
        let rows: [_; STRIP] = std::array::from_fn(|row| layout.row(*strip, row));
        match format {
            TileFormat::Bf16 => {
                let zeros = vec![0; 2 * layout.columns()];
                let mut values: [Vec<u8>; STRIP] = Default::default();
                let mut values = values.iter_mut();
                let rows = rows.map(|place| match (place, values.next()) {
                    (Some((tensor, row)), Some(values)) => bf16_row(model, tensor, row, values),
                    _ => zeros.as_slice(),
                });
                strips::bf16(&rows, out);
            }
            TileFormat::Int4 { .. } => {
                pack_strip(&grouped(model, layout, *strip), layout.columns(), format, out);
            }
            TileFormat::Fp8 => {
                let zeros = vec![0; layout.columns()];
                let units = layout.columns() / COLUMNS;
                let mut scales: [Vec<f32>; STRIP] = std::array::from_fn(|_| vec![0.0; units]);
                let mut to = scales.iter_mut();
                let rows = rows.map(|place| match (place, to.next()) {
                    (Some((tensor, row)), Some(scales)) => model
                        .bytes_and_scales(tensor, row, COLUMNS, scales)
                        .expect("a format that was chosen for this tensor"),
                    _ => zeros.as_slice(),
                });
                strips::fp8(&rows, &scales, out);
            }
        }
    }
}

/// Where each strip lies as a whole in the checkpoint, if all do and no group is cut.
fn sixteens<'a>(
    model: &'a Model,
    places: &[Place<'_, '_>],
    group: usize,
) -> Option<Vec<Sixteen<'a>>> {
    let each = places.iter().map(|(layout, strip)| {
        let (tensor, row) = layout.row(*strip, 0)?;
        let stored = model.stored4(tensor)?;
        let output = stored.first + row;
        let whole = row + STRIP <= tensor.rows && output.is_multiple_of(8);
        (whole && tensor.cols.is_multiple_of(group)).then_some((stored, output))
    });
    each.collect()
}

/// Sixteen rows in groups, zeros behind the last one.
fn grouped(model: &Model, layout: &Layout<'_>, strip: usize) -> Rows {
    let columns = layout.columns();
    let tensor = layout.tensors()[0];
    debug_assert_eq!(tensor.format, Format::Grouped4, "a tensor in groups");
    let group = model.group_of(tensor).expect("a format that was chosen for this tensor");
    let groups = columns / group;
    let mut q = vec![0; STRIP * columns];
    let (mut scales, mut zeros) = (vec![0.0; STRIP * groups], vec![0; STRIP * groups]);
    for n in 0..STRIP {
        let Some((tensor, row)) = layout.row(strip, n) else { continue };
        let range = n * groups..(n + 1) * groups;
        let q = &mut q[n * columns..(n + 1) * columns];
        model.group(tensor, row, q, &mut scales[range.clone()], &mut zeros[range]);
    }
    Rows::Grouped { q, scales, zeros, group }
}

/// A row as bf16, little-endian: as it is stored, or rounded in `values`.
fn bf16_row<'v>(
    model: &'v Model,
    tensor: &Tensor,
    row: usize,
    values: &'v mut Vec<u8>,
) -> &'v [u8] {
    if tensor.format == Format::BF16 {
        let bytes = 2 * tensor.cols;
        return &model.bytes(tensor)[row * bytes..][..bytes];
    }
    let mut floats = vec![0.0; tensor.cols];
    model.row(tensor, row, &mut floats);
    values.clear();
    values.extend(floats.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_asked_for_once_each_in_order_and_not_far_ahead() {
        let pieces: Vec<Piece> = (0..1000_u32)
            .map(|n| Piece { part: 0, from: 0, bytes: PIECE, at: u64::from(n) << 23, units: 0..1 })
            .collect();
        let (ahead, mut asked) = (ReadAhead::default(), Vec::new());
        for n in 0..1000 {
            ahead.of(&pieces, n, |later| asked.push(later));
            assert!(asked.len() > n && asked.len() <= n + 33, "{} at {n}", asked.len());
        }
        assert!(asked.into_iter().eq(0..1000));
        let (ahead, mut asked) = (ReadAhead::default(), Vec::new());
        ahead.of(&pieces, 700, |later| asked.push(later));
        assert_eq!((asked[0], asked.len()), (700, 33));
    }
}
