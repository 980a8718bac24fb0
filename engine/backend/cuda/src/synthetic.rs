//! Weights that are drawn: a model's true shapes without its files, to measure with.
//!
//! Answers are noise, but neither the same token again and again nor the same experts for everyone: what a layer adds to the
//! stream is small beside what a token brings, so that tokens stay apart, and routers see about independent directions.

use std::sync::Arc;

use polder_model::{Attention, Ffn, ModelSpec};

use crate::device::{Buffer, Device, Kernel, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;
use crate::tiles::{Matrix, TileFormat, packed_bytes};
use crate::weights::{DeviceFfn, DeviceLayer, DeviceWeights};

#[repr(C)]
#[derive(Clone, Copy)]
struct DrawArgs {
    words: Ptr,
    count: u64,
    seed: u64,
    size: f32,
    format: u32,
    group: u32,
}

/// Draws a model's weights on the card. Projections and experts are kept in `format`; router, embedding and head in bf16.
pub fn draw(
    spec: &ModelSpec,
    format: TileFormat,
    pack: &Pack,
    device: &Device,
    seed: u64,
) -> Result<DeviceWeights, KernelError> {
    let loaded = pack.load(module("synthetic"), device)?;
    let stream = device.stream()?;
    let mut drawer = Drawer { device, stream, kernel: loaded.kernel(c"draw_tiles")?, seed };
    let hidden = spec.hidden as usize;
    let vocab = spec.vocab as usize;
    // Of what each half of each layer adds.
    let small = 0.5 / (2.0 * spec.layers.len() as f32).sqrt();
    let embedding = Arc::new(device.buffer::<u8>(2 * vocab * hidden)?);
    drawer.fill(&embedding, TileFormat::Bf16, 1.0)?;
    let mut layers = Vec::with_capacity(spec.layers.len());
    for layer in &spec.layers {
        let Attention::Gqa(gqa) = &layer.attention;
        let (q, kv) = ((gqa.heads * gqa.head_dim) as usize, (gqa.kv_heads * gqa.head_dim) as usize);
        let ones = |n: usize| device.buffer_of(&vec![1.0_f32; n]);
        let qk_norm = [ones(gqa.head_dim as usize)?, ones(gqa.head_dim as usize)?];
        layers.push(DeviceLayer {
            attention_norm: ones(hidden)?,
            qkv: drawer.matrix(q + 2 * kv, hidden, format, 1, 1.0)?,
            qkv_bias: gqa
                .qkv_bias
                .then(|| device.buffer_of(&vec![0.0_f32; q + 2 * kv]))
                .transpose()?,
            qk_norm: gqa.qk_norm.then_some(qk_norm),
            output: drawer.matrix(hidden, q, format, 1, small)?,
            attention_post_norm: if layer.post_norms { Some(ones(hidden)?) } else { None },
            ffn_norm: ones(hidden)?,
            ffn: match &layer.ffn {
                Ffn::Dense { inner, .. } => DeviceFfn::Dense {
                    gate_up: drawer.matrix(2 * *inner as usize, hidden, format, 1, 1.0)?,
                    down: drawer.matrix(hidden, *inner as usize, format, 1, 2.0 * small)?,
                },
                Ffn::Moe(moe) => {
                    let (experts, inner) = (moe.experts as usize, moe.inner as usize);
                    DeviceFfn::Moe {
                        router: drawer.matrix(experts, hidden, TileFormat::Bf16, 1, 1.0)?,
                        gate_up: drawer.matrix(2 * inner, hidden, format, experts, 1.0)?,
                        down: drawer.matrix(hidden, inner, format, experts, 2.0 * small)?,
                    }
                }
            },
            ffn_post_norm: if layer.post_norms { Some(ones(hidden)?) } else { None },
        });
    }
    let head = drawer.matrix(vocab, hidden, TileFormat::Bf16, 1, 1.0)?;
    let output_norm = device.buffer_of(&vec![1.0_f32; hidden])?;
    drawer.stream.synchronize()?;
    Ok(DeviceWeights { embedding, layers, output_norm, head })
}

/// Bytes of the weights that are drawn for a model, but for norms.
pub fn bytes(spec: &ModelSpec, format: TileFormat) -> u64 {
    let (hidden, vocab) = (spec.hidden as usize, spec.vocab as usize);
    let layers = spec.layers.iter().map(|layer| {
        let Attention::Gqa(gqa) = &layer.attention;
        let (q, kv) = ((gqa.heads * gqa.head_dim) as usize, (gqa.kv_heads * gqa.head_dim) as usize);
        let gated = |inner: u32| {
            packed_bytes(2 * inner as usize, hidden, format)
                + packed_bytes(hidden, inner as usize, format)
        };
        let ffn = match &layer.ffn {
            Ffn::Dense { inner, .. } => gated(*inner),
            Ffn::Moe(moe) => {
                packed_bytes(moe.experts as usize, hidden, TileFormat::Bf16)
                    + moe.experts as usize * gated(moe.inner)
            }
        };
        packed_bytes(q + 2 * kv, hidden, format) + packed_bytes(hidden, q, format) + ffn
    });
    let head = packed_bytes(vocab, hidden, TileFormat::Bf16);
    (layers.sum::<usize>() + 2 * vocab * hidden + head) as u64
}

struct Drawer<'a> {
    device: &'a Device,
    stream: Stream,
    kernel: Kernel,
    seed: u64,
}

impl Drawer<'_> {
    /// `gain` of 1 keeps the size of what goes through.
    fn matrix(
        &mut self,
        rows: usize,
        columns: usize,
        format: TileFormat,
        count: usize,
        gain: f32,
    ) -> Result<Matrix, KernelError> {
        let bytes = packed_bytes(rows, columns, format) * count;
        let tiles = Arc::new(self.device.buffer::<u8>(bytes)?);
        self.fill(&tiles, format, gain / (columns as f32).sqrt())?;
        Ok(Matrix::of(tiles, (rows, columns), format, count))
    }

    fn fill(&mut self, to: &Buffer<u8>, format: TileFormat, size: f32) -> Result<(), KernelError> {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let arguments = DrawArgs {
            words: to.at(),
            count: (to.len() / 4) as u64,
            seed: self.seed,
            size,
            format: format.number(),
            group: format.group() as u32,
        };
        // SAFETY: the count of words is the buffer's, and the stream is waited for before it can be freed.
        unsafe { self.stream.launch(&self.kernel, &Shape::row(4096, 256), &arguments) }?;
        Ok(())
    }
}
