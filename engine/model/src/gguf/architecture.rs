//! A GGUF file's metadata to a [`ModelSpec`], and its tensor names.

use std::sync::Arc;

use crate::error::ModelError;
use crate::family::{Names, Shelf};
use crate::gguf::{Gguf, shown};
use crate::quant::dequantize;
use crate::spec::{
    Activation, Attention, Ffn, Gqa, LayerSpec, MAX_LAYERS, ModelSpec, Moe, Rope, RopeLayout,
    RopeScaling, Yarn,
};
use crate::tensor::{Tensor, Weights};

/// Reads what the file says it is. `bytes` is the whole file that `gguf` was parsed from.
pub(crate) fn read(gguf: &Gguf, bytes: &[u8]) -> Result<(ModelSpec, Weights), ModelError> {
    let mut shelf = Shelf::new(gguf.tensors().iter().map(|t| Tensor {
        name: t.name.clone(),
        format: t.format,
        rows: t.dims[1..].iter().product(),
        cols: t.dims[0],
        file: 0,
        offset: t.offset,
        len: t.len,
        parts: None,
    }));
    let spec = spec(gguf, &shelf, bytes)?;
    shelf.drop_if_there(ROPE_FACTORS);
    let names = if spec.family == "seed_oss" { &SEED_OSS } else { &NAMES };
    for (i, layer) in spec.layers.iter().enumerate() {
        split_fused(&mut shelf, i, layer, spec.hidden)?;
    }
    let weights = shelf.assemble(&spec, names)?;
    Ok((spec, weights))
}

/// Divisors of RoPE's frequencies (llama 3.1 and later).
const ROPE_FACTORS: &str = "rope_freqs.weight";

const NAMES: Names = Names {
    embedding: "token_embd.weight",
    output_norm: "output_norm.weight",
    output: "output.weight",
    layer: "blk",
    attention_norm: "attn_norm",
    qkv: ["attn_q", "attn_k", "attn_v"],
    qk_norm: ["attn_q_norm", "attn_k_norm"],
    o: "attn_output",
    attention_post_norm: "post_attention_norm",
    ffn_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
    ffn_post_norm: "post_ffw_norm",
    router: "ffn_gate_inp",
    // Not in files: all of a layer's experts are in one tensor there.
    experts: "ffn_experts",
};

/// What comes before the feed-forward part is called after what it follows.
const SEED_OSS: Names = Names { ffn_norm: "post_attention_norm", ..NAMES };

/// phi3 has matrices that share their input below each other; all of a layer's experts are in one tensor.
fn split_fused(
    shelf: &mut Shelf,
    i: usize,
    layer: &LayerSpec,
    hidden: u32,
) -> Result<(), ModelError> {
    let Attention::Gqa(a) = &layer.attention;
    let weight = |part: &str| NAMES.part(i, part, "weight");
    let (q, kv) = ((a.heads * a.head_dim) as usize, (a.kv_heads * a.head_dim) as usize);
    let [q_name, k_name, v_name] = NAMES.qkv.map(weight);
    shelf.split(&weight("attn_qkv"), &[(q_name, q), (k_name, kv), (v_name, kv)])?;
    match &layer.ffn {
        Ffn::Dense { inner, .. } => {
            let inner = *inner as usize;
            let up = weight(NAMES.up);
            match shelf.get(&up).is_some_and(|t| t.rows == 2 * inner) {
                true => shelf.split(&up, &[(weight(NAMES.gate), inner), (up.clone(), inner)]),
                false => Ok(()),
            }
        }
        Ffn::Moe(moe) => {
            let (inner, hidden) = (moe.inner as usize, hidden as usize);
            for (part, rows) in [(NAMES.gate, inner), (NAMES.up, inner), (NAMES.down, hidden)] {
                let parts = 0..moe.experts as usize;
                let parts = parts.map(|e| (NAMES.of_expert(i, e, part), rows));
                shelf.split(&weight(&format!("{part}_exps")), &parts.collect::<Vec<_>>())?;
            }
            Ok(())
        }
    }
}

fn spec(gguf: &Gguf, shelf: &Shelf, bytes: &[u8]) -> Result<ModelSpec, ModelError> {
    let family = gguf
        .string("general.architecture")
        .ok_or_else(|| ModelError::Metadata { key: "general.architecture".into() })?;
    let (qk_norm, layout) = match family {
        "llama" => (false, RopeLayout::Interleaved),
        "qwen2" | "phi3" | "seed_oss" => (false, RopeLayout::Halves),
        "qwen3" | "qwen3moe" | "gemma3" => (true, RopeLayout::Halves),
        other => {
            return Err(ModelError::UnknownFamily {
                family: shown(other),
                known: "llama, qwen2, qwen3, qwen3moe, phi3, seed_oss or gemma3",
            });
        }
    };
    let gemma = family == "gemma3";
    let key = |name: &str| format!("{family}.{name}");
    let missing = |name: &str| ModelError::Metadata { key: key(name) };
    let number = |name: &str| gguf.u32(&key(name)).ok_or_else(|| missing(name));
    let optional = |name: &str, default: u32| match gguf.value(&key(name)) {
        None => Ok(default),
        Some(_) => number(name),
    };
    let experts = optional("expert_count", 0)?;
    if experts > 0 && family != "qwen3moe" {
        return Err(ModelError::Unsupported(format!("a mixture of experts in {family}")));
    }

    let hidden = number("embedding_length")?;
    let heads = number("attention.head_count")?;
    if hidden == 0 || heads == 0 {
        return Err(ModelError::Config(format!("{hidden} hidden values, {heads} heads")));
    }
    let head_dim = optional("attention.key_length", hidden / heads)?;
    if optional("attention.value_length", head_dim)? != head_dim {
        return Err(ModelError::Unsupported("keys and values of different widths".into()));
    }
    let rope = Rope {
        layout,
        dims: optional("rope.dimension_count", head_dim)?,
        theta: match gguf.value(&key("rope.freq_base")) {
            None if gemma => 1_000_000.0,
            None => 10_000.0,
            Some(_) => gguf.f32(&key("rope.freq_base")).ok_or_else(|| missing("rope.freq_base"))?,
        },
        scaling: rope_scaling(gguf, family, shelf, bytes)?,
    };
    let local_rope = Rope {
        theta: gguf.f32(&key("rope.freq_base_swa")).unwrap_or(10_000.0),
        scaling: RopeScaling::None,
        ..rope.clone()
    };
    let window = match family {
        "gemma3" => Some(number("attention.sliding_window")?),
        // 0 is none.
        "phi3" => Some(optional("attention.sliding_window", 0)?).filter(|window| *window > 0),
        _ => None,
    };
    let layers = number("block_count")?;
    if layers as usize > MAX_LAYERS {
        return Err(ModelError::Config(format!("the model has {layers} layers")));
    }
    let kv_heads = optional("attention.head_count_kv", heads)?;
    let activation = if gemma { Activation::GeluTanh } else { Activation::Silu };
    let dense = || Ok(Ffn::Dense { inner: number("feed_forward_length")?, activation });
    // A layer is a mixture where it has something that chooses.
    let ffn = |i: u32| match experts {
        1.. if shelf.has(&NAMES.part(i as usize, NAMES.router, "weight")) => Ok(Ffn::Moe(Moe {
            experts,
            chosen: number("expert_used_count")?,
            inner: number("expert_feed_forward_length")?,
            activation,
            renormalized: true,
        })),
        _ => dense(),
    };
    let layer = |i: u32| {
        // Gemma 3: five layers look back a little way, each sixth all the way.
        let local = if gemma { !(i + 1).is_multiple_of(6) } else { window.is_some() };
        Ok(LayerSpec {
            attention: Attention::Gqa(Gqa {
                heads,
                kv_heads,
                head_dim,
                // Gemma 3 27B alone scales by the width per head, not by the head's width.
                scale: match gemma && layers == 62 {
                    true => ((hidden / heads) as f32).sqrt().recip(),
                    false => (head_dim as f32).sqrt().recip(),
                },
                qkv_bias: shelf.has(&NAMES.part(i as usize, NAMES.qkv[0], "bias")),
                qk_norm,
                window: window.filter(|_| local),
                rope: if local && gemma { local_rope.clone() } else { rope.clone() },
            }),
            ffn: ffn(i)?,
            post_norms: gemma,
        })
    };
    let layers = (0..layers).map(layer).collect::<Result<_, ModelError>>()?;

    let embedding = shelf
        .get(NAMES.embedding)
        .ok_or_else(|| ModelError::MissingTensor(NAMES.embedding.into()))?;
    let vocab = u32::try_from(embedding.rows)
        .map_err(|_| ModelError::Config(format!("{} tokens", embedding.rows)))?;
    let eps = key("attention.layer_norm_rms_epsilon");
    let spec = ModelSpec {
        family: family.to_owned(),
        vocab,
        hidden,
        context: number("context_length")?,
        layers,
        norm_eps: gguf.f32(&eps).ok_or(ModelError::Metadata { key: eps })?,
        tied_head: !shelf.has(NAMES.output),
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        // Whoever made the file added it already.
        norms_from_one: false,
    };
    spec.check()?;
    Ok(spec)
}

fn rope_scaling(
    gguf: &Gguf,
    family: &str,
    shelf: &Shelf,
    bytes: &[u8],
) -> Result<RopeScaling, ModelError> {
    if let Some(t) = shelf.get(ROPE_FACTORS) {
        if t.rows != 1 || t.cols > 1 << 16 {
            return Err(ModelError::Shape {
                tensor: ROPE_FACTORS.into(),
                found: format!("{} x {}", t.rows, t.cols),
                expected: "one value per pair".into(),
            });
        }
        let mut divisors = vec![0.0; t.cols];
        dequantize(t.format, &bytes[t.offset..t.offset + t.len], &mut divisors);
        return Ok(RopeScaling::Divisors(Arc::from(divisors)));
    }
    let factor = gguf
        .f32(&format!("{family}.rope.scaling.factor"))
        .or_else(|| gguf.f32(&format!("{family}.rope.scale_linear")));
    match (gguf.string(&format!("{family}.rope.scaling.type")), factor) {
        (Some("yarn"), Some(factor)) => {
            let own = |name: &str| gguf.f32(&format!("{family}.rope.scaling.{name}"));
            let context = format!("{family}.rope.scaling.original_context_length");
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                fast: own("yarn_beta_fast").unwrap_or(32.0),
                slow: own("yarn_beta_slow").unwrap_or(1.0),
                original_context: gguf
                    .u32(&context)
                    .ok_or(ModelError::Metadata { key: context })?,
                attention: own("attn_factor").unwrap_or(1.0) * (0.1 * factor.max(1.0).ln() + 1.0),
                whole: true,
            }))
        }
        (Some("none"), _) | (None | Some("linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some(other), _) => {
            Err(ModelError::Unsupported(format!("{} scaling of RoPE", shown(other))))
        }
    }
}
