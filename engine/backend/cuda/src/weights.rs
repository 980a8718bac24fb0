//! A model's weights on the card, by what they do.

use std::sync::Arc;

use polder_backend::Writer;
use polder_model::{FfnWeights, LayerWeights, Model, Tensor};

use crate::device::{Buffer, Device, Failure};
use crate::loading::{Brought, Came, Card, ReadBack, bring};
use crate::packed::{Keeping, Opened, PackedTiles};
use crate::packing::{Part, Plan};
use crate::tiles::Matrix;

/// Why a model cannot be kept on a card.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A width that the kernels do not take.
    #[error("the kernels take {what} in multiples of {multiple}, and this model has {value}")]
    Width {
        /// Of what.
        what: &'static str,
        /// What it must divide by.
        multiple: usize,
        /// What it is.
        value: usize,
    },
    /// The card refuses.
    #[error(transparent)]
    Device(#[from] Failure),
}

/// All of a model's weights on the card.
#[derive(Debug)]
pub struct DeviceWeights {
    /// `[vocab][hidden]` bf16, row after row: rows are looked up.
    pub embedding: Arc<Buffer<u8>>,
    /// First to last.
    pub layers: Vec<DeviceLayer>,
    /// `[hidden]`
    pub output_norm: Buffer<f32>,
    /// `vocab` x `hidden`.
    pub head: Matrix,
}

/// One layer's.
#[derive(Debug)]
pub struct DeviceLayer {
    /// Norm before attention.
    pub attention_norm: Buffer<f32>,
    /// Queries, keys, values, one below the other.
    pub qkv: Matrix,
    /// Their biases, in the same order.
    pub qkv_bias: Option<Buffer<f32>>,
    /// Norms over a query's and a key's head.
    pub qk_norm: Option<[Buffer<f32>; 2]>,
    /// Back to the stream.
    pub output: Matrix,
    /// Norm after attention.
    pub attention_post_norm: Option<Buffer<f32>>,
    /// Norm before the second half.
    pub ffn_norm: Buffer<f32>,
    /// The second half.
    pub ffn: DeviceFfn,
    /// Norm after it.
    pub ffn_post_norm: Option<Buffer<f32>>,
}

/// The second half of a layer.
#[derive(Debug)]
pub enum DeviceFfn {
    /// One for every token: gate and up in turn by strips, and down.
    Dense {
        /// `2 * inner` x `hidden`
        gate_up: Matrix,
        /// `hidden` x `inner`
        down: Matrix,
    },
    /// Several.
    Moe {
        /// `experts` x `hidden`, bf16.
        router: Matrix,
        /// Of every expert: `2 * inner` x `hidden`.
        gate_up: Matrix,
        /// Of every expert: `hidden` x `inner`.
        down: Matrix,
    },
}

impl DeviceWeights {
    /// Brings them to the card, from the file that keeps them packed or from the checkpoint; `progress` hears thousandths. What is
    /// then to be written to that file begins with [`Unkept::start`].
    pub fn load(
        model: &Model,
        device: &Device,
        kept: Option<&PackedTiles>,
        progress: impl Fn(u32),
    ) -> Result<(Self, Option<Unkept>), WeightError> {
        let began = std::time::Instant::now();
        let plan = Plan::of(model)?;
        let needed = plan.bytes();
        let opened = kept.and_then(|kept| Opened::find(kept, &plan));
        let mut card = Card::new(device, &plan)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let told = |bytes: u64| progress((1000 * bytes / needed) as u32);
        let Brought { came, packing } = bring(&plan, opened.as_ref(), &mut card, threads, told)?;
        let seconds = began.elapsed().as_secs_f64();
        log::info!(
            from:? = came, packing = packing, gigabytes:% = format!("{:.1}", needed as f64 / 1e9), seconds:% = format!("{seconds:.1}");
            "weights are on the card"
        );
        let norms = Norms { model, device };
        let mut parts = plan.parts.iter().zip(card.buffers.iter().cloned());
        let embedding = parts.next().expect("a plan begins with it").1;
        let layers = model.weights.layers.iter().map(|layer| norms.layer(layer, &mut parts));
        let layers = layers.collect::<Result<_, _>>()?;
        let head = matrix(&mut parts);
        let output_norm = norms.norm(&model.weights.output_norm)?;
        drop(opened);
        let keeping = kept.and_then(|kept| match came {
            Came::Packed => Keeping::of(kept, &plan, packing),
            // It was worth it once. The damaged one goes first: there may be no room for both.
            Came::Mended => {
                kept.remove();
                Keeping::of(kept, &plan, 100)
            }
            _ => None,
        });
        let unkept = keeping.and_then(|keeping| {
            ReadBack::new(card, plan.longest())
                .map(|from| Unkept { keeping, from })
                .inspect_err(|why| log::warn!("packed weights are not kept: {why}"))
                .ok()
        });
        model.let_go();
        Ok((Self { embedding, layers, output_norm, head }, unkept))
    }

    /// Bytes of the matrices that a step reads, experts and head included, embedding not.
    pub fn matrix_bytes(&self) -> u64 {
        let layer = |layer: &DeviceLayer| {
            let ffn = match &layer.ffn {
                DeviceFfn::Dense { gate_up, down } => gate_up.bytes() + down.bytes(),
                DeviceFfn::Moe { router, gate_up, down } => {
                    router.bytes() + gate_up.bytes() + down.bytes()
                }
            };
            layer.qkv.bytes() + layer.output.bytes() + ffn
        };
        (self.layers.iter().map(layer).sum::<usize>() + self.head.bytes()) as u64
    }
}

/// Packed weights that are on the card and not in their file yet.
#[derive(Debug)]
pub struct Unkept {
    keeping: Keeping,
    from: ReadBack,
}

impl Unkept {
    /// Writes them in a thread of its own.
    pub fn start(self) -> Option<Writer> {
        let Self { keeping, mut from } = self;
        keeping.start(move |piece, to| from.piece(piece, to))
    }
}

/// The next part of a plan as a matrix.
fn matrix<'p, 'm: 'p>(parts: &mut impl Iterator<Item = (&'p Part<'m>, Arc<Buffer<u8>>)>) -> Matrix {
    let (part, tiles) = parts.next().expect("a plan has all that a model has, in the same order");
    Matrix::of(tiles, part.shape, part.format, part.count)
}

/// What is small, and goes straight to the card.
struct Norms<'a> {
    model: &'a Model,
    device: &'a Device,
}

impl Norms<'_> {
    fn layer<'p, 'm: 'p>(
        &self,
        layer: &LayerWeights,
        parts: &mut impl Iterator<Item = (&'p Part<'m>, Arc<Buffer<u8>>)>,
    ) -> Result<DeviceLayer, WeightError> {
        let norm = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| self.norm(t)).transpose();
        let bias = layer.qkv_bias.as_ref().map(|biases| {
            let all: Vec<f32> = biases.iter().flat_map(|b| self.model.values(b)).collect();
            self.device.buffer_of(&all)
        });
        let qk_norm = match &layer.qk_norm {
            Some([q, k]) => Some([self.norm(q)?, self.norm(k)?]),
            None => None,
        };
        Ok(DeviceLayer {
            attention_norm: self.norm(&layer.attention_norm)?,
            qkv: matrix(parts),
            qkv_bias: bias.transpose()?,
            qk_norm,
            output: matrix(parts),
            attention_post_norm: norm(&layer.attention_post_norm)?,
            ffn_norm: self.norm(&layer.ffn_norm)?,
            ffn: match layer.ffn {
                FfnWeights::Dense(_) => {
                    DeviceFfn::Dense { gate_up: matrix(parts), down: matrix(parts) }
                }
                FfnWeights::Moe { .. } => DeviceFfn::Moe {
                    router: matrix(parts),
                    gate_up: matrix(parts),
                    down: matrix(parts),
                },
            },
            ffn_post_norm: norm(&layer.ffn_post_norm)?,
        })
    }

    /// As it is multiplied with.
    fn norm(&self, tensor: &Tensor) -> Result<Buffer<f32>, WeightError> {
        let mut values = self.model.values(tensor);
        if self.model.spec.norms_from_one {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(self.device.buffer_of(&values)?)
    }
}
