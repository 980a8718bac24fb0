//! Which models are measured, and what they must read and compute.

use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::{Attention, Ffn, ModelSpec, huggingface};

/// A name, the published shape, how its matrices are kept.
pub(crate) const MODELS: [(&str, &str, TileFormat); 3] = [
    (
        "qwen3-30b-a3b",
        r#"{"model_type":"qwen3_moe","hidden_size":2048,"num_hidden_layers":48,"num_attention_heads":32,
            "num_key_value_heads":4,"head_dim":128,"intermediate_size":6144,"moe_intermediate_size":768,"num_experts":128,
            "num_experts_per_tok":8,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],"vocab_size":151936,
            "max_position_embeddings":262144,"rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,
            "hidden_act":"silu","attention_bias":false}"#,
        TileFormat::Int4 { group: 128 },
    ),
    (
        "qwen3-8b",
        r#"{"model_type":"qwen3","hidden_size":4096,"num_hidden_layers":36,"num_attention_heads":32,"num_key_value_heads":8,
            "head_dim":128,"intermediate_size":12288,"vocab_size":151936,"max_position_embeddings":40960,
            "rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"hidden_act":"silu",
            "attention_bias":false}"#,
        TileFormat::Bf16,
    ),
    (
        "qwen3-235b-a22b",
        r#"{"model_type":"qwen3_moe","hidden_size":4096,"num_hidden_layers":94,"num_attention_heads":64,
            "num_key_value_heads":4,"head_dim":128,"intermediate_size":12288,"moe_intermediate_size":1536,"num_experts":128,
            "num_experts_per_tok":8,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],"vocab_size":151936,
            "max_position_embeddings":262144,"rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,
            "hidden_act":"silu","attention_bias":false}"#,
        TileFormat::Int4 { group: 128 },
    ),
];

/// A model of that name: its shape and how its matrices are kept.
pub(crate) fn model(name: &str) -> Option<(ModelSpec, TileFormat)> {
    let (_, config, format) = MODELS.iter().find(|(other, ..)| *other == name)?;
    Some((huggingface::parse_config(config.as_bytes()).expect("checked in"), *format))
}

/// Bytes that a decode step of so many streams must read: matrices of the experts that are expected to be chosen, the head, KV.
#[allow(dead_code, reason = "the replay measures no single steps")]
pub(crate) fn bytes_of_step(
    spec: &ModelSpec,
    (format, kv): (TileFormat, KvFormat),
    streams: usize,
    length: usize,
) -> f64 {
    let bits = match format {
        TileFormat::Bf16 => 16.0,
        TileFormat::Int4 { .. } => 4.25,
        TileFormat::Fp8 => 8.5,
    };
    let hidden = f64::from(spec.hidden);
    let (mut weights, mut others) = (0.0, 0.0);
    for layer in &spec.layers {
        let Attention::Gqa(a) = &layer.attention;
        weights += hidden * f64::from((2 * a.heads + 2 * a.kv_heads) * a.head_dim);
        match &layer.ffn {
            Ffn::Dense { inner, .. } => weights += 3.0 * hidden * f64::from(*inner),
            Ffn::Moe(moe) => {
                let missed =
                    (1.0 - f64::from(moe.chosen) / f64::from(moe.experts)).powi(streams as i32);
                let distinct = f64::from(moe.experts) * (1.0 - missed);
                weights += 3.0 * hidden * f64::from(moe.inner) * distinct;
                others += 2.0 * hidden * f64::from(moe.experts);
            }
        }
    }
    // A scale of four bytes for each head's 128 bytes.
    let bytes = if kv == KvFormat::Fp8 { 33.0 / 32.0 } else { 2.0 };
    let kv = spec.kv_values_per_token() as f64 * bytes * (streams * length) as f64;
    weights * bits / 8.0 + others + 2.0 * hidden * f64::from(spec.vocab) + kv
}

/// Operations of a prompt: matrices of every token, attention to what is before it, the head once.
#[allow(dead_code, reason = "the replay measures no single prompts")]
pub(crate) fn operations_of_prompt(spec: &ModelSpec, length: usize) -> f64 {
    let hidden = f64::from(spec.hidden);
    let length = length as f64;
    let mut all = 0.0;
    for layer in &spec.layers {
        let Attention::Gqa(a) = &layer.attention;
        all += 2.0 * hidden * f64::from((2 * a.heads + 2 * a.kv_heads) * a.head_dim) * length;
        all += 2.0 * f64::from(a.heads * a.head_dim) * length * length;
        all += match &layer.ffn {
            Ffn::Dense { inner, .. } => 6.0 * hidden * f64::from(*inner) * length,
            Ffn::Moe(moe) => {
                (6.0 * f64::from(moe.inner * moe.chosen) + 2.0 * f64::from(moe.experts))
                    * hidden
                    * length
            }
        };
    }
    all
}
