//! The paged KV pool.
//!
//! A block is `block_tokens` positions, cut into pages of sixteen. In a page, keys lie as
//! `[head][value][position]`, so that one query meets sixteen positions at once, and values as
//! `[head][position][value]`. In FP8 each head's sixteen exponents follow its values.

use std::ops::Range;

use polder_backend::BlockId;
use polder_model::Gqa;

use crate::fp8;
use crate::kernels::{Isa, LANES, Page, floats_to_halves};

/// Positions in a page.
pub(crate) const PAGE: usize = LANES;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// 16 bits, as IEEE has them: eleven significant bits.
    #[default]
    Half,
    /// 16 bits with the range of 32: eight significant bits.
    Bf16,
    /// 8 bits with four significant ones (e4m3), and a power of two for each position and head, so that the largest
    /// value just fits.
    Fp8,
}

impl KvFormat {
    /// Bytes of one position in a layer, with these heads.
    pub(crate) fn bytes(self, gqa: &Gqa) -> u64 {
        let (heads, dim) = (2 * u64::from(gqa.kv_heads), u64::from(gqa.head_dim));
        match self {
            Self::Half | Self::Bf16 => 2 * heads * dim,
            Self::Fp8 => heads * (dim + 1),
        }
    }
}

/// One layer's keys and values.
#[derive(Debug)]
pub(crate) struct LayerKv {
    kv_heads: usize,
    head_dim: usize,
    pages_per_block: usize,
    store: Store,
}

/// The reference keeps what it computed; otherwise half precision halves the memory.
#[derive(Debug)]
enum Store {
    Floats(Vec<f32>),
    Halves(Vec<u16>),
    Brains(Vec<u16>),
    Eighths(Vec<u8>),
}

impl LayerKv {
    /// None keeps floats: the reference.
    pub(crate) fn new(
        gqa: &Gqa,
        blocks: usize,
        block_tokens: usize,
        format: Option<KvFormat>,
    ) -> Self {
        let (kv_heads, head_dim) = (gqa.kv_heads as usize, gqa.head_dim as usize);
        let values = 2 * kv_heads * head_dim * blocks * block_tokens;
        let exponents = 2 * kv_heads * blocks * block_tokens;
        Self {
            kv_heads,
            head_dim,
            pages_per_block: block_tokens / PAGE,
            store: match format {
                None => Store::Floats(vec![0.0; values]),
                Some(KvFormat::Half) => Store::Halves(vec![0; values]),
                Some(KvFormat::Bf16) => Store::Brains(vec![0; values]),
                Some(KvFormat::Fp8) => Store::Eighths(vec![0; values + exponents]),
            },
        }
    }

    /// Values of one head's keys (or values) in a page.
    fn values_of_head(&self) -> usize {
        self.head_dim * PAGE
    }

    /// What they take in the store.
    fn head(&self) -> usize {
        match &self.store {
            Store::Eighths(_) => self.values_of_head() + PAGE,
            _ => self.values_of_head(),
        }
    }

    fn page(&self) -> usize {
        2 * self.kv_heads * self.head()
    }

    /// Where the page of `position` begins.
    fn at(&self, table: &[BlockId], position: usize) -> usize {
        let block_tokens = self.pages_per_block * PAGE;
        let block = table[position / block_tokens].0 as usize;
        let page = block * self.pages_per_block + position % block_tokens / PAGE;
        page * self.page()
    }

    /// Stores one position: `k` and `v` are `kv_heads * head_dim` values.
    pub(crate) fn write(
        &mut self,
        isa: Isa,
        table: &[BlockId],
        position: usize,
        k: &[f32],
        v: &[f32],
        spare: &mut Vec<u16>,
    ) {
        let (page, head, dim, heads) =
            (self.at(table, position), self.head(), self.head_dim, self.kv_heads);
        match &mut self.store {
            Store::Floats(store) => scatter(&mut store[page..], heads, dim, head, position, k, v),
            Store::Halves(store) => {
                spare.resize(k.len() + v.len(), 0);
                let (k16, v16) = spare.split_at_mut(k.len());
                floats_to_halves(isa, k, k16);
                floats_to_halves(isa, v, v16);
                scatter(&mut store[page..], heads, dim, head, position, k16, v16);
            }
            Store::Brains(store) => {
                spare.clear();
                spare.extend(k.iter().chain(v).map(|value| half::bf16::from_f32(*value).to_bits()));
                let (k16, v16) = spare.split_at(k.len());
                scatter(&mut store[page..], heads, dim, head, position, k16, v16);
            }
            Store::Eighths(store) => {
                let lane = position % PAGE;
                let both = k.chunks_exact(dim).chain(v.chunks_exact(dim));
                for (at, values) in both.enumerate() {
                    let to = &mut store[page + at * head..][..head];
                    let exponent = fp8::exponent(values);
                    to[dim * PAGE + lane] = exponent as u8;
                    for (d, value) in values.iter().enumerate() {
                        let place = if at < heads { d * PAGE + lane } else { lane * dim + d };
                        to[place] = fp8::encode(*value, exponent);
                    }
                }
            }
        }
    }

    /// One head's keys, `[value][16 positions]`, of the page with `position`; as floats, if so wanted. `spare` holds them
    /// where they have to be converted.
    pub(crate) fn keys<'a>(
        &'a self,
        isa: Isa,
        table: &[BlockId],
        position: usize,
        head: usize,
        floats: bool,
        spare: &'a mut Vec<f32>,
    ) -> Page<'a> {
        let at = self.at(table, position) + head * self.head();
        self.part(isa, at, true, floats, spare)
    }

    /// One head's values, `[16 positions][value]`, of the page with `position`.
    pub(crate) fn values<'a>(
        &'a self,
        isa: Isa,
        table: &[BlockId],
        position: usize,
        head: usize,
        floats: bool,
        spare: &'a mut Vec<f32>,
    ) -> Page<'a> {
        let at = self.at(table, position) + (self.kv_heads + head) * self.head();
        self.part(isa, at, false, floats, spare)
    }

    fn part<'a>(
        &'a self,
        isa: Isa,
        at: usize,
        keys: bool,
        floats: bool,
        spare: &'a mut Vec<f32>,
    ) -> Page<'a> {
        let values = self.values_of_head();
        match &self.store {
            Store::Floats(store) => Page::Floats(&store[at..at + values]),
            Store::Halves(store) => {
                let page = Page::Halves(&store[at..at + values]);
                if floats { page.floats(isa, spare) } else { page }
            }
            Store::Brains(store) => {
                spare.clear();
                let brains = store[at..at + values].iter();
                spare.extend(brains.map(|bits| f32::from_bits(u32::from(*bits) << 16)));
                Page::Floats(spare)
            }
            Store::Eighths(store) => {
                let (eighths, exponents) = store[at..at + self.head()].split_at(values);
                let scales: [f32; PAGE] = std::array::from_fn(|at| fp8::scale(exponents[at] as i8));
                spare.clear();
                if keys {
                    for lanes in eighths.chunks_exact(PAGE) {
                        spare.extend(lanes.iter().zip(scales).map(|(e, s)| fp8::decode(*e) * s));
                    }
                } else {
                    for (one, scale) in eighths.chunks_exact(self.head_dim).zip(scales) {
                        spare.extend(one.iter().map(|e| fp8::decode(*e) * scale));
                    }
                }
                Page::Floats(spare)
            }
        }
    }

    /// Copies a whole block.
    pub(crate) fn copy(&mut self, from: BlockId, to: BlockId) {
        let (from, to) = (self.block(from), self.block(to));
        match &mut self.store {
            Store::Floats(store) => store.copy_within(from, to.start),
            Store::Halves(store) | Store::Brains(store) => store.copy_within(from, to.start),
            Store::Eighths(store) => store.copy_within(from, to.start),
        }
    }

    /// Appends a block's values as they lie, least significant byte first.
    pub(crate) fn export(&self, block: BlockId, into: &mut Vec<u8>) {
        let block = self.block(block);
        match &self.store {
            Store::Floats(store) => append(&store[block], into, f32::to_le_bytes),
            Store::Halves(store) | Store::Brains(store) => {
                append(&store[block], into, u16::to_le_bytes);
            }
            Store::Eighths(store) => into.extend_from_slice(&store[block]),
        }
    }

    /// Overwrites a block with what [`Self::export`] appended, and takes that off the front of `bytes`.
    pub(crate) fn import(&mut self, block: BlockId, bytes: &mut &[u8]) {
        let block = self.block(block);
        match &mut self.store {
            Store::Floats(store) => fill(&mut store[block], bytes, f32::from_le_bytes),
            Store::Halves(store) | Store::Brains(store) => {
                fill(&mut store[block], bytes, u16::from_le_bytes);
            }
            Store::Eighths(store) => fill(&mut store[block], bytes, |byte: [u8; 1]| byte[0]),
        }
    }

    /// Where a block's values lie.
    fn block(&self, block: BlockId) -> Range<usize> {
        let values = self.pages_per_block * self.page();
        block.0 as usize * values..(block.0 as usize + 1) * values
    }
}

fn append<T: Copy, const N: usize>(values: &[T], to: &mut Vec<u8>, bytes: fn(T) -> [u8; N]) {
    let start = to.len();
    to.resize(start + values.len() * N, 0);
    for (to, value) in to[start..].as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *to = bytes(*value);
    }
}

fn fill<T, const N: usize>(values: &mut [T], bytes: &mut &[u8], value: fn([u8; N]) -> T) {
    let (ours, rest) = bytes.split_at(values.len() * N);
    for (to, from) in values.iter_mut().zip(ours.as_chunks::<N>().0) {
        *to = value(*from);
    }
    *bytes = rest;
}

fn scatter<T: Copy>(
    page: &mut [T],
    heads: usize,
    dim: usize,
    head: usize,
    position: usize,
    k: &[T],
    v: &[T],
) {
    let lane = position % PAGE;
    let (keys, values) = page.split_at_mut(heads * head);
    for h in 0..heads {
        let keys = &mut keys[h * head..][..head];
        for (d, k) in k[h * dim..(h + 1) * dim].iter().enumerate() {
            keys[d * PAGE + lane] = *k;
        }
        values[h * head + lane * dim..][..dim].copy_from_slice(&v[h * dim..(h + 1) * dim]);
    }
}
