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
    spec_of(256, head_dim, heads, experts)
}

/// The same, with hidden states and a feed-forward part of another width.
fn spec_of(width: u32, head_dim: u32, heads: u32, experts: u32) -> ModelSpec {
    let kind = match experts {
        0 => r#""model_type":"qwen3""#.to_owned(),
        _ => format!(
            r#""model_type":"qwen3_moe","moe_intermediate_size":128,"num_experts":{experts},
               "num_experts_per_tok":2,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[]"#
        ),
    };
    let config = format!(
        r#"{{{kind},"hidden_size":{width},"num_hidden_layers":1,"num_attention_heads":{heads},
            "num_key_value_heads":2,"head_dim":{head_dim},"intermediate_size":{width},"vocab_size":{VOCAB},
            "max_position_embeddings":1024,"rope_theta":10000.0,"rms_norm_eps":1e-6,
            "tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false}}"#
    );
    huggingface::parse_config(config.as_bytes()).unwrap()
}

fn load(spec: &ModelSpec, format: TileFormat, kv: KvFormat) -> CudaBackend {
    load_for(spec, format, kv, (1024, 192))
}

/// For so many positions, and tokens of a step.
fn load_for(
    spec: &ModelSpec,
    format: TileFormat,
    kv: KvFormat,
    (kv_tokens, step_tokens): (u32, u32),
) -> CudaBackend {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let pack = Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made };
    let device = Device::open(0).expect("these tests need a card");
    let weights = synthetic::draw(spec, format, &pack, &device, 7).unwrap();
    let options =
        CudaOptions { pack, kv, kv_tokens, slots: 16, step_tokens, ..CudaOptions::default() };
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
    let again = if sanitized() { 1 } else { 2 };
    for (first, count) in [(0, 1), (0, 5), (1, 2)] {
        let mut batch = StepBatch::default();
        for (slot, sampling) in each.iter().skip(first).take(count).enumerate() {
            let (slot, tokens) = (slot as u16, text(5));
            reset(&mut batch, slot, &tokens);
            feed(&mut batch, slot, &host(&tokens[4..]), 0, &blocks(40 + u32::from(slot), 1));
            want_last(&mut batch, slot, Want::Sample(sampling.clone()));
        }
        for _ in 0..again {
            let rows = step(backend, &batch).rows;
            assert!(rows.iter().all(|row| matches!(row, Row::Sampled(_))), "{rows:?}");
        }
    }
}

/// Whether a sanitizer looks on, which takes a hundred times as long: then there is less of everything.
fn sanitized() -> bool {
    std::env::var_os("POLDER_SANITIZED").is_some()
}

fn check(spec: &ModelSpec, format: TileFormat, kv: KvFormat) {
    let mut backend = load(spec, format, kv);
    // More than 64 tokens go another way.
    let (long, some, few) = if sanitized() { (70, 18, 3) } else { (140, 80, 24) };
    let tokens = text(long);
    let whole = teacher_force(&mut backend, &tokens, long as usize, &blocks(0, 9));
    for (piece, length, from) in [(35, some, 9), (9, some, 18), (1, few, 27)] {
        let pieces = teacher_force(&mut backend, &tokens[..length], piece, &blocks(from, 5));
        let mut apart: Vec<f64> =
            whole.iter().zip(&pieces).map(|(whole, part)| distance(whole, part)).collect();
        apart.sort_by(f64::total_cmp);
        let middle = apart[apart.len() / 2];
        println!("in pieces of {piece}: {middle:.1e}, at worst {:.1e}", apart[apart.len() - 1]);
        // Where two experts are worth almost the same, another one may be chosen.
        assert!(middle < 0.03, "in pieces of {piece}: {middle}");
    }
    answer(&mut backend);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_small_a_thousand_tokens_at_once_say_what_pieces_of_them_say() {
    // So wide, and so many, that matrices in bf16 and tokens meet in shared memory on Hopper, from a norm to the next stream.
    if sanitized() {
        return;
    }
    let spec = spec_of(2048, 128, 16, 0);
    let mut backend = load_for(&spec, TileFormat::Bf16, KvFormat::Bf16, (2048, 1024));
    let tokens = text(1000);
    let whole = teacher_force(&mut backend, &tokens, 1000, &blocks(0, 63));
    for (piece, length) in [(35, 300), (300, 900)] {
        let pieces = teacher_force(&mut backend, &tokens[..length], piece, &blocks(64, 57));
        let apart = whole.iter().zip(&pieces).map(|(whole, part)| distance(whole, part));
        let worst = apart.fold(0.0, f64::max);
        println!("in pieces of {piece}: {worst:.1e} at worst");
        assert!(worst < 0.03, "in pieces of {piece}: {worst}");
    }
}

const INT4_64: TileFormat = TileFormat::Int4 { group: 64 };
const INT4_128: TileFormat = TileFormat::Int4 { group: 128 };

/// A text says the same however it is cut: heads of some width, so many of them, so many experts, weights and KV.
macro_rules! small {
    ($($test:ident: $head_dim:literal, $heads:literal, $experts:literal, $format:expr, $kv:ident;)+) => {
        $(
            #[test]
            #[ignore = "needs a GPU"]
            fn $test() {
                check(&spec($head_dim, $heads, $experts), $format, KvFormat::$kv);
            }
        )+
    };
}

small! {
    gpu_small_bf16_says_the_same_however_a_text_is_cut: 64, 8, 0, TileFormat::Bf16, Bf16;
    gpu_small_int4_with_heads_of_96_says_the_same_however_a_text_is_cut: 96, 8, 0, INT4_64, Fp8;
    gpu_small_int4_with_heads_of_128_says_the_same_however_a_text_is_cut: 128, 8, 0, INT4_128, Bf16;
    gpu_small_fp8_over_fp8_says_the_same_however_a_text_is_cut: 128, 8, 0, TileFormat::Fp8, Fp8;
    gpu_small_groups_of_16_heads_say_the_same_however_a_text_is_cut: 128, 32, 0, TileFormat::Bf16, Bf16;
    gpu_small_heads_of_256_say_the_same_however_a_text_is_cut: 256, 4, 0, TileFormat::Fp8, Bf16;
    gpu_small_experts_in_bf16_say_the_same_however_a_text_is_cut: 64, 8, 8, TileFormat::Bf16, Bf16;
    gpu_small_experts_in_int4_say_the_same_however_a_text_is_cut: 64, 8, 8, INT4_64, Bf16;
    gpu_small_experts_in_groups_of_128_say_the_same_however_a_text_is_cut: 128, 8, 16, INT4_128, Fp8;
    gpu_small_experts_in_fp8_say_the_same_however_a_text_is_cut: 64, 8, 8, TileFormat::Fp8, Bf16;
}
