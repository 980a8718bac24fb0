//! Embedding rows, norms, copies of KV blocks: `kernels/basics.cu`.

use crate::device::{Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;

/// The stream of hidden states from token numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// `[tokens]` u32: a token, or the top bit and a slot, whose last token counts.
    pub tokens: Ptr,
    /// `[slots]` u32: what each slot sampled last.
    pub last: Ptr,
    /// `[vocab][hidden]` bf16.
    pub table: Ptr,
    /// `[tokens][hidden]` f32.
    pub stream: Ptr,
    /// Multiplies.
    pub scale: f32,
    /// Width.
    pub hidden: u32,
}

/// An RMS norm, and what is added to the stream before it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// `[.][hidden]` f32. What is added is added here.
    pub stream: Ptr,
    /// `[rows][hidden]` bf16 that is added first, or none.
    pub add: Ptr,
    /// `[hidden]` f32: what is added is normed with these first. Or none.
    pub add_norm: Ptr,
    /// `[hidden]` f32.
    pub weight: Ptr,
    /// `[rows]` u32: which rows of the stream. Or none: all. With it nothing is added.
    pub pick: Ptr,
    /// `[rows][hidden]` bf16, or none.
    pub out: Ptr,
    /// `[rows][hidden]` f32, or none.
    pub out_f32: Ptr,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// Width, even.
    pub hidden: u32,
    /// Not 0: `out` is an [`Image`](crate::linear::Image) of so many rows.
    pub padded: u32,
}

/// Copies between blocks of the pool, one after the other.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CopyBlocks {
    /// `[layers][blocks][bytes]`
    pub pool: Ptr,
    /// `[copies][2]` u32: from, to.
    pub pairs: Ptr,
    /// How many.
    pub copies: u32,
    /// Of one block of one layer, a multiple of 16.
    pub bytes: u32,
    /// Of all blocks of one layer.
    pub layer_bytes: u64,
}

/// The kernels.
#[derive(Debug)]
pub struct Basics {
    embed: Kernel,
    norm: Kernel,
    copy_blocks: Kernel,
    _module: Loaded,
}

impl Basics {
    /// Loads them.
    pub fn load(pack: &Pack, device: &Device) -> Result<Self, KernelError> {
        let module = pack.load(module("basics"), device)?;
        Ok(Self {
            embed: module.kernel(c"embed")?,
            norm: module.kernel(c"rms_norm")?,
            copy_blocks: module.kernel(c"copy_blocks")?,
            _module: module,
        })
    }

    /// # Safety
    /// The addresses reach as far as the call says until the work is done.
    pub unsafe fn embed(
        &self,
        stream: &Stream,
        call: &Embed,
        tokens: usize,
    ) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&self.embed, &row(tokens, call.hidden), call) }
    }

    /// # Safety
    /// As for [`Self::embed`].
    pub unsafe fn norm(&self, stream: &Stream, call: &Norm, rows: usize) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&self.norm, &row(rows, call.hidden), call) }
    }

    /// # Safety
    /// As for [`Self::embed`].
    pub unsafe fn copy_blocks(
        &self,
        stream: &Stream,
        call: &CopyBlocks,
        layers: usize,
    ) -> Result<(), Failure> {
        let shape = Shape {
            grid: [call.bytes.div_ceil(16 * 128), layers as u32, 1],
            block: 128,
            shared: 0,
            overlaps: true,
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&self.copy_blocks, &shape, call) }
    }
}

/// One block for each row.
fn row(rows: usize, hidden: u32) -> Shape {
    let block = (hidden / 4).next_multiple_of(32).clamp(32, 512);
    Shape { overlaps: true, ..Shape::row(rows as u32, block) }
}
