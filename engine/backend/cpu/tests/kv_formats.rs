//! What fewer bits for keys and values cost, against 16-bit halves. `cargo test --release -p polder-backend-cpu --test kv_formats --
//! --nocapture` prints it.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::Arc;

use common::{blocks, open, smollm2, teacher_force, tiny};
use polder_backend::{Backend, BlockId};
use polder_backend_cpu::{CpuBackend, CpuOptions, KvFormat};
use polder_model::Model;

fn load(model: &Arc<Model>, kv: KvFormat) -> CpuBackend {
    let options = CpuOptions { kv, kv_tokens: 1024, slots: 1, threads: 2, ..CpuOptions::default() };
    CpuBackend::load(model, &options).unwrap()
}

/// `log softmax`.
fn judged(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - most) - sum.ln()).collect()
}

/// Over all positions of some texts: the mean and the largest KL divergence from halves, and the part of places where the
/// likeliest token is another one.
fn cost(model: &Arc<Model>, kv: KvFormat, texts: &[Vec<u32>]) -> [f64; 3] {
    let (mut halves, mut other) = (load(model, KvFormat::Half), load(model, kv));
    let (mut sum, mut most, mut differ, mut count) = (0.0, 0.0f64, 0.0, 0.0);
    for text in texts {
        let table = blocks(0, text.len().div_ceil(16) as u32);
        let read = |backend: &mut CpuBackend| teacher_force(backend, text, 64, &table);
        for (a, b) in read(&mut halves).iter().zip(read(&mut other)) {
            let (p, q) = (judged(a), judged(&b));
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let best = |list: &[f64]| (0..list.len()).max_by(|a, b| list[*a].total_cmp(&list[*b]));
            (sum, most) = (sum + divergence, most.max(divergence));
            differ += f64::from(u8::from(best(&p) != best(&q)));
            count += 1.0;
        }
    }
    [sum / count, most, differ / count]
}

#[test]
fn model_eight_bits_cost_little_and_bf16_less() {
    let model = smollm2();
    let texts: Vec<Vec<u32>> =
        common::golden_texts().into_iter().map(|text| text.tokens[..96].to_vec()).take(2).collect();
    let [bf16, fp8] = [KvFormat::Bf16, KvFormat::Fp8].map(|kv| cost(&model, kv, &texts));
    for (name, [mean, most, differ]) in [("bf16", bf16), ("fp8", fp8)] {
        println!(
            "{name}: mean KL {mean:.2e}, largest {most:.2e}, other first token {:.2} %",
            differ * 100.0
        );
    }
    assert!(bf16[0] < 3e-4 && bf16[2] < 0.02, "{bf16:?}");
    assert!(fp8[0] < 3e-2 && fp8[2] < 0.1, "{fp8:?}");
}

#[test]
fn each_format_is_as_exact_as_its_bits_on_made_up_weights() {
    let families = common::goldens().join("families");
    // Made-up weights make large logits, and with them large differences.
    let models =
        [(tiny("qwen3"), 1e-3), (tiny("mixed"), 3e-2), (open(&families.join("llama")), 0.5)];
    for (model, bound) in models {
        let vocab = load(&model, KvFormat::Half).limits().vocab;
        let text: Vec<u32> = (0..96).map(|at| (at * 29 + 7) % vocab).collect();
        let texts = [text];
        assert_eq!(cost(&model, KvFormat::Half, &texts), [0.0; 3]);
        let [bf16, fp8] = [KvFormat::Bf16, KvFormat::Fp8].map(|kv| cost(&model, kv, &texts)[0]);
        assert!(bf16 > 0.0 && 50.0 * bf16 < fp8 && fp8 < bound, "{bf16} {fp8}");
    }
}

#[test]
fn a_block_is_as_long_as_said_and_comes_back_elsewhere_with_the_same_bits() {
    let model = tiny("qwen3");
    let text: Vec<u32> = (0..40).map(|at| (at * 29 + 7) % 64).collect();
    let mut lengths = Vec::new();
    for kv in [KvFormat::Half, KvFormat::Bf16, KvFormat::Fp8] {
        let (mut first, mut second) = (load(&model, kv), load(&model, kv));
        let whole = teacher_force(&mut first, &text, 40, &blocks(0, 3));
        let mut bytes = Vec::new();
        for (from, to) in [(0, 9), (1, 4)] {
            first.export_block(BlockId(from), &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, first.limits().block_bytes());
            second.import_block(BlockId(to), &bytes).unwrap();
        }
        lengths.push(bytes.len());
        let mut batch = polder_backend::StepBatch::default();
        let table = [BlockId(9), BlockId(4), BlockId(2)];
        common::feed(&mut batch, 0, &common::host(&text[32..]), 32, &table);
        common::want_last(&mut batch, 0, polder_backend::Want::Logits);
        let row = common::step(&mut second, &batch).rows.pop().unwrap();
        assert_eq!(&common::logits(row), whole.last().unwrap(), "{kv:?}");
    }
    assert!(lengths[0] == lengths[1] && 2 * lengths[2] < lengths[0] * 5 / 4, "{lengths:?}");
}
