//! Checkpoints that are drawn: a model's true shapes, stored as published ones are, and numbers that a seed gives. To measure
//! loading and speed without a download; what such a model says is noise.
//!
//! It is neither the same token again and again nor the same experts for everyone: what a layer adds to the stream is small beside
//! what a token brings, so that tokens stay apart, and routers see about independent directions.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::huggingface::{parse_config, parse_method};
use crate::quantized::Method;
use crate::spec::{Attention, Ffn, ModelSpec};

/// How drawn matrices are stored. Embedding, router and head are bf16 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    Bf16,
    /// Four bits in groups of so many inputs, as AWQ packs them.
    Awq {
        /// Inputs of a group.
        group: usize,
    },
}

impl Stored {
    /// As a `config.json` says: its `quantization_config`, and bf16 without one.
    pub fn of(config: &str) -> Result<Self, ModelError> {
        match parse_method(config.as_bytes())? {
            None => Ok(Self::Bf16),
            Some(Method::Awq) => {
                let config: Value = serde_json::from_str(config)
                    .map_err(|error| ModelError::Config(error.to_string()))?;
                let group = config["quantization_config"]["group_size"].as_u64();
                match group.and_then(|group| usize::try_from(group).ok()) {
                    Some(group) if group > 0 => Ok(Self::Awq { group }),
                    _ => Err(ModelError::Config("group_size is missing".into())),
                }
            }
            Some(other) => Err(ModelError::Unsupported(format!("drawn weights as {other:?}"))),
        }
    }
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawing {
    /// The same one gives the same bytes.
    pub seed: u64,
    /// Bytes of a file, about.
    pub shard_bytes: u64,
}

/// Why none can be drawn.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ModelError),
    /// A family whose checkpoints have other tensors.
    #[error(
        "no checkpoint of the family {0} can be drawn; of llama, qwen2, qwen3 and qwen3_moe it can"
    )]
    Family(String),
    /// Widths that the way of storing does not take.
    #[error("a matrix of {rows} x {columns} cannot be stored in groups of {group}")]
    Group {
        /// Outputs.
        rows: usize,
        /// Inputs.
        columns: usize,
        /// Inputs of a group.
        group: usize,
    },
    /// The disk does not take it.
    #[error("a drawn checkpoint cannot be written")]
    Write(#[from] io::Error),
}

/// Bytes that a checkpoint of this configuration has, but for descriptions.
pub fn bytes(config: &str) -> Result<u64, DrawError> {
    let tensors = tensors(&parse_config(config.as_bytes())?, Stored::of(config)?)?;
    Ok(tensors.iter().map(|tensor| tensor.bytes() as u64).sum())
}

/// Writes `config.json`, shards and their index into a folder that is there; answers with the bytes of the shards. All cores draw.
pub fn write(folder: &Path, config: &str, drawing: &Drawing) -> Result<u64, DrawError> {
    let spec = parse_config(config.as_bytes())?;
    let shards = shards(tensors(&spec, Stored::of(config)?)?, drawing.shard_bytes);
    std::fs::write(folder.join("config.json"), config)?;
    let (mut index, mut files, mut all) = (Map::new(), Vec::new(), 0);
    for (n, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len());
        let head = head(shard);
        let file = File::create(folder.join(&name))?;
        file.set_len(head.len() as u64 + shard.iter().map(|t| t.bytes() as u64).sum::<u64>())?;
        file.write_all_at(&head, 0)?;
        all += file.metadata()?.len();
        index.extend(shard.iter().map(|t| (t.name.clone(), Value::from(name.clone()))));
        files.push((file, head.len() as u64));
    }
    let pieces = pieces(&shards, &files);
    let next = AtomicUsize::new(0);
    let draw = || -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            bytes.resize(piece.bytes, 0);
            piece.tensor.kind.fill(mixed(drawing.seed ^ piece.seed), &mut bytes);
            piece.file.write_all_at(&bytes, piece.at)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(draw)).collect();
        all.into_iter().try_for_each(|one| one.join().expect("drawing does not panic"))
    })?;
    let index = json!({"metadata": {"total_size": all}, "weight_map": index});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    Ok(all)
}

/// What a tensor's numbers are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// bf16 around zero, of this deviation.
    Spread(f32),
    /// bf16 of 1.
    Ones,
    /// bf16 of 0.
    Nothing,
    /// Words of any bits.
    Words,
    /// Words of zeros of groups: 7 and 8.
    Zeros,
    /// f16 scales, such that values have this deviation.
    Scales(f32),
}

/// Sixteen steps have a deviation of 4.61.
const STEPS: f32 = 4.61;

impl Kind {
    fn width(self) -> usize {
        match self {
            Self::Words | Self::Zeros => 4,
            _ => 2,
        }
    }

    fn dtype(self) -> &'static str {
        match self {
            Self::Words | Self::Zeros => "I32",
            Self::Scales(_) => "F16",
            _ => "BF16",
        }
    }

    fn fill(self, seed: u64, out: &mut [u8]) {
        // Four values to a number drawn.
        let spread = |bits: u16| (f32::from(bits) * (2.0 / 65535.0) - 1.0) * 1.732_050_8;
        for (n, out) in out.chunks_mut(8).enumerate() {
            let drawn = mixed(seed.wrapping_add(n as u64));
            let four: [u16; 4] = std::array::from_fn(|i| (drawn >> (16 * i)) as u16);
            let of = |value: &dyn Fn(u16) -> u16| {
                four.map(value).into_iter().rev().fold(0, |all, one| all << 16 | u64::from(one))
            };
            let bits = match self {
                Self::Spread(size) => of(&|bits| bf16::from_f32(spread(bits) * size).to_bits()),
                Self::Ones => of(&|_| 0x3f80),
                Self::Nothing => 0,
                Self::Words => drawn,
                Self::Zeros => (drawn & 0x1111_1111_1111_1111) + 0x7777_7777_7777_7777,
                Self::Scales(size) => of(&|bits| {
                    let about = 0.8 + f32::from(bits & 0xff) * (0.4 / 255.0);
                    f16::from_f32(size / STEPS * about).to_bits()
                }),
            };
            out.copy_from_slice(&bits.to_le_bytes()[..out.len()]);
        }
    }
}

fn mixed(n: u64) -> u64 {
    let n = n.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[derive(Debug)]
struct Drawn {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
}

impl Drawn {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.kind.width()
    }
}

/// A model's tensors, in the order of its layers.
fn tensors(spec: &ModelSpec, stored: Stored) -> Result<Vec<Drawn>, DrawError> {
    if !["llama", "qwen2", "qwen3", "qwen3_moe"].contains(&spec.family.as_str()) {
        return Err(DrawError::Family(spec.family.clone()));
    }
    let mut all = Vec::new();
    let hidden = spec.hidden as usize;
    let vector = |name: String, len: usize, kind| Drawn { name, shape: vec![len], kind };
    let plain = |name: String, rows: usize, columns: usize, gain: f32| {
        let kind = Kind::Spread(gain / (columns as f32).sqrt());
        Drawn { name: format!("{name}.weight"), shape: vec![rows, columns], kind }
    };
    let matrix = |name: String, rows: usize, columns: usize, gain: f32| {
        let Stored::Awq { group } = stored else {
            return Ok(vec![plain(name, rows, columns, gain)]);
        };
        if !rows.is_multiple_of(8) || !columns.is_multiple_of(group) {
            return Err(DrawError::Group { rows, columns, group });
        }
        let part = |part: &str, shape: [usize; 2], kind| Drawn {
            name: format!("{name}.{part}"),
            shape: shape.to_vec(),
            kind,
        };
        let groups = columns / group;
        Ok(vec![
            part("qweight", [columns, rows / 8], Kind::Words),
            part("qzeros", [groups, rows / 8], Kind::Zeros),
            part("scales", [groups, rows], Kind::Scales(gain / (columns as f32).sqrt())),
        ])
    };
    let embedding =
        plain("model.embed_tokens".into(), spec.vocab as usize, hidden, (hidden as f32).sqrt());
    all.push(embedding);
    // Of what each half of each layer adds.
    let small = 0.5 / (2.0 * spec.layers.len() as f32).sqrt();
    for (n, layer) in spec.layers.iter().enumerate() {
        let Attention::Gqa(a) = &layer.attention;
        let (q, kv) = ((a.heads * a.head_dim) as usize, (a.kv_heads * a.head_dim) as usize);
        let named = |part: &str| format!("model.layers.{n}.{part}");
        for part in ["input_layernorm", "post_attention_layernorm"] {
            all.push(vector(named(&format!("{part}.weight")), hidden, Kind::Ones));
        }
        for (part, rows) in [("q", q), ("k", kv), ("v", kv)] {
            all.extend(matrix(named(&format!("self_attn.{part}_proj")), rows, hidden, 1.0)?);
            if a.qkv_bias {
                let name = named(&format!("self_attn.{part}_proj.bias"));
                all.push(vector(name, rows, Kind::Nothing));
            }
            if a.qk_norm && part != "v" {
                let name = named(&format!("self_attn.{part}_norm.weight"));
                all.push(vector(name, a.head_dim as usize, Kind::Ones));
            }
        }
        all.extend(matrix(named("self_attn.o_proj"), hidden, q, small)?);
        let mut gated = |stem: String, inner: usize| -> Result<(), DrawError> {
            for part in ["gate", "up"] {
                all.extend(matrix(format!("{stem}.{part}_proj"), inner, hidden, 1.0)?);
            }
            all.extend(matrix(format!("{stem}.down_proj"), hidden, inner, 2.0 * small)?);
            Ok(())
        };
        match &layer.ffn {
            Ffn::Dense { inner, .. } => gated(named("mlp"), *inner as usize)?,
            Ffn::Moe(moe) => {
                for expert in 0..moe.experts {
                    gated(named(&format!("mlp.experts.{expert}")), moe.inner as usize)?;
                }
                all.push(plain(named("mlp.gate"), moe.experts as usize, hidden, 1.0));
            }
        }
    }
    all.push(vector("model.norm.weight".into(), hidden, Kind::Ones));
    if !spec.tied_head {
        all.push(plain("lm_head".into(), spec.vocab as usize, hidden, 1.0));
    }
    Ok(all)
}

/// Cuts them into files, and puts each file's into the order in which published ones are: by type, then by name.
fn shards(tensors: Vec<Drawn>, bytes: u64) -> Vec<Vec<Drawn>> {
    let mut all: Vec<Vec<Drawn>> = vec![Vec::new()];
    let mut so_far = 0;
    for tensor in tensors {
        if so_far >= bytes {
            all.push(Vec::new());
            so_far = 0;
        }
        so_far += tensor.bytes() as u64;
        all.last_mut().expect("one at least").push(tensor);
    }
    for shard in &mut all {
        shard.sort_by(|a, b| {
            let order = |t: &Drawn| (std::cmp::Reverse(t.kind.width()), t.kind.dtype());
            order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
        });
    }
    all
}

/// The length of the description, and the description.
fn head(shard: &[Drawn]) -> Vec<u8> {
    let mut about = Map::new();
    let mut at = 0;
    for tensor in shard {
        let end = at + tensor.bytes();
        let one =
            json!({"dtype": tensor.kind.dtype(), "shape": tensor.shape, "data_offsets": [at, end]});
        about.insert(tensor.name.clone(), one);
        at = end;
    }
    let mut text = Value::from(about).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}

/// Some bytes of a tensor, and where they go.
struct Piece<'a> {
    tensor: &'a Drawn,
    file: &'a File,
    at: u64,
    bytes: usize,
    seed: u64,
}

fn pieces<'a>(shards: &'a [Vec<Drawn>], files: &'a [(File, u64)]) -> Vec<Piece<'a>> {
    const MOST: usize = 8 << 20;
    let mut all = Vec::new();
    for (shard, (file, head)) in shards.iter().zip(files) {
        let mut at = *head;
        for tensor in shard {
            for first in (0..tensor.bytes()).step_by(MOST) {
                let bytes = MOST.min(tensor.bytes() - first);
                let seed = (all.len() as u64 + 1) << 32;
                all.push(Piece { tensor, file, at: at + first as u64, bytes, seed });
            }
            at += tensor.bytes() as u64;
        }
    }
    all
}
