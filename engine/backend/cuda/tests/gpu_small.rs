//! Every kernel that an engine starts, at shapes so small that a sanitizer gets through: heads of every size, weights and KV of every format,
//! few tokens and many, recorded and not. What a text makes of a model must not depend on how it was cut.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use polder_backend::{Row, Sampling, StepBatch, TokenId, Want};
use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::{ModelSpec, huggingface};
use steps::{blocks, distance, feed, host, reset, step, teacher_force, want_last};

const VOCAB: u32 = 512;

/// Of one layer; `experts` of them, or none.
fn spec(head_dim: u32, heads: u32, experts: u32) -> ModelSpec {
    let kind = match experts {
        0 => r#""model_type":"qwen3""#.to_owned(),
        _ => format!(
            r#""model_type":"qwen3_moe","moe_intermediate_size":128,"num_experts":{experts},
               "num_experts_per_tok":2,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[]"#
        ),
    };
    let config = format!(
        r#"{{{kind},"hidden_size":256,"num_hidden_layers":1,"num_attention_heads":{heads},
            "num_key_value_heads":2,"head_dim":{head_dim},"intermediate_size":256,"vocab_size":{VOCAB},
            "max_position_embeddings":1024,"rope_theta":10000.0,"rms_norm_eps":1e-6,
            "tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false}}"#
    );
    huggingface::parse_config(config.as_bytes()).unwrap()
}

fn load(spec: &ModelSpec, format: TileFormat, kv: KvFormat) -> CudaBackend {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let pack = Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made };
    let device = Device::open(0).expect("these tests need a card");
    let weights = synthetic::draw(spec, format, &pack, &device, 7).unwrap();
    let options = CudaOptions {
        pack,
        kv,
        kv_tokens: 1024,
        slots: 16,
        step_tokens: 192,
        ..CudaOptions::default()
    };
    CudaBackend::with_weights(spec, weights, &device, &options).unwrap()
}

fn text(length: u32) -> Vec<u32> {
    (0..length).map(|n| (n * 193 + n * n * 7) % VOCAB).collect()
}

/// Answers of several at once, with everything that a draw may be asked for.
fn answer(backend: &mut CudaBackend) {
    let mask = Some(vec![0x5555_5555; VOCAB as usize / 32]);
    let each = [
        Sampling::greedy(),
        Sampling { temperature: 0.8, top_p: 0.9, seed: 3, ..Sampling::greedy() },
        Sampling { temperature: 1.0, top_k: 20, min_p: 0.01, seed: 4, ..Sampling::greedy() },
        Sampling {
            presence_penalty: 0.5,
            frequency_penalty: 0.2,
            repetition_penalty: 1.1,
            logprobs: Some(4),
            ..Sampling::greedy()
        },
        Sampling { mask, bias: vec![(TokenId(4), 2.0)], ..Sampling::greedy() },
    ];
    // Recorded: each goes on with one token; alone, and together, greedy and not.
    for (first, count) in [(0, 1), (0, 5), (1, 2)] {
        let mut batch = StepBatch::default();
        for (slot, sampling) in each.iter().skip(first).take(count).enumerate() {
            let (slot, tokens) = (slot as u16, text(5));
            reset(&mut batch, slot, &tokens);
            feed(&mut batch, slot, &host(&tokens[4..]), 0, &blocks(40 + u32::from(slot), 1));
            want_last(&mut batch, slot, Want::Sample(sampling.clone()));
        }
        for _ in 0..2 {
            let rows = step(backend, &batch).rows;
            assert!(rows.iter().all(|row| matches!(row, Row::Sampled(_))), "{rows:?}");
        }
    }
}

fn check(name: &str, spec: &ModelSpec, format: TileFormat, kv: KvFormat) {
    let mut backend = load(spec, format, kv);
    let tokens = text(140);
    let whole = teacher_force(&mut backend, &tokens, 140, &blocks(0, 9));
    for (piece, from) in [(35, 9), (9, 18), (1, 27)] {
        // One by one not all of it: a sanitizer takes long.
        let some = &tokens[..if piece == 1 { 24 } else { 80 }];
        let pieces = teacher_force(&mut backend, some, piece, &blocks(from, 5));
        let mut apart: Vec<f64> =
            whole.iter().zip(&pieces).map(|(whole, part)| distance(whole, part)).collect();
        apart.sort_by(f64::total_cmp);
        let middle = apart[apart.len() / 2];
        println!(
            "{name}, in pieces of {piece}: {middle:.1e}, at worst {:.1e}",
            apart[apart.len() - 1]
        );
        // Where two experts are worth almost the same, another one may be chosen.
        assert!(middle < 0.03, "{name} in pieces of {piece}: {middle}");
    }
    answer(&mut backend);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_small_plain_models_do_not_depend_on_how_a_text_is_cut() {
    let int4 = |group| TileFormat::Int4 { group };
    check("64 bf16", &spec(64, 8, 0), TileFormat::Bf16, KvFormat::Bf16);
    check("96 int4", &spec(96, 8, 0), int4(64), KvFormat::Fp8);
    check("128 int4", &spec(128, 8, 0), int4(128), KvFormat::Bf16);
    check("128 fp8", &spec(128, 8, 0), TileFormat::Fp8, KvFormat::Fp8);
    check("128 bf16, groups of 16", &spec(128, 32, 0), TileFormat::Bf16, KvFormat::Bf16);
    check("256 fp8", &spec(256, 4, 0), TileFormat::Fp8, KvFormat::Bf16);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_small_mixtures_do_not_depend_on_how_a_text_is_cut() {
    let int4 = |group| TileFormat::Int4 { group };
    check("mixture bf16", &spec(64, 8, 8), TileFormat::Bf16, KvFormat::Bf16);
    check("mixture int4 64", &spec(64, 8, 8), int4(64), KvFormat::Bf16);
    check("mixture int4 128", &spec(128, 8, 16), int4(128), KvFormat::Fp8);
    check("mixture fp8", &spec(64, 8, 8), TileFormat::Fp8, KvFormat::Bf16);
}
