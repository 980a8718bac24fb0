//! Weight matrices in the back end's own layout: tiles of sixteen interleaved rows.
//!
//! Packing rounds nothing: quants, scales and minima keep the file's bits. Four-bit formats keep
//! their size; five- and six-bit quants are widened to bytes, which costs memory and spares two
//! sets of kernels.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polder_model::{Format, Model, Tensor, quant};

use crate::kernels::{
    self, Column, Columns, FloatKind, GROUP, IntRows, IntTile, Isa, LANES, Lines, Scales,
    halves_to_floats,
};
use crate::packed::{Bytes, Shelf};
use crate::team::Team;

/// A weight matrix, `rows` x `cols`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    layout: Layout,
    /// `tile_bytes` for each tile of sixteen rows; the last one is filled up with zeros.
    data: Arc<Bytes>,
    tile_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Float(FloatKind),
    Int(IntLayout),
}

/// How an integer tile is laid out: scales first, then quants.
#[derive(Debug, Clone, Copy, PartialEq)]
struct IntLayout {
    format: Format,
    nibbles: bool,
    zero: i32,
    mins: bool,
    halves: bool,
    /// Scales are `f16 * integer` over super-blocks of 256 columns.
    supers: bool,
    /// Or one `f32` and an integer zero over so many columns.
    grouped: Option<usize>,
}

impl IntLayout {
    fn of(format: Format) -> Option<Self> {
        let plain = Self {
            format,
            nibbles: false,
            zero: 0,
            mins: false,
            halves: false,
            supers: false,
            grouped: None,
        };
        Some(match format {
            Format::Q4_0 => Self { nibbles: true, zero: 8, ..plain },
            Format::Q4_1 => Self { nibbles: true, mins: true, ..plain },
            Format::Q5_0 => Self { zero: 16, ..plain },
            Format::Q5_1 => Self { mins: true, ..plain },
            Format::Q8_0 => Self { zero: 128, ..plain },
            Format::Q4_K => Self { nibbles: true, mins: true, supers: true, ..plain },
            Format::Q5_K => Self { mins: true, supers: true, ..plain },
            Format::Q3_K => Self { zero: 4, halves: true, supers: true, ..plain },
            Format::Q6_K => Self { zero: 32, halves: true, supers: true, ..plain },
            _ => return None,
        })
    }

    /// Four bits in groups of this many columns.
    fn in_groups(group: usize) -> Self {
        Self {
            format: Format::Grouped4,
            nibbles: true,
            zero: 0,
            mins: true,
            halves: false,
            supers: false,
            grouped: Some(group),
        }
    }

    /// What the packed quant of value `q` is.
    fn packed(self, q: i8) -> u8 {
        (i32::from(q) + self.zero) as u8
    }

    /// Columns under one f16 scale.
    fn block(self) -> usize {
        self.grouped.unwrap_or(if self.supers { 256 } else { GROUP })
    }

    /// Integer scales (and, apart, minima) of one row in one block.
    fn group_scales(self) -> usize {
        match (self.supers, self.halves) {
            (false, _) => 0,
            (true, false) => 8,
            (true, true) => 16,
        }
    }

    /// Bytes of one block's scales, all rows.
    fn scale_bytes(self) -> usize {
        if self.grouped.is_some() {
            return (4 + 1) * LANES;
        }
        (2 + self.group_scales()) * LANES * (1 + usize::from(self.mins))
    }

    fn quant_bytes(self) -> usize {
        if self.nibbles { GROUP * LANES / 2 } else { GROUP * LANES }
    }

    /// Bytes of all scales of a tile, filled up to a cache line.
    fn scales(self, cols: usize) -> usize {
        (cols / self.block() * self.scale_bytes()).next_multiple_of(64)
    }
}

/// What matrices are packed from, by whom, and where packed ones may already be.
pub(crate) struct Packer<'a> {
    pub(crate) team: &'a mut Team,
    pub(crate) model: &'a Model,
    /// As floats, whatever they are stored as.
    pub(crate) floats: bool,
    pub(crate) shelf: Shelf,
}

impl Matrix {
    /// Packs a tensor, as it is stored, or as floats.
    pub(crate) fn pack(packer: &mut Packer<'_>, tensor: &Tensor) -> Self {
        let Packer { team, model, floats: as_floats, shelf } = packer;
        let (rows, cols) = (tensor.rows, tensor.cols);
        let layout = match (*as_floats, tensor.format, model.group_of(tensor)) {
            // FP8 with its scales fits no other format without rounding.
            (true, ..) | (_, Format::F32 | Format::F8E4M3, _) => Layout::Float(FloatKind::F32),
            (_, Format::F16, _) => Layout::Float(FloatKind::F16),
            (_, Format::BF16, _) => Layout::Float(FloatKind::BF16),
            (_, _, Some(group)) => Layout::Int(IntLayout::in_groups(group)),
            (_, format, None) => Layout::Int(IntLayout::of(format).expect("not a float format")),
        };
        let tile_bytes = match layout {
            Layout::Float(kind) => cols * LANES * kind.bytes(),
            Layout::Int(i) => i.scales(cols) + cols / GROUP * i.quant_bytes(),
        };
        let tiles = rows.div_ceil(LANES);
        let data = shelf.next(format!("{rows} {cols} {layout:?}"), || {
            packed(team, model, tensor, layout, tile_bytes, tiles)
        });
        Self { rows, cols, layout, data, tile_bytes }
    }

    /// Tiles of sixteen rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Whether it multiplies quantized activations.
    pub(crate) fn wants_ints(&self) -> bool {
        matches!(self.layout, Layout::Int(_))
    }

    /// One tile with some of the tokens.
    fn tile(
        &self,
        isa: Isa,
        tile: usize,
        x: &Activations,
        tokens: Range<usize>,
        out: &mut Column<'_>,
        spare: &mut Spare,
    ) {
        let bytes = &self.data.bytes()[tile * self.tile_bytes..][..self.tile_bytes];
        match self.layout {
            Layout::Float(kind) => {
                let x = &x.floats[tokens.start * self.cols..tokens.end * self.cols];
                kernels::float_tile(isa, kind, bytes, self.cols, x, out);
            }
            Layout::Int(i) => {
                let (scales, quants) = bytes.split_at(i.scales(self.cols));
                let scales = match i.supers || i.grouped.is_some() {
                    false => Scales::Stored(&scales[..self.cols / GROUP * i.scale_bytes()]),
                    true => spare.expand(isa, i, self.cols, scales),
                };
                let (nibbles, mins, halves) = (i.nibbles, i.mins, i.halves);
                let tile = IntTile { quants, scales, zero: i.zero, nibbles, mins, halves };
                kernels::int_tile(isa, &tile, &x.ints().part(tokens), out);
            }
        }
    }
}

/// A tile's scales as floats, where they have to be computed; kept between tiles for its memory.
#[derive(Debug, Default)]
struct Spare {
    scales: Vec<f32>,
    mins: Vec<f32>,
    supers: Vec<f32>,
    halves: Vec<u16>,
}

impl Spare {
    fn expand(&mut self, isa: Isa, layout: IntLayout, cols: usize, bytes: &[u8]) -> Scales<'_> {
        let blocks = bytes[..cols / layout.block() * layout.scale_bytes()]
            .chunks_exact(layout.scale_bytes());
        self.scales.clear();
        self.mins.clear();
        match layout.grouped {
            Some(group) => self.expand_groups(group, blocks),
            None => self.expand_supers(isa, layout, blocks),
        }
        Scales::Floats { scales: &self.scales, mins: &self.mins }
    }

    /// Scales, and what zeros take away, for every 32 columns.
    fn expand_groups<'a>(&mut self, group: usize, blocks: impl Iterator<Item = &'a [u8]>) {
        for block in blocks {
            let (scales, zeros) = block.split_at(4 * LANES);
            let scales: [f32; LANES] =
                std::array::from_fn(|r| f32::from_le_bytes(scales.as_chunks::<4>().0[r]));
            let mins: [f32; LANES] = std::array::from_fn(|r| -(scales[r] * f32::from(zeros[r])));
            for _ in 0..group / GROUP {
                self.scales.extend_from_slice(&scales);
                self.mins.extend_from_slice(&mins);
            }
        }
    }

    /// Half-precision numbers times an integer for every group.
    fn expand_supers<'a>(
        &mut self,
        isa: Isa,
        layout: IntLayout,
        blocks: impl Iterator<Item = &'a [u8]>,
    ) {
        let halves = LANES * (1 + usize::from(layout.mins));
        self.supers.resize(halves, 0.0);
        for block in blocks {
            let (stored, integers) = block.split_at(2 * halves);
            self.halves.clear();
            self.halves.extend(stored.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)));
            halves_to_floats(isa, &self.halves, &mut self.supers);
            let (d, m) = self.supers.split_at(LANES);
            let (scales, mins) = integers.split_at(layout.group_scales() * LANES);
            for group in scales.as_chunks::<LANES>().0 {
                self.scales.extend(group.iter().zip(d).map(|(s, d)| d * f32::from(*s as i8)));
            }
            for group in mins.as_chunks::<LANES>().0 {
                self.mins.extend(group.iter().zip(m).map(|(s, m)| -(m * f32::from(*s))));
            }
        }
    }
}

/// A tensor's tiles.
fn packed(
    team: &mut Team,
    model: &Model,
    tensor: &Tensor,
    layout: Layout,
    tile_bytes: usize,
    tiles: usize,
) -> Lines {
    let (rows, cols) = (tensor.rows, tensor.cols);
    let mut data = Lines::zeroed(tiles * tile_bytes);
    let stored = model.bytes(tensor);
    let row_bytes = stored.len() / rows;
    let all = data.bytes_mut()[..tiles * tile_bytes].chunks_exact_mut(tile_bytes);
    team.each(&mut all.collect::<Vec<_>>(), |n, tile| {
        for r in 0..LANES.min(rows - n * LANES) {
            let number = n * LANES + r;
            match layout {
                Layout::Float(FloatKind::F32) => {
                    let mut values = vec![0.0; cols];
                    model.row(tensor, number, &mut values);
                    let columns = tile.chunks_exact_mut(4 * LANES);
                    for (column, value) in columns.zip(values) {
                        column[4 * r..4 * r + 4].copy_from_slice(&value.to_le_bytes());
                    }
                }
                Layout::Float(kind) => {
                    pack_halves(kind, &stored[number * row_bytes..][..row_bytes], r, tile);
                }
                Layout::Int(i) if i.grouped.is_some() => {
                    pack_groups(i, model, tensor, number, r, tile);
                }
                Layout::Int(i) => {
                    pack_ints(i, cols, &stored[number * row_bytes..][..row_bytes], r, tile);
                }
            }
        }
    });
    data
}

fn pack_halves(kind: FloatKind, row: &[u8], r: usize, tile: &mut [u8]) {
    let size = kind.bytes();
    for (column, stored) in tile.chunks_exact_mut(LANES * size).zip(row.chunks_exact(size)) {
        column[size * r..size * (r + 1)].copy_from_slice(stored);
    }
}

fn pack_groups(
    i: IntLayout,
    model: &Model,
    tensor: &Tensor,
    row: usize,
    r: usize,
    tile: &mut [u8],
) {
    let (scales, quants) = tile.split_at_mut(i.scales(tensor.cols));
    let groups = tensor.cols / i.block();
    let (mut q, mut zeros) = (vec![0; tensor.cols], vec![0; groups]);
    let mut floats = vec![0.0; groups];
    model.group(tensor, row, &mut q, &mut floats, &mut zeros);
    let blocks = scales.chunks_exact_mut(i.scale_bytes());
    for ((block, scale), zero) in blocks.zip(floats).zip(zeros) {
        block[4 * r..4 * r + 4].copy_from_slice(&scale.to_le_bytes());
        block[4 * LANES + r] = zero;
    }
    for (group, q) in quants.chunks_exact_mut(i.quant_bytes()).zip(q.as_chunks::<GROUP>().0) {
        put_nibbles(group, q, r);
    }
}

/// One row's 32 quants of four bits.
fn put_nibbles(group: &mut [u8], q: &[u8; GROUP], r: usize) {
    for (k, q) in q.iter().enumerate() {
        let byte = &mut group[k / 8 * 64 + 4 * r + k % 4];
        *byte |= if k % 8 < 4 { *q } else { q << 4 };
    }
}

fn pack_ints(i: IntLayout, cols: usize, row: &[u8], r: usize, tile: &mut [u8]) {
    let (scales, quants) = tile.split_at_mut(i.scales(cols));
    let values = i.format.block_values();
    let blocks = row.chunks_exact(i.format.block_bytes());
    for (n, (block, scales)) in blocks.zip(scales.chunks_exact_mut(i.scale_bytes())).enumerate() {
        let b = quant::unpack(i.format, block);
        scales[2 * r..2 * r + 2].copy_from_slice(&b.d.to_le_bytes());
        let halves = 2 * LANES * (1 + usize::from(i.mins));
        if i.mins {
            scales[2 * (LANES + r)..][..2].copy_from_slice(&b.m.to_le_bytes());
        }
        let groups = i.group_scales();
        for g in 0..groups {
            scales[halves + g * LANES + r] = b.group_scales[g] as u8;
            if i.mins {
                scales[halves + (groups + g) * LANES + r] = b.group_mins[g];
            }
        }
        let first = n * values / GROUP * i.quant_bytes();
        let quants = &mut quants[first..][..values / GROUP * i.quant_bytes()];
        for (group, q) in quants.chunks_exact_mut(i.quant_bytes()).zip(b.q.as_chunks::<GROUP>().0) {
            let q = q.map(|q| i.packed(q));
            if i.nibbles {
                put_nibbles(group, &q, r);
                continue;
            }
            for (k, q) in q.iter().enumerate() {
                group[k / 4 * 64 + 4 * r + k % 4] = *q;
            }
        }
    }
}

/// The left side of a multiplication: rows of activations, one per token.
///
/// Integer matrices meet activations as signed numbers of two bytes, `scale * (256 high + low)`,
/// with a scale for 32 columns. One byte alone is what llama.cpp uses; on SmolLM2 it
/// costs a mean KL of 3e-3 and now and then a clear best token. The second byte brings that to
/// 5e-7 for some arithmetic; weights are still read once.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    tokens: usize,
    /// `[token][cols]`.
    pub(crate) floats: Vec<f32>,
    groups: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    offsets: Vec<f32>,
}

/// Fewer rows than this are not worth another thread.
const FEW_ROWS: usize = 8;

impl Activations {
    /// How many rows there are.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// `tokens` rows of `cols` values, each written by `fill(token, row)`; as integers too, if one
    /// of the matrices asks for that.
    pub(crate) fn fill(
        &mut self,
        m: &mut Multiplier,
        matrices: &[&Matrix],
        tokens: usize,
        cols: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let groups = match matrices.iter().any(|m| m.wants_ints()) {
            true => cols.div_ceil(GROUP),
            false => 0,
        };
        self.tokens = tokens;
        self.groups = groups;
        self.floats.resize(tokens * cols, 0.0);
        self.q.resize(tokens * groups * 2 * GROUP, 0);
        self.scales.resize(tokens * groups, 0.0);
        self.sums.resize(tokens * groups * 2, 0);
        self.offsets.resize(tokens * groups, 0.0);
        let share = m.team.share(tokens, FEW_ROWS);
        let (mut q, mut scales) = (self.q.as_mut_slice(), self.scales.as_mut_slice());
        let (mut sums, mut offsets) = (self.sums.as_mut_slice(), self.offsets.as_mut_slice());
        let mut pieces = Vec::with_capacity(tokens.div_ceil(share));
        for floats in self.floats.chunks_mut(share * cols) {
            let groups = floats.len() / cols * groups;
            pieces.push((
                floats,
                take(&mut q, groups * 2 * GROUP),
                take(&mut scales, groups),
                take(&mut sums, groups * 2),
                take(&mut offsets, groups),
            ));
        }
        let isa = m.isa;
        m.team.each(&mut pieces, |n, (floats, q, scales, sums, offsets)| {
            for (i, x) in floats.chunks_exact_mut(cols).enumerate() {
                fill(n * share + i, x);
                if groups > 0 {
                    kernels::quantize_row(
                        isa,
                        x,
                        &mut q[i * groups * 2 * GROUP..][..groups * 2 * GROUP],
                        &mut scales[i * groups..][..groups],
                        &mut sums[i * groups * 2..][..groups * 2],
                        &mut offsets[i * groups..][..groups],
                    );
                }
            }
        });
    }

    fn ints(&self) -> IntRows<'_> {
        IntRows {
            groups: self.groups,
            q: &self.q,
            scales: &self.scales,
            sums: &self.sums,
            offsets: &self.offsets,
        }
    }
}

/// Takes the first `n` off a slice.
fn take<'a, T>(from: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(from).split_at_mut(n);
    *from = rest;
    first
}

/// Multiplies rows of activations with matrices that share them, each weight read once however
/// many rows there are.
#[derive(Debug)]
pub(crate) struct Multiplier {
    pub(crate) isa: Isa,
    pub(crate) team: Team,
    /// Bytes of packed weights read so far.
    pub(crate) read: Arc<AtomicU64>,
}

/// Bytes of weights, times tokens, that are worth another thread.
const PIECE: usize = 16 * 1024;
/// Bytes of weights, and of activations, that meet each other in a core's own memory.
const NEAR: usize = 256 * 1024;

impl Multiplier {
    /// `out[token][..]` gets the results of all matrices side by side, each filled up to a
    /// multiple of sixteen.
    pub(crate) fn multiply(&mut self, matrices: &[&Matrix], x: &Activations, out: &mut Vec<f32>) {
        let tiles: usize = matrices.iter().map(|m| m.tiles()).sum();
        out.resize(x.tokens * tiles * LANES, 0.0);
        if x.tokens == 0 {
            return;
        }
        let weights: usize = matrices.iter().map(|m| m.tiles() * m.tile_bytes).sum();
        let pieces = (weights * x.tokens / PIECE).clamp(1, 8 * self.team.threads());
        let share = tiles.div_ceil(pieces);
        let mut columns = Columns::new(out, tiles * LANES);
        let mut pieces: Vec<_> = (0..tiles)
            .step_by(share)
            .map(|first| {
                let run = first..tiles.min(first + share);
                (columns.split(run.len()), run)
            })
            .collect();
        let (isa, read) = (self.isa, &*self.read);
        self.team.each(&mut pieces, |_, (columns, run)| {
            read.fetch_add(tiles_with(isa, matrices, x, run.clone(), columns), Ordering::Relaxed);
        });
    }
}

/// A run of tiles with every token; the bytes of its weights.
fn tiles_with(
    isa: Isa,
    matrices: &[&Matrix],
    x: &Activations,
    run: Range<usize>,
    columns: &mut Columns<'_>,
) -> u64 {
    let mut spare = Spare::default();
    let mut bytes = 0;
    let find = |mut tile: usize| {
        for matrix in matrices {
            if tile < matrix.tiles() {
                return (*matrix, tile);
            }
            tile -= matrix.tiles();
        }
        unreachable!("a tile of one of the matrices")
    };
    // So many tiles stay near while all tokens pass by, so many tokens while these tiles do.
    let (first, _) = find(run.start);
    let tiles = (NEAR / first.tile_bytes).max(1);
    let tokens = (NEAR / (2 * first.cols)).next_multiple_of(8);
    for near in run.clone().step_by(tiles).map(|at| at..run.end.min(at + tiles)) {
        for from in (0..x.tokens).step_by(tokens) {
            let to = x.tokens.min(from + tokens);
            for tile in near.clone() {
                let mut column = columns.column(tile - run.start, from, to - from);
                let (matrix, tile) = find(tile);
                matrix.tile(isa, tile, x, from..to, &mut column, &mut spare);
                if from == 0 {
                    bytes += matrix.tile_bytes as u64;
                }
            }
        }
    }
    bytes
}
