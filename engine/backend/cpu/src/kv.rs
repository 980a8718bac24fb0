//! The paged KV pool.
//!
//! A block is `block_tokens` positions, cut into pages of sixteen. In a page, keys lie as
//! `[head][value][position]`, so that one query meets sixteen positions at once, and values as
//! `[head][position][value]`.

use std::ops::Range;

use polder_backend::BlockId;
use polder_model::Gqa;

use crate::kernels::{Isa, LANES, Page, floats_to_halves};

/// Positions in a page.
pub(crate) const PAGE: usize = LANES;

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
}

impl LayerKv {
    pub(crate) fn new(gqa: &Gqa, blocks: usize, block_tokens: usize, floats: bool) -> Self {
        let (kv_heads, head_dim) = (gqa.kv_heads as usize, gqa.head_dim as usize);
        let values = 2 * kv_heads * head_dim * blocks * block_tokens;
        Self {
            kv_heads,
            head_dim,
            pages_per_block: block_tokens / PAGE,
            store: match floats {
                true => Store::Floats(vec![0.0; values]),
                false => Store::Halves(vec![0; values]),
            },
        }
    }

    /// Values of one head's keys (or values) in a page.
    fn head(&self) -> usize {
        self.head_dim * PAGE
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
        }
    }

    /// One head's keys, `[value][16 positions]`, of the page with `position`.
    pub(crate) fn keys(&self, table: &[BlockId], position: usize, head: usize) -> Page<'_> {
        self.part(self.at(table, position) + head * self.head())
    }

    /// One head's values, `[16 positions][value]`, of the page with `position`.
    pub(crate) fn values(&self, table: &[BlockId], position: usize, head: usize) -> Page<'_> {
        self.part(self.at(table, position) + (self.kv_heads + head) * self.head())
    }

    fn part(&self, at: usize) -> Page<'_> {
        match &self.store {
            Store::Floats(store) => Page::Floats(&store[at..at + self.head()]),
            Store::Halves(store) => Page::Halves(&store[at..at + self.head()]),
        }
    }

    /// Copies a whole block.
    pub(crate) fn copy(&mut self, from: BlockId, to: BlockId) {
        let (from, to) = (self.block(from), self.block(to));
        match &mut self.store {
            Store::Floats(store) => store.copy_within(from, to.start),
            Store::Halves(store) => store.copy_within(from, to.start),
        }
    }

    /// Appends a block's values as they lie, least significant byte first.
    pub(crate) fn export(&self, block: BlockId, into: &mut Vec<u8>) {
        let block = self.block(block);
        match &self.store {
            Store::Floats(store) => append(&store[block], into, f32::to_le_bytes),
            Store::Halves(store) => append(&store[block], into, u16::to_le_bytes),
        }
    }

    /// Overwrites a block with what [`Self::export`] appended, and takes that off the front of `bytes`.
    pub(crate) fn import(&mut self, block: BlockId, bytes: &mut &[u8]) {
        let block = self.block(block);
        match &mut self.store {
            Store::Floats(store) => fill(&mut store[block], bytes, f32::from_le_bytes),
            Store::Halves(store) => fill(&mut store[block], bytes, u16::from_le_bytes),
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
