//! Whole models on a card against the goldens: every family, every format.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use std::sync::Arc;

use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::pack::Pack;
use polder_model::{Ffn, Model};
use steps::{BLOCKS, answers, blocks, distance, expected, goldens, open, teacher_force};

/// The most that eight in ten positions' logits may differ, relative L2: activations are bf16, with an eighth of the places of
/// the halves with which the CPU stays below 3e-3.
const BOUND: f64 = 2.5e-2;
/// Two tokens whose logits are nearer than this part of the logits' deviation may change places: the difference of two logits,
/// each wrong by the bound, is off by that in one case of two thousand.
const NEAR: f32 = 0.12;

/// Of the answers of a mixture so many in a hundred may leave the golden one at tokens that are not alike: another expert was chosen
/// before them. Every answer would, if what is kept from step to step were wrong.
const FLIPPED: usize = 35;

fn load(model: &Arc<Model>) -> CudaBackend {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let options = CudaOptions {
        pack: Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made },
        kv_tokens: 4096,
        slots: 16,
        step_tokens: 512,
        ..CudaOptions::default()
    };
    CudaBackend::load(model, &options, |_| ()).unwrap_or_else(|e| panic!("{e}"))
}

fn check(model: &Arc<Model>, name: &str) {
    let expected = expected(name);
    let (prompt, said) = expected.sequences.last().unwrap();
    let text: Vec<u32> = prompt.iter().chain(&said[..said.len() - 1]).copied().collect();
    let mut backend = load(model);
    // Where two experts are worth almost the same, another one may be chosen, and what comes after such a token sees another past:
    // of a mixture the middle is looked at.
    let mixture = model.spec.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Moe(_)));
    let mostly = if mixture { 5 } else { 8 };
    let found: Vec<(usize, f64, f64)> = [40, 7, 1]
        .into_iter()
        .map(|piece| {
            let ours = teacher_force(&mut backend, &text, piece, &blocks(0, BLOCKS));
            let mut all: Vec<f64> =
                expected.rows.iter().zip(&ours).map(|(a, b)| distance(a, b)).collect();
            all.sort_by(f64::total_cmp);
            (piece, all[all.len() * mostly / 10], all[all.len() - 1])
        })
        .collect();
    println!("{name}: relative L2 (in pieces of, mostly, at worst) {found:?}");
    for (piece, mostly, worst) in found {
        assert!(mostly < BOUND && (mixture || worst < 3.0 * BOUND), "{name} in pieces of {piece}");
    }

    // Greedy answers, alone and together. Where an answer leaves the golden one, the two tokens were almost alike.
    let prompts: Vec<&[u32]> = expected.sequences.iter().map(|(p, _)| p.as_slice()).collect();
    let right: Vec<&Vec<u32>> = expected.sequences.iter().map(|(_, said)| said).collect();
    let (mut tokens, mut all, mut left, mut flipped) = (0, 0, 0, 0);
    for piece in [64, 7] {
        let together = answers(&mut backend, &prompts, piece, right[0].len());
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| answers(&mut backend, &[prompt], piece, right[0].len()).remove(0))
            .collect();
        for (n, answer) in together.into_iter().enumerate().chain(alone.into_iter().enumerate()) {
            let same = answer.iter().zip(right[n]).take_while(|(a, b)| a == b).count();
            tokens += right[n].len();
            all += 1;
            if same == right[n].len() {
                continue;
            }
            left += 1;
            let text: Vec<u32> = prompts[n].iter().chain(&right[n][..same]).copied().collect();
            let logits = teacher_force(&mut backend, &text, 64, &blocks(0, BLOCKS)).pop().unwrap();
            let gap = logits[right[n][same] as usize] - logits[answer[same] as usize];
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            let deviation = (logits.iter().map(|l| (l - mean).powi(2)).sum::<f32>()
                / logits.len() as f32)
                .sqrt();
            let alike = gap.abs() < NEAR * deviation;
            assert!(alike || mixture, "{name}, sequence {n} after {same}: {gap} of {deviation}");
            flipped += usize::from(!alike);
        }
    }
    println!(
        "{name}: {left} of {all} answers ({tokens} tokens) left the golden one, {flipped} at tokens that are not alike"
    );
    assert!(flipped * 100 <= FLIPPED * all, "{name}: {flipped} of {all} answers");
}

fn check_family(name: &str) {
    check(&open(&goldens().join("families").join(name)), name);
}

macro_rules! families {
    ($($test:ident: $name:literal),+ $(,)?) => {
        $(
            #[test]
            #[ignore = "needs a GPU"]
            fn $test() {
                check_family($name);
            }
        )+
    };
}

families! {
    gpu_llama_with_stretched_positions_answers_like_transformers: "llama",
    gpu_llama_with_one_matrix_for_both_ends_answers_like_transformers: "llama-tied",
    gpu_qwen2_with_yarn_answers_like_transformers: "qwen2",
    gpu_qwen2_with_a_layer_that_looks_back_a_little_way_answers_like_transformers: "qwen2-windows",
    gpu_qwen3_with_yarn_answers_like_transformers: "qwen3",
    gpu_qwen3_with_experts_answers_like_transformers: "qwen3_moe",
    gpu_phi3_with_its_fused_matrices_answers_like_transformers: "phi3",
    gpu_seed_oss_answers_like_transformers: "seed_oss",
    gpu_gemma3_with_its_windows_answers_like_transformers: "gemma3_text",
    gpu_awq_in_groups_of_128_with_experts_answers_like_its_values: "awq-128",
    gpu_awq_in_groups_of_64_answers_like_its_values: "awq-64",
    gpu_gptq_answers_like_its_values: "gptq",
    gpu_gptq_of_the_second_version_answers_like_its_values: "gptq-v2",
    gpu_compressed_tensors_without_zeros_answers_like_its_values: "packed",
    gpu_compressed_tensors_with_zeros_answers_like_its_values: "packed-zeros",
    gpu_fp8_with_one_scale_answers_like_its_values: "fp8-tensor",
    gpu_fp8_with_a_scale_for_each_output_answers_like_its_values: "fp8-channel",
    gpu_fp8_with_a_scale_for_each_block_answers_like_its_values: "fp8-block",
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gguf_files_answer_like_transformers() {
    for name in ["qwen3_moe", "phi3", "seed_oss", "qwen3"] {
        check(&open(&goldens().join("families-gguf").join(format!("{name}.gguf"))), name);
    }
}
