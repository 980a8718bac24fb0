//! A model's weights, from its files into the card's memory.

use polder_model::{FfnWeights, Format, Gated, LayerWeights, Model, Tensor};

use crate::device::{Buffer, Device, Failure};
use crate::tiles::{COLUMNS, Matrix, Rows, STRIP, TileFormat, pack_strip, packed_bytes};

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
    pub embedding: Buffer<u16>,
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
    /// Packs and uploads; `progress` hears thousandths.
    pub fn load(
        model: &Model,
        device: &Device,
        progress: impl Fn(u32),
    ) -> Result<Self, WeightError> {
        let packer = Packer { model, device };
        let spec = &model.spec;
        let hidden = spec.hidden as usize;
        multiple("a hidden state", COLUMNS, hidden)?;
        let embedding = &model.weights.embedding;
        let mut rows = vec![0_u16; embedding.rows * hidden];
        each(&mut rows, hidden, |row, to| {
            let mut values = vec![0.0; hidden];
            model.row(embedding, row, &mut values);
            to.iter_mut().zip(values).for_each(|(to, v)| *to = half::bf16::from_f32(v).to_bits());
        });
        let embedding = device.buffer_of(&rows)?;
        drop(rows);
        let count = model.weights.layers.len();
        let mut layers = Vec::with_capacity(count);
        for (n, layer) in model.weights.layers.iter().enumerate() {
            layers.push(packer.layer(layer)?);
            progress((1000 * n / count) as u32);
        }
        let head = model.weights.output.as_ref().unwrap_or(&model.weights.embedding);
        let head = packer.matrix(&[head])?;
        let output_norm = packer.norm(&model.weights.output_norm)?;
        progress(1000);
        Ok(Self { embedding, layers, output_norm, head })
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

fn multiple(what: &'static str, multiple: usize, value: usize) -> Result<(), WeightError> {
    match value.is_multiple_of(multiple) {
        true => Ok(()),
        false => Err(WeightError::Width { what, multiple, value }),
    }
}

struct Packer<'a> {
    model: &'a Model,
    device: &'a Device,
}

impl Packer<'_> {
    fn layer(&self, layer: &LayerWeights) -> Result<DeviceLayer, WeightError> {
        let norm = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| self.norm(t)).transpose();
        let bias = layer.qkv_bias.as_ref().map(|biases| {
            let all: Vec<f32> = biases.iter().flat_map(|b| self.model.values(b)).collect();
            self.device.buffer_of(&all)
        });
        for tensor in [&layer.q, &layer.k, &layer.v] {
            multiple("heads all together", STRIP, tensor.rows)?;
        }
        multiple("query heads all together", COLUMNS, layer.o.cols)?;
        let qk_norm = match &layer.qk_norm {
            Some([q, k]) => Some([self.norm(q)?, self.norm(k)?]),
            None => None,
        };
        Ok(DeviceLayer {
            attention_norm: self.norm(&layer.attention_norm)?,
            qkv: self.matrix(&[&layer.q, &layer.k, &layer.v])?,
            qkv_bias: bias.transpose()?,
            qk_norm,
            output: self.matrix(&[&layer.o])?,
            attention_post_norm: norm(&layer.attention_post_norm)?,
            ffn_norm: self.norm(&layer.ffn_norm)?,
            ffn: self.ffn(&layer.ffn)?,
            ffn_post_norm: norm(&layer.ffn_post_norm)?,
        })
    }

    fn ffn(&self, ffn: &FfnWeights) -> Result<DeviceFfn, WeightError> {
        match ffn {
            FfnWeights::Dense(gated) => {
                multiple("the feed-forward part", COLUMNS, gated.gate.rows)?;
                let [gate_up, down] = self.experts(std::slice::from_ref(gated))?;
                Ok(DeviceFfn::Dense { gate_up, down })
            }
            FfnWeights::Moe { router, experts } => {
                multiple("an expert", COLUMNS, experts[0].gate.rows)?;
                let [gate_up, down] = self.experts(experts)?;
                let router = self.packed(&Layout::Stack(&[router]), TileFormat::Bf16)?;
                let router = self.upload(
                    &router,
                    (router_rows(ffn), self.model.spec.hidden as usize),
                    TileFormat::Bf16,
                    1,
                )?;
                Ok(DeviceFfn::Moe { router, gate_up, down })
            }
        }
    }

    /// Gate and up of all, and down of all.
    fn experts(&self, experts: &[Gated]) -> Result<[Matrix; 2], WeightError> {
        let first = &experts[0];
        let all = |of: fn(&Gated) -> [&Tensor; 2]| {
            let tensors: Vec<&Tensor> = experts.iter().flat_map(of).collect();
            self.format(&tensors)
        };
        let gate_up_format = all(|e| [&e.gate, &e.up]);
        let down_format = all(|e| [&e.down, &e.down]);
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in experts {
            gate_up.append(
                &mut self.packed(&Layout::Turns([&expert.gate, &expert.up]), gate_up_format)?,
            );
            down.append(&mut self.packed(&Layout::Stack(&[&expert.down]), down_format)?);
        }
        let count = experts.len();
        Ok([
            self.upload(&gate_up, (2 * first.gate.rows, first.gate.cols), gate_up_format, count)?,
            self.upload(&down, (first.down.rows, first.down.cols), down_format, count)?,
        ])
    }

    /// Tensors one below the other.
    fn matrix(&self, tensors: &[&Tensor]) -> Result<Matrix, WeightError> {
        let format = self.format(tensors);
        let packed = self.packed(&Layout::Stack(tensors), format)?;
        let rows = tensors.iter().map(|t| t.rows).sum();
        self.upload(&packed, (rows, tensors[0].cols), format, 1)
    }

    fn upload(
        &self,
        packed: &[u8],
        shape: (usize, usize),
        format: TileFormat,
        count: usize,
    ) -> Result<Matrix, WeightError> {
        Ok(Matrix::new(self.device, packed, shape, format, count)?)
    }

    /// One format for all: their own where it is the same, else bf16, which holds each.
    fn format(&self, tensors: &[&Tensor]) -> TileFormat {
        let mut formats = tensors.iter().map(|t| (self.own_format(t), self.model.group_of(t)));
        let first = formats.next().unwrap_or((TileFormat::Bf16, None));
        if formats.all(|format| format == first) { first.0 } else { TileFormat::Bf16 }
    }

    fn own_format(&self, tensor: &Tensor) -> TileFormat {
        let format = TileFormat::of(self.model, tensor);
        if format == TileFormat::Fp8 {
            let mut scales = vec![0.0; tensor.cols / COLUMNS];
            if self.model.bytes_and_scales(tensor, 0, COLUMNS, &mut scales).is_none() {
                return TileFormat::Bf16;
            }
        }
        format
    }

    fn packed(&self, layout: &Layout<'_>, format: TileFormat) -> Result<Vec<u8>, WeightError> {
        let columns = layout.columns();
        multiple("a matrix's columns", COLUMNS, columns)?;
        let mut packed = vec![0; packed_bytes(layout.rows(), columns, format)];
        each(&mut packed, format.strip_bytes(columns), |strip, to| {
            pack_strip(&self.strip(layout, strip, format), columns, format, to);
        });
        Ok(packed)
    }

    /// Sixteen rows; zeros behind the last one.
    fn strip(&self, layout: &Layout<'_>, strip: usize, format: TileFormat) -> Rows {
        let columns = layout.columns();
        let rows = (0..STRIP).map(|row| layout.row(strip, row));
        match format {
            TileFormat::Bf16 => {
                let mut values = vec![0.0; STRIP * columns];
                for (place, to) in rows.zip(values.chunks_exact_mut(columns)) {
                    if let Some((tensor, row)) = place {
                        self.model.row(tensor, row, to);
                    }
                }
                Rows::Values(values)
            }
            TileFormat::Int4 { .. } => {
                let given = layout.group(self.model);
                let groups = columns / given;
                let mut q = vec![0; STRIP * columns];
                let (mut scales, mut zeros) = (vec![0.0; STRIP * groups], vec![0; STRIP * groups]);
                for (n, place) in rows.enumerate() {
                    let Some((tensor, row)) = place else { continue };
                    let range = n * groups..(n + 1) * groups;
                    let q = &mut q[n * columns..(n + 1) * columns];
                    self.model.group(tensor, row, q, &mut scales[range.clone()], &mut zeros[range]);
                }
                Rows::Grouped { q, scales, zeros, group: given }
            }
            TileFormat::Fp8 => {
                let units = columns / COLUMNS;
                let (mut bytes, mut scales) = (vec![0; STRIP * columns], vec![0.0; STRIP * units]);
                for (n, place) in rows.enumerate() {
                    let Some((tensor, row)) = place else { continue };
                    let scales = &mut scales[n * units..(n + 1) * units];
                    let of = self.model.bytes_and_scales(tensor, row, COLUMNS, scales);
                    bytes[n * columns..(n + 1) * columns]
                        .copy_from_slice(of.expect("a format that was chosen for this tensor"));
                }
                Rows::Bytes { bytes, scales }
            }
        }
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

fn router_rows(ffn: &FfnWeights) -> usize {
    match ffn {
        FfnWeights::Dense(_) => 0,
        FfnWeights::Moe { router, .. } => router.rows,
    }
}

/// Which rows a matrix has.
enum Layout<'a> {
    /// Of the first, then of the second, and so on.
    Stack(&'a [&'a Tensor]),
    /// A strip of the first, a strip of the second, in turn.
    Turns([&'a Tensor; 2]),
}

impl<'a> Layout<'a> {
    fn rows(&self) -> usize {
        match self {
            Self::Stack(tensors) => tensors.iter().map(|t| t.rows).sum(),
            Self::Turns([first, second]) => first.rows + second.rows,
        }
    }

    fn first(&self) -> &'a Tensor {
        match self {
            Self::Stack(tensors) => tensors[0],
            Self::Turns([first, _]) => first,
        }
    }

    fn columns(&self) -> usize {
        self.first().cols
    }

    fn group(&self, model: &Model) -> usize {
        debug_assert_ne!(self.first().format, Format::F32, "a tensor in groups");
        model.group_of(self.first()).expect("a format that was chosen for this tensor")
    }

    /// Where a packed row comes from.
    fn row(&self, strip: usize, row: usize) -> Option<(&'a Tensor, usize)> {
        match self {
            Self::Stack(tensors) => {
                let mut row = strip * STRIP + row;
                for tensor in *tensors {
                    if row < tensor.rows {
                        return Some((tensor, row));
                    }
                    row -= tensor.rows;
                }
                None
            }
            Self::Turns(tensors) => Some((tensors[strip % 2], strip / 2 * STRIP + row)),
        }
    }
}

/// Does `work` for every piece of `size` values, on all cores.
fn each<T: Send>(all: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let pieces = all.len().div_ceil(size);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces).max(1);
    let share = pieces.div_ceil(threads);
    std::thread::scope(|scope| {
        for (n, share_of) in all.chunks_mut(share * size).enumerate() {
            let work = &work;
            scope.spawn(move || {
                for (i, piece) in share_of.chunks_mut(size).enumerate() {
                    work(n * share + i, piece);
                }
            });
        }
    });
}
