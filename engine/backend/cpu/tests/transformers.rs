//! Each family against `transformers`, on the seeded checkpoints that `goldens/families.py` made.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::Arc;

use common::{BLOCKS, answers, blocks, distance, expected, goldens, load, open};
use polder_backend_cpu::Precision;
use polder_model::Model;

/// The most that a position's logits may differ, relative L2.
const BOUND: f64 = 1e-3;

fn check(name: &str) {
    check_model(&open(&goldens().join("families").join(name)), name);
}

/// The same weights in the other file format, as `goldens/families_gguf.py` wrote them.
fn check_gguf(name: &str) {
    check_model(&open(&goldens().join("families-gguf").join(format!("{name}.gguf"))), name);
}

fn check_model(model: &Arc<Model>, name: &str) {
    let expected = expected(name);
    let (prompt, said) = expected.sequences.last().unwrap();
    let text: Vec<u32> = prompt.iter().chain(&said[..said.len() - 1]).copied().collect();
    let distances = |precision| -> Vec<f64> {
        let mut backend = load(model, precision);
        let ours = common::teacher_force(&mut backend, &text, 40, &blocks(0, BLOCKS));
        assert_eq!(ours.len(), expected.rows.len());
        let mut all: Vec<f64> =
            expected.rows.iter().zip(&ours).map(|(a, b)| distance(a, b)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let floats = *distances(Precision::F32).last().unwrap();
    // Where two experts are worth almost the same, half precision may choose the other one: not the worst position is
    // looked at, but what nine in ten stay below.
    let stored = distances(Precision::Stored);
    let stored = stored[stored.len() * 9 / 10];
    println!("{name}: relative L2 {floats:.1e} at worst as floats, {stored:.1e} mostly as stored");
    assert!(floats < BOUND && stored < 3.0 * BOUND, "{floats} {stored}");

    let prompts: Vec<&[u32]> = expected.sequences.iter().map(|(p, _)| p.as_slice()).collect();
    let right: Vec<&Vec<u32>> = expected.sequences.iter().map(|(_, said)| said).collect();
    for (prompt, said) in prompts.iter().zip(&right) {
        let alone = answers(&mut load(model, Precision::F32), &[prompt], 64, said.len());
        assert_eq!(&alone[0], *said, "{name}, {} tokens alone", prompt.len());
    }
    for piece in [1, 7, 64] {
        let together = answers(&mut load(model, Precision::F32), &prompts, piece, right[0].len());
        for (n, said) in right.iter().enumerate() {
            assert_eq!(&together[n], *said, "{name}, sequence {n}, in pieces of {piece}");
        }
    }
}

#[test]
fn llama_with_stretched_positions_answers_like_transformers() {
    check("llama");
}

#[test]
fn llama_with_one_matrix_for_both_ends_answers_like_transformers() {
    check("llama-tied");
}

#[test]
fn qwen2_with_yarn_answers_like_transformers() {
    check("qwen2");
}

#[test]
fn qwen2_with_a_layer_that_looks_back_a_little_way_answers_like_transformers() {
    check("qwen2-windows");
}

#[test]
fn qwen3_with_yarn_answers_like_transformers() {
    check("qwen3");
}

#[test]
fn qwen3_with_experts_answers_like_transformers() {
    check("qwen3_moe");
}

#[test]
fn phi3_with_its_fused_matrices_answers_like_transformers() {
    check("phi3");
}

#[test]
fn seed_oss_answers_like_transformers() {
    check("seed_oss");
}

#[test]
fn gemma3_with_its_windows_answers_like_transformers() {
    check("gemma3_text");
}

#[test]
fn gguf_files_of_mixtures_and_fused_matrices_answer_like_transformers() {
    for name in ["qwen3_moe", "phi3", "seed_oss", "qwen3"] {
        check_gguf(name);
    }
}

#[test]
fn awq_in_groups_of_128_with_experts_answers_like_the_values_that_it_stands_for() {
    check("awq-128");
}

#[test]
fn awq_in_groups_of_64_answers_like_the_values_that_it_stands_for() {
    check("awq-64");
}

#[test]
fn gptq_with_zeros_that_are_one_less_answers_like_the_values_that_it_stands_for() {
    check("gptq");
}

#[test]
fn gptq_of_the_second_version_answers_like_the_values_that_it_stands_for() {
    check("gptq-v2");
}

#[test]
fn compressed_tensors_without_zeros_answers_like_the_values_that_it_stands_for() {
    check("packed");
}

#[test]
fn compressed_tensors_with_zeros_in_fused_matrices_answers_like_the_values_that_it_stands_for() {
    check("packed-zeros");
}

#[test]
fn fp8_in_blocks_with_experts_answers_like_the_values_that_it_stands_for() {
    check("fp8-block");
}

#[test]
fn fp8_with_one_scale_answers_like_the_values_that_it_stands_for() {
    check("fp8-tensor");
}

#[test]
fn fp8_with_a_scale_for_each_output_answers_like_the_values_that_it_stands_for() {
    check("fp8-channel");
}
