//! Which models are measured, and what they must read and compute.

use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::drawn::Stored;
use polder_model::{Attention, Ffn, ModelSpec, huggingface};
use polder_recipes::Shape;

/// Those that are measured where none is named.
#[allow(dead_code, reason = "the replay is told which")]
pub(crate) const MODELS: [&str; 3] = ["qwen3-30b-a3b", "qwen3-8b", "qwen3-235b-a22b"];

/// A model of that name: its shape and how its matrices are kept.
pub(crate) fn model(name: &str) -> Option<(ModelSpec, TileFormat)> {
    let config = Shape::find(name).ok()?.config;
    let mut spec = huggingface::parse_config(config.as_bytes()).expect("checked in");
    // Positions may be turned further than the model was made for; that costs the same.
    spec.context = 262_144;
    Some((spec, TileFormat::drawn(Stored::of(config).expect("checked in"))?))
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
