//! Safetensors checkpoints: `config.json`, one or several `.safetensors` files, an index.
//!
//! Every function here is pure over the bytes of one file.

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::{Names, Shelf};
use crate::gguf::shown;
use crate::quantized::{Method, gather};
use crate::spec::{
    Activation, Attention, Ffn, Gqa, LayerSpec, MAX_LAYERS, ModelSpec, Moe, Rope, RopeLayout,
    RopeScaling, Yarn,
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
    rope_local_base_freq: Option<f32>,
    rope_scaling: Option<RopeConfig>,
    rope_parameters: Option<RopeConfigs>,
    partial_rotary_factor: Option<f32>,
    #[serde(alias = "hidden_activation")]
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    attention_out_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<u32>,
    sliding_window_pattern: Option<u32>,
    max_window_layers: Option<u32>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    use_bidirectional_attention: Option<bool>,
    tie_word_embeddings: Option<bool>,
    #[serde(alias = "num_local_experts")]
    num_experts: Option<u32>,
    num_experts_per_tok: Option<u32>,
    moe_intermediate_size: Option<u32>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<u32>,
    mlp_only_layers: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct RopeConfig {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    truncate: Option<bool>,
    original_max_position_embeddings: Option<u32>,
}

/// One for all layers, or one for each kind of layer.
#[derive(Deserialize)]
#[serde(untagged)]
enum RopeConfigs {
    ByLayer { full_attention: Box<RopeConfig>, sliding_attention: Box<RopeConfig> },
    One(Box<RopeConfig>),
}

/// Families whose checkpoints are read, as their files call them.
const KNOWN: &str = "llama, qwen2, qwen3, qwen3_moe, phi3, seed_oss or gemma3_text";

/// A `config.json` to a specification.
pub fn parse_config(bytes: &[u8]) -> Result<ModelSpec, ModelError> {
    let refuse = |what: String| ModelError::Config(what);
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| refuse(format!("is not JSON: {e}")))?;
    // The family first: another family's file may lack everything else.
    let family = value.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let default_bias = match family.as_str() {
        "qwen2" | "seed_oss" => true,
        "llama" | "qwen3" | "qwen3_moe" | "phi3" | "gemma3_text" => false,
        other => {
            return Err(ModelError::UnknownFamily { family: shown(other), known: KNOWN });
        }
    };
    let c: Config = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
    refuse_unsupported(&c)?;
    if c.num_hidden_layers as usize > MAX_LAYERS || c.num_attention_heads == 0 {
        return Err(refuse(format!(
            "{} layers, {} heads",
            c.num_hidden_layers, c.num_attention_heads
        )));
    }
    let gemma = family == "gemma3_text";
    let head_dim = match (c.head_dim, family.as_str()) {
        (Some(d), _) => d,
        (None, "qwen3" | "qwen3_moe" | "seed_oss") => 128,
        (None, "gemma3_text") => 256,
        (None, _) => c.hidden_size / c.num_attention_heads,
    };
    let ropes = Ropes::of(&c, head_dim, gemma)?;
    let activation = match (c.hidden_act.as_deref(), gemma) {
        (Some("silu"), _) | (None, false) => Activation::Silu,
        (Some("gelu_pytorch_tanh"), _) | (None, true) => Activation::GeluTanh,
        (Some(other), _) => {
            return Err(ModelError::Unsupported(format!("the activation {}", shown(other))));
        }
    };
    let layer = |i: u32| {
        let window = window(&c, &family, i)?;
        Ok(LayerSpec {
            attention: Attention::Gqa(Gqa {
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
                head_dim,
                scale: match c.query_pre_attn_scalar.filter(|_| gemma) {
                    Some(width) => width.sqrt().recip(),
                    None => (head_dim as f32).sqrt().recip(),
                },
                qkv_bias: c.attention_bias.unwrap_or(default_bias) || family == "qwen2",
                qk_norm: matches!(family.as_str(), "qwen3" | "qwen3_moe" | "gemma3_text"),
                window,
                rope: if window.is_some() { ropes.local.clone() } else { ropes.global.clone() },
            }),
            ffn: ffn(&c, &family, i, activation)?,
            post_norms: gemma,
        })
    };
    let stretched = match &ropes.global.scaling {
        RopeScaling::Yarn(yarn) => (yarn.original_context as f32 * yarn.factor) as u32,
        _ => 0,
    };
    let spec = ModelSpec {
        vocab: c.vocab_size,
        hidden: c.hidden_size,
        context: c.max_position_embeddings.max(stretched),
        layers: (0..c.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        norm_eps: c.rms_norm_eps,
        tied_head: c.tie_word_embeddings.unwrap_or(gemma),
        embedding_scale: if gemma { (c.hidden_size as f32).sqrt() } else { 1.0 },
        norms_from_one: gemma,
        family,
    };
    spec.check()?;
    Ok(spec)
}

fn refuse_unsupported(c: &Config) -> Result<(), ModelError> {
    let unsupported = |what: &str| Err(ModelError::Unsupported(what.to_owned()));
    if c.mlp_bias == Some(true) {
        return unsupported("a bias in the feed-forward part");
    }
    if c.attention_out_bias == Some(true) {
        return unsupported("a bias behind attention");
    }
    if c.attn_logit_softcapping.is_some() || c.final_logit_softcapping.is_some() {
        return unsupported("capped logits");
    }
    if c.use_bidirectional_attention == Some(true) {
        return unsupported("attention to what comes later");
    }
    Ok(())
}

/// How a `config.json` says that the matrices were quantized, if they were.
pub fn parse_method(bytes: &[u8]) -> Result<Option<Method>, ModelError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| ModelError::Config(format!("is not JSON: {e}")))?;
    match value.get("quantization_config").or_else(|| value.get("compression_config")) {
        None | Some(Value::Null) => Ok(None),
        Some(config) => Method::of(config).map(Some),
    }
}

/// How far back this layer looks, if not all the way.
fn window(c: &Config, family: &str, layer: u32) -> Result<Option<u32>, ModelError> {
    let local = match (&c.layer_types, family) {
        (Some(types), _) => match types.get(layer as usize).map(String::as_str) {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            other => {
                let kind = shown(other.unwrap_or("none"));
                return Err(ModelError::Unsupported(format!("a layer of the kind {kind}")));
            }
        },
        // Five layers look back a little way, each sixth all the way.
        (None, "gemma3_text") => {
            !(layer + 1).is_multiple_of(c.sliding_window_pattern.unwrap_or(6).max(1))
        }
        (None, "phi3") => true,
        (None, _) => {
            c.use_sliding_window == Some(true) && layer >= c.max_window_layers.unwrap_or(28)
        }
    };
    match (local, c.sliding_window) {
        (true, None) if family != "phi3" => {
            Err(ModelError::Config("has no sliding_window".to_owned()))
        }
        (true, window) => Ok(window),
        (false, _) => Ok(None),
    }
}

fn ffn(c: &Config, family: &str, layer: u32, activation: Activation) -> Result<Ffn, ModelError> {
    let dense = Ffn::Dense { inner: c.intermediate_size, activation };
    if family != "qwen3_moe" {
        return Ok(dense);
    }
    let missing = |name: &str| ModelError::Config(format!("has no {name}"));
    let step = c.decoder_sparse_step.unwrap_or(1);
    let experts = c.num_experts.ok_or_else(|| missing("num_experts"))?;
    let dense_all_the_same = c.mlp_only_layers.as_ref().is_some_and(|only| only.contains(&layer));
    if experts == 0 || step == 0 || !(layer + 1).is_multiple_of(step) || dense_all_the_same {
        return Ok(dense);
    }
    Ok(Ffn::Moe(Moe {
        experts,
        chosen: c.num_experts_per_tok.ok_or_else(|| missing("num_experts_per_tok"))?,
        inner: c.moe_intermediate_size.ok_or_else(|| missing("moe_intermediate_size"))?,
        activation,
        renormalized: c.norm_topk_prob.unwrap_or(false),
    }))
}

/// How layers that look all the way back turn, and those that do not.
struct Ropes {
    global: Rope,
    local: Rope,
}

impl Ropes {
    fn of(c: &Config, head_dim: u32, gemma: bool) -> Result<Self, ModelError> {
        let (global, local) = match &c.rope_parameters {
            Some(RopeConfigs::ByLayer { full_attention, sliding_attention }) => {
                (Some(&**full_attention), Some(&**sliding_attention))
            }
            Some(RopeConfigs::One(one)) => (Some(&**one), None),
            None => (c.rope_scaling.as_ref(), None),
        };
        let theta = c.rope_theta.unwrap_or(if gemma { 1_000_000.0 } else { 10_000.0 });
        let global = rope(c, global, theta, head_dim)?;
        let local = match local {
            Some(local) => rope(c, Some(local), 10_000.0, head_dim)?,
            // Older files have the local base apart; nothing stretches it.
            None if gemma => rope(c, None, c.rope_local_base_freq.unwrap_or(10_000.0), head_dim)?,
            None => global.clone(),
        };
        Ok(Self { global, local })
    }
}

fn rope(
    c: &Config,
    own: Option<&RopeConfig>,
    theta: f32,
    head_dim: u32,
) -> Result<Rope, ModelError> {
    let part = own.and_then(|r| r.partial_rotary_factor).or(c.partial_rotary_factor);
    let dims = (head_dim as f32 * part.unwrap_or(1.0)) as u32;
    Ok(Rope {
        layout: RopeLayout::Halves,
        dims,
        theta: own.and_then(|r| r.rope_theta).unwrap_or(theta),
        scaling: own.map_or(Ok(RopeScaling::None), |own| rope_scaling(own, c))?,
    })
}

fn rope_scaling(r: &RopeConfig, c: &Config) -> Result<RopeScaling, ModelError> {
    let missing = |name: &str| ModelError::Config(format!("rope_scaling has no {name}"));
    let factor = || r.factor.ok_or_else(|| missing("factor"));
    match r.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low: r.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
            high: r.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
            original_context: r
                .original_max_position_embeddings
                .ok_or_else(|| missing("original_max_position_embeddings"))?,
        }),
        Some("yarn") => {
            let factor = factor()?;
            let sharper = |by: f32| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
            let attention = match (r.attention_factor, r.mscale, r.mscale_all_dim) {
                (Some(own), _, _) => own,
                (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                    sharper(one) / sharper(all)
                }
                _ => sharper(1.0),
            };
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                fast: r.beta_fast.unwrap_or(32.0),
                slow: r.beta_slow.unwrap_or(1.0),
                original_context: r
                    .original_max_position_embeddings
                    .unwrap_or(c.max_position_embeddings),
                attention,
                whole: r.truncate.unwrap_or(true),
            }))
        }
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
            safetensors::Dtype::F8_E4M3 => Format::F8E4M3,
            safetensors::Dtype::I32 => Format::I32,
            safetensors::Dtype::I64 => Format::I64,
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
        tensors.push(Tensor { name, format, rows, cols, file: 0, offset, len, parts: None });
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
pub fn assemble(
    spec: &ModelSpec,
    method: Option<Method>,
    tensors: Vec<Tensor>,
) -> Result<Weights, ModelError> {
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
    if let Some(method) = method {
        gather(&mut shelf, method)?;
    }
    let names = if spec.norms_from_one { &GEMMA } else { &NAMES };
    for (i, layer) in spec.layers.iter().enumerate() {
        split_fused(&mut shelf, i, layer, names)?;
    }
    shelf.assemble(spec, names)
}

/// Some checkpoints have matrices that share their input below each other: phi3's, and those whose experts are one
/// tensor.
fn split_fused(
    shelf: &mut Shelf,
    i: usize,
    layer: &LayerSpec,
    names: &Names,
) -> Result<(), ModelError> {
    let Attention::Gqa(a) = &layer.attention;
    let weight = |part: &str| names.part(i, part, "weight");
    let (q, kv) = ((a.heads * a.head_dim) as usize, (a.kv_heads * a.head_dim) as usize);
    let [q_name, k_name, v_name] = names.qkv.map(weight);
    shelf.split(&weight("self_attn.qkv_proj"), &[(q_name, q), (k_name, kv), (v_name, kv)])?;
    match &layer.ffn {
        Ffn::Dense { inner, .. } => {
            let [gate, up] = [names.gate, names.up].map(|part| (weight(part), *inner as usize));
            shelf.split(&weight("mlp.gate_up_proj"), &[gate, up])
        }
        Ffn::Moe(moe) => {
            let experts = 0..moe.experts as usize;
            let inner = moe.inner as usize;
            let both = experts.clone().flat_map(|e| {
                [names.gate, names.up].map(|part| (names.of_expert(i, e, part), inner))
            });
            let whole = |part: &str| format!("{}.{i}.{}.{part}", names.layer, names.experts);
            shelf.split(&whole("gate_up_proj"), &both.collect::<Vec<_>>())?;
            let hidden = shelf.get(&weight(names.o)).map_or(0, |o| o.rows);
            let down = experts.map(|e| (names.of_expert(i, e, names.down), hidden));
            shelf.split(&whole("down_proj"), &down.collect::<Vec<_>>())
        }
    }
}

/// What gemma3 calls its norms.
const GEMMA: Names = Names {
    attention_post_norm: "post_attention_layernorm",
    ffn_norm: "pre_feedforward_layernorm",
    ffn_post_norm: "post_feedforward_layernorm",
    ..NAMES
};

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
    router: "mlp.gate",
    experts: "mlp.experts",
};
