//! One step, layer by layer, as launches in a stream. What is launched depends on the step's size alone, so that the launches of a
//! size can be recorded once and played again.

use std::ops::Range;

use polder_model::{self as model, Attention as Seeing, Ffn, ModelSpec};

use crate::attention::{Attend, AttendCall, HeadShape, Heads, HeadsCall, Turn, Work as Sharing};
use crate::basics::{Basics, CopyBlocks, Embed, Norm};
use crate::device::{Buffer, Device, Failure, Ptr, Stream};
use crate::kv::Pool;
use crate::linear::{self, Image, Linear, Out, Right};
use crate::moe::{self, Mixture, Moe, Space};
use crate::pack::{KernelError, Pack};
use crate::step::{Layout, Size};
use crate::tiles::Matrix;
use crate::weights::{DeviceFfn, DeviceLayer, DeviceWeights};

/// A model on a card, and memory for one step at a time.
#[derive(Debug)]
pub(crate) struct Forward {
    spec: ModelSpec,
    weights: DeviceWeights,
    basics: Basics,
    linear: Linear,
    heads: Heads,
    attend: Attend,
    moe: Moe,
    /// Frequencies of each different rope, and which of them each layer has.
    ropes: Vec<Buffer<f64>>,
    rope_of: Vec<usize>,
    work: Work,
}

/// Memory that steps use again and again. All of it is for the most tokens of a step.
#[derive(Debug)]
struct Work {
    /// `[token][hidden]` f32: the stream.
    stream: Buffer<f32>,
    /// `[token][hidden]` bf16: the stream, normed.
    normed: Buffer<u16>,
    /// `[token][heads and kv heads]` bf16.
    qkv: Buffer<u16>,
    /// `[token][heads]` bf16.
    attended: Buffer<u16>,
    /// `[token][inner]` bf16.
    inner: Buffer<u16>,
    /// `[token][hidden]` bf16: what a half adds, where it is normed before.
    half: Buffer<u16>,
    /// `[row][hidden]`: the rows that are read out.
    picked: Buffer<u16>,
    partials: Buffer<f32>,
    counters: Buffer<u32>,
    /// Of mixtures; none where there are none.
    experts: Option<(Space, Buffer<u8>)>,
}

/// Where a step's parts lie on the card.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) words: &'a Buffer<u32>,
    pub(crate) layout: &'a Layout,
    /// What each slot sampled last.
    pub(crate) last: Ptr,
    /// Where logits go: `[row][stride]` f32.
    pub(crate) logits: Ptr,
    pub(crate) stride: usize,
}

/// What a half of a layer added is not in the stream yet: it passes this norm first.
type Pending<'a> = &'a Buffer<f32>;

impl Forward {
    pub(crate) fn new(
        spec: &ModelSpec,
        weights: DeviceWeights,
        pack: &Pack,
        device: &Device,
        shape: HeadShape,
        (tokens, rows): (usize, usize),
    ) -> Result<Self, KernelError> {
        let attend = Attend::load(pack, device, shape)?;
        let mut ropes = Vec::new();
        let mut kinds: Vec<&model::Rope> = Vec::new();
        let mut rope_of = Vec::new();
        for layer in &spec.layers {
            let Seeing::Gqa(gqa) = &layer.attention;
            rope_of.push(match kinds.iter().position(|rope| **rope == gqa.rope) {
                Some(at) => at,
                None => {
                    ropes.push(device.buffer_of(&gqa.rope.frequencies())?);
                    kinds.push(&gqa.rope);
                    kinds.len() - 1
                }
            });
        }
        let mut linear = Linear::load(pack, device)?;
        linear.lend(device.buffer(linear::scratch_bytes(tokens.max(rows), widest(&weights)))?);
        Ok(Self {
            basics: Basics::load(pack, device)?,
            linear,
            moe: Moe::load(pack, device)?,
            work: Work::new(spec, device, (tokens, rows), &attend)?,
            heads: Heads::load(pack, device, shape)?,
            attend,
            spec: spec.clone(),
            weights,
            ropes,
            rope_of,
        })
    }

    /// Who attends to what in a step of these sequences.
    pub(crate) fn share(&self, sequences: &[[u32; 4]]) -> Sharing {
        self.attend.work(sequences)
    }

    /// The same for a step that is recorded, whatever its sequences will be.
    pub(crate) fn recorded_share(&self) -> Sharing {
        self.attend.graph_work()
    }

    /// Copies between blocks, in order.
    ///
    /// # Safety
    /// `pairs` holds them until it is done.
    pub(crate) unsafe fn copy_blocks(
        &self,
        stream: &Stream,
        pool: &Pool,
        pairs: Ptr,
        copies: usize,
    ) -> Result<(), Failure> {
        let call = CopyBlocks {
            pool: pool.layer(0),
            pairs,
            copies: copies as u32,
            bytes: pool.block_bytes() as u32,
            layer_bytes: pool.layer_bytes() as u64,
        };
        // SAFETY: the caller's promise, and the pool is as large as it says.
        unsafe { self.basics.copy_blocks(stream, &call, self.spec.layers.len()) }
    }

    /// From tokens to the stream behind the last layer; `share` is who attends to what, and its tiles on the card.
    ///
    /// # Safety
    /// The places hold a written step of this size, and stay until it is done.
    pub(crate) unsafe fn run(
        &self,
        stream: &Stream,
        pool: &Pool,
        size: Size,
        share: (&Sharing, Ptr),
        places: &Places<'_>,
    ) -> Result<(), Failure> {
        let word = |at: usize| places.words.offset(at);
        let (hidden, work) = (self.spec.hidden, &self.work);
        let embed = Embed {
            tokens: word(places.layout.tokens.start),
            last: places.last,
            table: self.weights.embedding.at(),
            stream: work.stream.at(),
            scale: self.spec.embedding_scale,
            hidden,
        };
        // SAFETY: the caller's promise; memory for a step is for the most tokens that one has.
        unsafe {
            self.basics.embed(stream, &embed, size.tokens)?;
            let mut pending = None;
            for (n, layer) in self.weights.layers.iter().enumerate() {
                pending =
                    self.attend(stream, pool.layer(n), n, layer, size, share, places, pending)?;
                pending = self.feed_forward(stream, n, layer, size.tokens, pending)?;
            }
            // What the last half adds must be there before rows are picked.
            if let Some(pending) = pending {
                self.add(stream, pending, size.tokens)?;
            }
            Ok(())
        }
    }

    pub(crate) fn hidden_width(&self) -> usize {
        self.spec.hidden as usize
    }

    #[allow(clippy::too_many_arguments, reason = "one layer's share of a step")]
    unsafe fn attend<'a>(
        &self,
        stream: &Stream,
        pool: Ptr,
        n: usize,
        layer: &'a DeviceLayer,
        size: Size,
        (sharing, tiles): (&Sharing, Ptr),
        places: &Places<'_>,
        pending: Option<Pending<'_>>,
    ) -> Result<Option<Pending<'a>>, Failure> {
        let Seeing::Gqa(gqa) = &self.spec.layers[n].attention;
        let (work, tokens) = (&self.work, size.tokens);
        let width = layer.qkv.rows;
        let word = |at: usize| places.words.offset(at);
        // SAFETY: `run`'s promise.
        unsafe {
            let right =
                self.right(stream, &layer.attention_norm, tokens, pending, (&layer.qkv, false))?;
            let out = Out::Bf16 { at: work.qkv.at(), stride: width };
            self.multiply(stream, &layer.qkv, tokens, right, layer.qkv_bias.as_ref(), out)?;
            let norm = |at: usize| layer.qk_norm.as_ref().map_or(Ptr(0), |norms| norms[at].at());
            let call = HeadsCall {
                qkv: work.qkv.at(),
                q: work.qkv.at(),
                q_stride: width,
                pool,
                positions: word(places.layout.positions.start),
                kv_rows: word(places.layout.kv_rows.start),
                q_norm: norm(0),
                k_norm: norm(1),
                eps: self.spec.norm_eps,
                turn: Turn {
                    frequencies: self.ropes[self.rope_of[n]].at(),
                    dims: gqa.rope.dims as usize,
                    layout: gqa.rope.layout,
                    amplitude: gqa.rope.amplitude(),
                },
                tokens,
            };
            // Steps of one token a sequence do it on the way.
            if !sharing.single {
                self.heads.run(stream, &call)?;
            }
            let call = AttendCall {
                q: work.qkv.at(),
                q_stride: width,
                heads: sharing.single.then_some(&call),
                out: work.attended.at(),
                pool,
                sequences: word(places.layout.sequences.start),
                count: size.sequences,
                block_table: word(places.layout.table),
                window: gqa.window,
                scale: gqa.scale,
                partials: work.partials.at(),
                counters: work.counters.at(),
                work: sharing,
                tiles,
            };
            self.attend.run(stream, &call)?;
            let right = Right::Bf16 { at: work.attended.at(), stride: layer.output.columns };
            self.halve(stream, &layer.output, tokens, right, layer.attention_post_norm.as_ref())
        }
    }

    unsafe fn feed_forward<'a>(
        &self,
        stream: &Stream,
        n: usize,
        layer: &'a DeviceLayer,
        tokens: usize,
        pending: Option<Pending<'_>>,
    ) -> Result<Option<Pending<'a>>, Failure> {
        let work = &self.work;
        // SAFETY: `run`'s promise.
        unsafe {
            match (&layer.ffn, &self.spec.layers[n].ffn) {
                (DeviceFfn::Dense { gate_up, down }, Ffn::Dense { activation, inner }) => {
                    let right =
                        self.right(stream, &layer.ffn_norm, tokens, pending, (gate_up, true))?;
                    let stride = *inner as usize;
                    let (at, activation) = (work.inner.at(), *activation);
                    let turned = self.linear.turns(&gate_up.args(), &down.args(), tokens);
                    let out = Out::Gated { at, stride, activation, turned };
                    self.multiply(stream, gate_up, tokens, right, None, out)?;
                    let right = match turned {
                        true => Right::Image(Image { at, padded: linear::TURNED }),
                        false => Right::Bf16 { at, stride },
                    };
                    self.halve(stream, down, tokens, right, layer.ffn_post_norm.as_ref())
                }
                (DeviceFfn::Moe { router, gate_up, down }, Ffn::Moe(moe)) => {
                    let (space, memory) = work.experts.as_ref().expect("memory for a mixture");
                    let fuses = self.moe.norms_alone(tokens)
                        || linear::fuses_norm(tokens, self.spec.hidden as usize);
                    let input = if pending.is_none() && fuses {
                        moe::Input::Stream {
                            x: work.stream.at(),
                            norm: layer.ffn_norm.at(),
                            eps: self.spec.norm_eps,
                            normed: work.normed.at(),
                        }
                    } else {
                        self.norm(stream, &layer.ffn_norm, tokens, pending)?;
                        moe::Input::Normed(work.normed.at())
                    };
                    let post = layer.ffn_post_norm.as_ref();
                    let output = match post {
                        None => moe::Output::Add(work.stream.at()),
                        Some(_) => moe::Output::Write(work.half.at()),
                    };
                    let call = moe::Call {
                        tokens,
                        input,
                        router: router.args(),
                        gate_up: gate_up.args(),
                        down: down.args(),
                        output,
                        space: memory.at(),
                        overlaps: true,
                    };
                    self.moe.run(stream, &mixture(&self.spec, moe), space, &call)?;
                    Ok(post)
                }
                _ => unreachable!("weights are sorted by the specification"),
            }
        }
    }

    /// The right side of a matrix (gates and ups or not) that stands behind a norm: normed on the way, or by a kernel of its own.
    unsafe fn right(
        &self,
        stream: &Stream,
        weight: &Buffer<f32>,
        tokens: usize,
        pending: Option<Pending<'_>>,
        (matrix, gated): (&Matrix, bool),
    ) -> Result<Right, Failure> {
        let hidden = self.spec.hidden as usize;
        if pending.is_none() && linear::fuses_norm(tokens, hidden) {
            let (at, eps) = (self.work.stream.at(), self.spec.norm_eps);
            return Ok(Right::Normed { stream: at, weight: weight.at(), eps });
        }
        if let Some(image) = self.linear.image(&matrix.args(), tokens, gated) {
            let (out, padded) = (image.at, image.padded);
            let norm = Norm { weight: weight.at(), out, padded, ..self.bare(pending) };
            // SAFETY: `run`'s promise; what is lent to multiplications is used by one after the other.
            unsafe { self.basics.norm(stream, &norm, tokens)? };
            return Ok(Right::Image(image));
        }
        // SAFETY: `run`'s promise.
        unsafe { self.norm(stream, weight, tokens, pending)? };
        Ok(Right::Bf16 { at: self.work.normed.at(), stride: hidden })
    }

    /// The stream, normed; what is pending is added first.
    unsafe fn norm(
        &self,
        stream: &Stream,
        weight: &Buffer<f32>,
        tokens: usize,
        pending: Option<Pending<'_>>,
    ) -> Result<(), Failure> {
        let norm = Norm { weight: weight.at(), out: self.work.normed.at(), ..self.bare(pending) };
        // SAFETY: `run`'s promise.
        unsafe { self.basics.norm(stream, &norm, tokens) }
    }

    unsafe fn add(
        &self,
        stream: &Stream,
        pending: Pending<'_>,
        tokens: usize,
    ) -> Result<(), Failure> {
        // SAFETY: `run`'s promise.
        unsafe { self.basics.norm(stream, &self.bare(Some(pending)), tokens) }
    }

    fn bare(&self, pending: Option<Pending<'_>>) -> Norm {
        let add_norm = pending.map_or(Ptr(0), Buffer::at);
        Norm {
            stream: self.work.stream.at(),
            add: pending.map_or(Ptr(0), |_| self.work.half.at()),
            add_norm,
            weight: Ptr(0),
            pick: Ptr(0),
            out: Ptr(0),
            out_f32: Ptr(0),
            eps: self.spec.norm_eps,
            hidden: self.spec.hidden,
            padded: 0,
        }
    }

    /// The last matrix of a half: added to the stream, or left pending where it is normed first.
    unsafe fn halve<'a>(
        &self,
        stream: &Stream,
        matrix: &Matrix,
        tokens: usize,
        right: Right,
        post: Option<&'a Buffer<f32>>,
    ) -> Result<Option<Pending<'a>>, Failure> {
        let stride = self.spec.hidden as usize;
        let out = match post {
            None => Out::Add { at: self.work.stream.at(), stride },
            Some(_) => Out::Bf16 { at: self.work.half.at(), stride },
        };
        // SAFETY: `run`'s promise.
        unsafe { self.multiply(stream, matrix, tokens, right, None, out)? };
        Ok(post)
    }

    unsafe fn multiply(
        &self,
        stream: &Stream,
        matrix: &Matrix,
        tokens: usize,
        right: Right,
        bias: Option<&Buffer<f32>>,
        out: Out,
    ) -> Result<(), Failure> {
        let bias = bias.map_or(Ptr(0), Buffer::at);
        let call = linear::Call { matrix: matrix.args(), tokens, right, pick: Ptr(0), bias, out };
        // SAFETY: `run`'s promise.
        unsafe { self.linear.run(stream, &call) }
    }

    /// The last norm and the head, for some of the rows that the step picks.
    ///
    /// # Safety
    /// As for [`Self::run`], after it; there is memory for so many rows.
    pub(crate) unsafe fn read_out(
        &self,
        stream: &Stream,
        rows: Range<usize>,
        places: &Places<'_>,
    ) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        let norm = Norm {
            weight: self.weights.output_norm.at(),
            pick: places.words.offset(places.layout.picks.start + rows.start),
            out: self.work.picked.at(),
            ..self.bare(None)
        };
        let right = Right::Bf16 { at: self.work.picked.at(), stride: self.spec.hidden as usize };
        let out = Out::F32 { at: places.logits, stride: places.stride };
        // SAFETY: the caller's promise.
        unsafe {
            self.basics.norm(stream, &norm, rows.len())?;
            self.multiply(stream, &self.weights.head, rows.len(), right, None, out)
        }
    }

    /// Hidden states of some rows after the last norm, as f32.
    ///
    /// # Safety
    /// As for [`Self::run`], after it; `out` has room for them.
    pub(crate) unsafe fn hidden(
        &self,
        stream: &Stream,
        picks: Ptr,
        rows: usize,
        out: Ptr,
    ) -> Result<(), Failure> {
        let weight = self.weights.output_norm.at();
        let norm = Norm { weight, pick: picks, out_f32: out, ..self.bare(None) };
        // SAFETY: the caller's promise.
        unsafe { self.basics.norm(stream, &norm, rows) }
    }
}

impl Work {
    fn new(
        spec: &ModelSpec,
        device: &Device,
        (tokens, rows): (usize, usize),
        attend: &Attend,
    ) -> Result<Self, Failure> {
        let hidden = spec.hidden as usize;
        let (mut qkv, mut heads, mut inner) = (0, 0, 0);
        let mut experts: Option<Space> = None;
        let mut post_norms = false;
        for layer in &spec.layers {
            let Seeing::Gqa(gqa) = &layer.attention;
            qkv = qkv.max((gqa.heads + 2 * gqa.kv_heads) * gqa.head_dim);
            heads = heads.max(gqa.heads * gqa.head_dim);
            post_norms |= layer.post_norms;
            match &layer.ffn {
                Ffn::Dense { inner: width, .. } => inner = inner.max(*width),
                Ffn::Moe(moe) => {
                    let space = mixture(spec, moe).space(tokens);
                    if experts.is_none_or(|before| before.bytes < space.bytes) {
                        experts = Some(space);
                    }
                }
            }
        }
        let experts = match experts {
            None => None,
            Some(space) => {
                let memory = device.buffer::<u8>(space.bytes as usize)?;
                memory.fill(0)?;
                Some((space, memory))
            }
        };
        let counters = device.buffer(attend.counters())?;
        counters.fill(0)?;
        Ok(Self {
            stream: device.buffer(tokens * hidden)?,
            normed: device.buffer(tokens * hidden)?,
            qkv: device.buffer(tokens * qkv as usize)?,
            attended: device.buffer(tokens * heads as usize)?,
            inner: device.buffer(tokens * inner as usize)?,
            half: device.buffer(if post_norms { tokens * hidden } else { 0 })?,
            picked: device.buffer(rows * hidden)?,
            partials: device.buffer(attend.partials())?,
            counters,
            experts,
        })
    }
}

/// Columns of the widest matrix that is not an expert's.
fn widest(weights: &DeviceWeights) -> usize {
    let layer = |layer: &DeviceLayer| match &layer.ffn {
        DeviceFfn::Dense { down, .. } => down.columns.max(layer.output.columns),
        DeviceFfn::Moe { .. } => layer.output.columns,
    };
    weights.layers.iter().map(layer).fold(weights.head.columns, usize::max)
}

pub(crate) fn mixture(spec: &ModelSpec, moe: &model::Moe) -> Mixture {
    Mixture {
        hidden: spec.hidden as usize,
        experts: moe.experts as usize,
        chosen: moe.chosen as usize,
        inner: moe.inner as usize,
        renormalized: moe.renormalized,
        activation: moe.activation,
    }
}
