//! Safetensors checkpoints: `config.json`, one or several `.safetensors` files, an index.
//!
//! Every function here is pure over the bytes of one file.

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::{Names, Shelf};
use crate::gguf::shown;
use crate::spec::{
    Activation, Attention, Ffn, Gqa, LayerSpec, MAX_LAYERS, ModelSpec, Rope, RopeLayout,
    RopeScaling,
};
use crate::tensor::{Format, Tensor, Weights};

/// What we read of a config.json. Fields that change the mathematics and that we cannot honour
/// are read in order to refuse them.
#[derive(Deserialize)]
struct Config {
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    vocab_size: u32,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeConfig>,
    rope_parameters: Option<RopeConfig>,
    partial_rotary_factor: Option<f32>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    tie_word_embeddings: Option<bool>,
    quantization_config: Option<Value>,
}

#[derive(Deserialize)]
struct RopeConfig {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<u32>,
}

/// A `config.json` to a specification.
pub fn parse_config(bytes: &[u8]) -> Result<ModelSpec, ModelError> {
    let refuse = |what: String| ModelError::Config(what);
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| refuse(format!("is not JSON: {e}")))?;
    // The family first: another family's file may lack everything else.
    let family = value.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (default_bias, qk_norm) = match family.as_str() {
        "llama" => (false, false),
        "qwen2" => (true, false),
        "qwen3" => (false, true),
        other => {
            return Err(ModelError::UnknownFamily {
                family: shown(other),
                known: "llama, qwen2 or qwen3 (gemma3 as GGUF only)",
            });
        }
    };
    let c: Config = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
    let unsupported = |what: &str| Err(ModelError::Unsupported(what.to_owned()));
    if c.quantization_config.is_some_and(|q| !q.is_null()) {
        return unsupported("quantized safetensors");
    }
    if c.mlp_bias == Some(true) {
        return unsupported("a bias in the feed-forward part");
    }
    if c.use_sliding_window == Some(true) {
        return unsupported("a sliding attention window");
    }
    if c.partial_rotary_factor.is_some_and(|f| f != 1.0) {
        return unsupported("partly rotary positions");
    }
    if !matches!(c.hidden_act.as_deref(), None | Some("silu")) {
        return unsupported("another activation than silu");
    }
    if c.num_hidden_layers as usize > MAX_LAYERS || c.num_attention_heads == 0 {
        return Err(refuse(format!(
            "{} layers, {} heads",
            c.num_hidden_layers, c.num_attention_heads
        )));
    }
    let head_dim = match (c.head_dim, family.as_str()) {
        (Some(d), _) => d,
        (None, "qwen3") => 128,
        (None, _) => c.hidden_size / c.num_attention_heads,
    };
    let rope = c.rope_parameters.as_ref().or(c.rope_scaling.as_ref());
    let theta = rope.and_then(|r| r.rope_theta).or(c.rope_theta).unwrap_or(10_000.0);
    let layer = LayerSpec {
        attention: Attention::Gqa(Gqa {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
            qkv_bias: default_bias || c.attention_bias == Some(true),
            qk_norm,
            window: None,
            rope: Rope {
                layout: RopeLayout::Halves,
                dims: head_dim,
                theta,
                scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling)?,
            },
        }),
        ffn: Ffn::Dense { inner: c.intermediate_size, activation: Activation::Silu },
        post_norms: false,
    };
    let spec = ModelSpec {
        family,
        vocab: c.vocab_size,
        hidden: c.hidden_size,
        context: c.max_position_embeddings,
        layers: vec![layer; c.num_hidden_layers as usize],
        norm_eps: c.rms_norm_eps,
        tied_head: c.tie_word_embeddings.unwrap_or(false),
        embedding_scale: 1.0,
    };
    spec.check()?;
    Ok(spec)
}

fn rope_scaling(c: &RopeConfig) -> Result<RopeScaling, ModelError> {
    let missing = |name: &str| ModelError::Config(format!("rope_scaling has no {name}"));
    let factor = || c.factor.ok_or_else(|| missing("factor"));
    match c.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low: c.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
            high: c.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
            original_context: c
                .original_max_position_embeddings
                .ok_or_else(|| missing("original_max_position_embeddings"))?,
        }),
        Some(other) => Err(ModelError::Unsupported(format!("{} scaling of RoPE", shown(other)))),
    }
}

/// A `model.safetensors.index.json` to the files that it names, each a plain name in the same
/// folder.
pub fn parse_index(bytes: &[u8]) -> Result<Vec<String>, ModelError> {
    let bad = |what: String| ModelError::Safetensors(what);
    #[derive(Deserialize)]
    struct Index {
        weight_map: serde_json::Map<String, Value>,
    }
    let index: Index =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("its index is broken: {e}")))?;
    let mut files = BTreeSet::new();
    for file in index.weight_map.values() {
        let name = file.as_str().unwrap_or_default();
        let plain = name.ends_with(".safetensors")
            && !name.starts_with('.')
            && !name.contains(['/', '\\', '\0']);
        if !plain {
            return Err(bad(format!("its index names the file {}", shown(name))));
        }
        files.insert(name.to_owned());
    }
    match files.len() {
        1..=4096 => Ok(files.into_iter().collect()),
        n => Err(bad(format!("its index names {n} files"))),
    }
}

/// The tensors of one `.safetensors` file.
pub fn parse_tensors(bytes: &[u8]) -> Result<Vec<Tensor>, ModelError> {
    let bad = |what: String| ModelError::Safetensors(what);
    let (header, metadata) =
        safetensors::SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
    let data = header.checked_add(8).ok_or_else(|| bad("its header is too long".into()))?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let format = match info.dtype {
            safetensors::Dtype::F32 => Format::F32,
            safetensors::Dtype::F16 => Format::F16,
            safetensors::Dtype::BF16 => Format::BF16,
            other => {
                return Err(ModelError::UnknownFormat {
                    tensor: shown(&name),
                    format: format!("{other:?}"),
                });
            }
        };
        let shape = &info.shape;
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |n: usize, d| n.checked_mul(*d));
        let wrong = || bad(format!("tensor {} has an impossible size", shown(&name)));
        let len = rows
            .and_then(|rows| rows.checked_mul(cols))
            .filter(|values| *values > 0)
            .and_then(|values| format.bytes(values))
            .ok_or_else(wrong)?;
        let (from, to) = info.data_offsets;
        let offset = data.checked_add(from).ok_or_else(wrong)?;
        let end = data.checked_add(to).ok_or_else(wrong)?;
        if offset.checked_add(len) != Some(end) || end > bytes.len() {
            return Err(wrong());
        }
        let rows = rows.ok_or_else(wrong)?;
        tensors.push(Tensor { name, format, rows, cols, file: 0, offset, len });
    }
    Ok(tensors)
}

/// The chat template in a `tokenizer_config.json`: a text, or the one named `default` of several.
pub fn parse_chat_template(bytes: &[u8]) -> Result<Option<String>, ModelError> {
    let config: Value = serde_json::from_slice(bytes)
        .map_err(|e| ModelError::Config(format!("tokenizer_config.json is not JSON: {e}")))?;
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(several)) => several
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    })
}

/// Sorts a checkpoint's tensors into their roles.
pub fn assemble(spec: &ModelSpec, tensors: Vec<Tensor>) -> Result<Weights, ModelError> {
    let mut names = HashSet::with_capacity(tensors.len());
    if let Some(twice) = tensors.iter().find(|t| !names.insert(t.name.as_str())) {
        let name = shown(&twice.name);
        return Err(ModelError::Safetensors(format!("tensor {name} appears twice")));
    }
    let mut shelf = Shelf::new(tensors);
    if spec.tied_head {
        // A tied checkpoint may carry the head all the same; it is the embedding again.
        shelf.drop_if_there(NAMES.output);
    }
    for layer in 0..spec.layers.len() {
        // Old checkpoints carry RoPE's frequencies, which follow from the configuration.
        shelf.drop_if_there(&format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq"));
    }
    shelf.assemble(spec, &NAMES)
}

const NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    output_norm: "model.norm.weight",
    output: "lm_head.weight",
    layer: "model.layers",
    attention_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    o: "self_attn.o_proj",
    attention_post_norm: "none",
    ffn_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    ffn_post_norm: "none",
};
