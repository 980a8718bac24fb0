//! Weight matrices in the back end's own layout: tiles of sixteen interleaved rows.
//!
//! Packing rounds nothing: quants, scales and minima keep the file's bits. Four-bit formats keep
//! their size; five- and six-bit quants are widened to bytes, which costs memory and spares two
//! sets of kernels.

use std::sync::atomic::{AtomicU64, Ordering};

use polder_model::{Format, Model, Tensor, quant};
use rayon::prelude::*;

use crate::kernels::{
    self, FloatKind, GROUP, IntRows, IntTile, Isa, LANES, Lines, halves_to_floats,
};

/// A weight matrix, `rows` x `cols`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    layout: Layout,
    /// `tile_bytes` for each tile of sixteen rows; the last one is filled up with zeros.
    data: Lines,
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

impl Matrix {
    /// Packs a tensor, as it is stored, or as floats.
    pub(crate) fn pack(model: &Model, tensor: &Tensor, as_floats: bool) -> Self {
        let (rows, cols) = (tensor.rows, tensor.cols);
        let layout = match (as_floats, tensor.format, model.group_of(tensor)) {
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
        let mut data = Lines::zeroed(tiles * tile_bytes);
        let stored = model.bytes(tensor);
        let row_bytes = stored.len() / rows;
        let all = data.bytes_mut()[..tiles * tile_bytes].par_chunks_exact_mut(tile_bytes);
        all.enumerate().for_each(|(n, tile)| {
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

    /// One tile with every token: `out[token][16]`.
    fn tile(&self, isa: Isa, tile: usize, x: &Activations, out: &mut [f32], spare: &mut Spare) {
        let bytes = &self.data.bytes()[tile * self.tile_bytes..][..self.tile_bytes];
        match self.layout {
            Layout::Float(kind) => {
                let out = &mut out[..x.tokens * LANES];
                kernels::float_tile(isa, kind, bytes, self.cols, &x.floats, out);
            }
            Layout::Int(i) => {
                let (scales, quants) = bytes.split_at(i.scales(self.cols));
                spare.expand(isa, i, self.cols, scales);
                let tile = IntTile {
                    quants,
                    scales: &spare.scales,
                    mins: &spare.mins,
                    zero: i.zero,
                    nibbles: i.nibbles,
                    halves: i.halves,
                };
                kernels::int_tile(isa, &tile, &x.ints(), out);
            }
        }
    }
}

/// A tile's scales as floats; kept between tiles for its memory.
#[derive(Debug, Default)]
struct Spare {
    scales: Vec<f32>,
    mins: Vec<f32>,
    supers: Vec<f32>,
    halves: Vec<u16>,
}

impl Spare {
    /// Scales, and what zeros take away, for every 32 columns.
    fn expand_groups(&mut self, group: usize, bytes: &[u8]) {
        self.scales.clear();
        self.mins.clear();
        for block in bytes.chunks_exact((4 + 1) * LANES) {
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

    fn expand(&mut self, isa: Isa, layout: IntLayout, cols: usize, bytes: &[u8]) {
        if let Some(group) = layout.grouped {
            return self.expand_groups(group, &bytes[..cols / group * layout.scale_bytes()]);
        }
        let blocks = cols / layout.block();
        let halves = LANES * (1 + usize::from(layout.mins));
        let all = blocks * layout.scale_bytes();
        self.halves.clear();
        self.supers.clear();
        for block in bytes[..all].chunks_exact(layout.scale_bytes()) {
            let pairs = block[..2 * halves].as_chunks::<2>().0;
            self.halves.extend(pairs.iter().map(|b| u16::from_le_bytes(*b)));
        }
        self.supers.resize(self.halves.len(), 0.0);
        halves_to_floats(isa, &self.halves, &mut self.supers);
        self.scales.clear();
        self.mins.clear();
        for (floats, block) in
            self.supers.chunks_exact(halves).zip(bytes[..all].chunks_exact(layout.scale_bytes()))
        {
            let (d, m) = floats.split_at(LANES);
            if !layout.supers {
                self.scales.extend_from_slice(d);
                self.mins.extend_from_slice(m);
                continue;
            }
            let (scales, mins) = block[2 * halves..].split_at(layout.group_scales() * LANES);
            for group in scales.as_chunks::<LANES>().0 {
                self.scales.extend(group.iter().zip(d).map(|(s, d)| d * f32::from(*s as i8)));
            }
            for group in mins.as_chunks::<LANES>().0 {
                self.mins.extend(group.iter().zip(m).map(|(s, m)| -(m * f32::from(*s))));
            }
        }
    }
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
/// Integer matrices meet activations as two signed bytes per value, `scale * q + scale' * q'`,
/// each with its own scale for 32 columns. One byte alone is what llama.cpp uses; on SmolLM2 it
/// costs a mean KL of 3e-3 and now and then a clear best token. The second byte brings that to
/// 5e-7 for some arithmetic; weights are still read once.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    tokens: usize,
    /// `[token][cols]`.
    pub(crate) floats: Vec<f32>,
    groups: usize,
    /// Rows to multiply: one per token, or two of quants.
    rows: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Activations {
    /// Room for `tokens` rows of `cols` values, contents left over.
    pub(crate) fn reset(&mut self, tokens: usize, cols: usize) -> &mut [f32] {
        self.tokens = tokens;
        self.floats.resize(tokens * cols, 0.0);
        &mut self.floats
    }

    /// How many rows there are.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Quantizes the rows, if a matrix asks for that: each token becomes two rows of signed bytes,
    /// the second for what rounding lost of the first.
    pub(crate) fn quantize(&mut self, isa: Isa, matrices: &[&Matrix]) {
        self.rows = self.tokens;
        if self.tokens == 0 || !matrices.iter().any(|m| m.wants_ints()) {
            return;
        }
        let cols = self.floats.len() / self.tokens;
        let groups = cols.div_ceil(GROUP);
        self.groups = groups;
        self.rows = 2 * self.tokens;
        self.q.resize(self.rows * groups * GROUP, 0);
        self.scales.resize(self.rows * groups, 0.0);
        self.sums.resize(self.rows * groups * 2, 0);
        let tokens = self
            .floats
            .par_chunks_exact(cols)
            .zip(self.q.par_chunks_exact_mut(2 * groups * GROUP))
            .zip(self.scales.par_chunks_exact_mut(2 * groups))
            .zip(self.sums.par_chunks_exact_mut(2 * groups * 2));
        tokens.with_min_len(32).for_each_init(Vec::new, |lost, (((x, q), scales), sums)| {
            let (q, q_fine) = q.split_at_mut(groups * GROUP);
            let (scales, scales_fine) = scales.split_at_mut(groups);
            let (sums, sums_fine) = sums.split_at_mut(groups * 2);
            kernels::quantize_row(isa, x, q, scales, sums);
            lost.resize(cols, 0.0);
            kernels::lost_by_rounding(isa, x, q, scales, lost);
            kernels::quantize_row(isa, lost, q_fine, scales_fine, sums_fine);
        });
    }

    fn ints(&self) -> IntRows<'_> {
        IntRows { groups: self.groups, q: &self.q, scales: &self.scales, sums: &self.sums }
    }
}

/// Multiplies rows of activations with matrices that share them, each weight read once however
/// many rows there are.
#[derive(Debug)]
pub(crate) struct Multiplier {
    pub(crate) isa: Isa,
    /// Bytes of packed weights read so far.
    pub(crate) read: AtomicU64,
}

impl Multiplier {
    /// `out[token][..]` gets the results of all matrices side by side, each filled up to a
    /// multiple of sixteen. `tiled` is scratch.
    pub(crate) fn multiply(
        &self,
        matrices: &[&Matrix],
        x: &Activations,
        tiled: &mut Vec<f32>,
        out: &mut Vec<f32>,
    ) {
        let (tokens, rows) = (x.tokens, x.rows);
        let tiles: usize = matrices.iter().map(|m| m.tiles()).sum();
        let width = tiles * LANES;
        out.resize(tokens * width, 0.0);
        if rows <= 1 {
            return self.tiles(matrices, x, out);
        }
        tiled.resize(rows * width, 0.0);
        self.tiles(matrices, x, tiled);
        out.par_chunks_exact_mut(width).with_min_len(16).enumerate().for_each(|(t, to)| {
            let mut tiles =
                to.as_chunks_mut::<LANES>().0.iter_mut().zip(tiled.chunks(rows * LANES));
            for matrix in matrices {
                for (to, from) in tiles.by_ref().take(matrix.tiles()) {
                    if matrix.wants_ints() {
                        let (coarse, fine) = from[2 * t * LANES..][..2 * LANES].split_at(LANES);
                        for ((to, a), b) in to.iter_mut().zip(coarse).zip(fine) {
                            *to = a + b;
                        }
                    } else {
                        to.copy_from_slice(&from[t * LANES..][..LANES]);
                    }
                }
            }
        });
    }

    /// Tile by tile: `out[tile][row][16]`; a float tile fills only as many rows as there are tokens.
    fn tiles(&self, matrices: &[&Matrix], x: &Activations, out: &mut [f32]) {
        let rows = x.rows;
        if rows == 0 {
            return;
        }
        let weights: usize = matrices.iter().map(|m| m.tiles() * m.tile_bytes).sum();
        let tiles = out.len() / (rows * LANES);
        // Pieces of at least this many bytes of weights pay for being handed to another thread.
        let pieces = (weights / 16384).clamp(1, 4 * rayon::current_num_threads());
        let run = tiles.div_ceil(pieces);
        out.par_chunks_mut(run * rows * LANES).enumerate().for_each(|(piece, out)| {
            let mut spare = Spare::default();
            let mut bytes = 0;
            for (n, out) in out.chunks_exact_mut(rows * LANES).enumerate() {
                let mut tile = piece * run + n;
                for matrix in matrices {
                    if tile < matrix.tiles() {
                        matrix.tile(self.isa, tile, x, out, &mut spare);
                        bytes += matrix.tile_bytes as u64;
                        break;
                    }
                    tile -= matrix.tiles();
                }
            }
            self.read.fetch_add(bytes, Ordering::Relaxed);
        });
    }
}
