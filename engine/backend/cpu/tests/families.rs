//! Each family against llama.cpp, on seeded checkpoints in both file formats.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::Arc;

use common::{Bytes, blocks, distance, goldens, load, open, teacher_force};
use polder_backend_cpu::Precision;
use polder_model::{Attention, Model};

fn expected(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut file = Bytes::open(&goldens().join("tiny").join(name).join("expected.bin"));
    let (tokens, vocab) = (file.u32() as usize, file.u32() as usize);
    let ids = file.u32s(tokens);
    let rows = (0..tokens).map(|_| file.f32s(vocab)).collect();
    assert!(file.is_empty());
    (ids, rows)
}

fn worst(model: &Arc<Model>, precision: Precision, name: &str) -> f64 {
    let (ids, expected) = expected(name);
    let ours = teacher_force(&mut load(model, precision), &ids, 40, &blocks(0, 3));
    let worst = expected.iter().zip(&ours).map(|(a, b)| distance(a, b)).fold(0.0, f64::max);
    println!("{name} {precision:?}: worst relative L2 {worst:.2e}");
    worst
}

/// The same weights as a safetensors folder, without the GGUF beside them.
fn huggingface(name: &str) -> Arc<Model> {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = goldens().join("tiny").join(name).join(file);
        std::fs::copy(from, folder.path().join(file)).unwrap();
    }
    open(folder.path())
}

fn check(name: &str) {
    let gguf = common::tiny(name);
    assert!(worst(&gguf, Precision::F32, name) < 1e-5);
    let safetensors = huggingface(name);
    assert!(worst(&safetensors, Precision::F32, name) < 1e-5);
    // Stored: BF16 weights stay exact, KV in half precision.
    assert!(worst(&safetensors, Precision::Stored, name) < 3e-3);
}

#[test]
fn llama_answers_like_llama_cpp() {
    check("llama");
}

#[test]
fn llama_3_with_stretched_positions_and_a_tied_head_answers_like_llama_cpp() {
    check("llama3-tied");
    assert!(common::tiny("llama3-tied").spec.tied_head);
}

#[test]
fn qwen2_with_its_biases_answers_like_llama_cpp() {
    check("qwen2");
}

#[test]
fn qwen3_with_its_head_norms_answers_like_llama_cpp() {
    check("qwen3");
}

#[test]
fn gemma3_with_its_windows_answers_like_llama_cpp() {
    let model = common::tiny("gemma3");
    let windows: Vec<_> = model
        .spec
        .layers
        .iter()
        .map(|l| {
            let Attention::Gqa(a) = &l.attention;
            a.window
        })
        .collect();
    assert_eq!(windows, [Some(8), Some(8), Some(8), Some(8), Some(8), None, Some(8)]);
    // llama.cpp looks GELU up in a table of half-precision numbers; we compute it.
    assert!(worst(&model, Precision::F32, "gemma3") < 5e-4);
    assert!(worst(&model, Precision::Stored, "gemma3") < 3e-3);
}

#[test]
fn a_file_of_several_quantized_formats_answers_like_its_own_weights_as_floats() {
    let model = common::tiny("mixed");
    assert!(worst(&model, Precision::F32, "mixed") < 1e-5);
    assert!(worst(&model, Precision::Stored, "mixed") < 5e-2);
}

#[test]
fn q3_k_as_it_is_packed_answers_like_its_values_as_floats() {
    let model = open(&goldens().join("families-gguf/q3_k.gguf"));
    let text: Vec<u32> = (0..40).map(|at| at * 37 % 128).collect();
    let answer = |precision| teacher_force(&mut load(&model, precision), &text, 40, &blocks(0, 3));
    let (floats, stored) = (answer(Precision::F32), answer(Precision::Stored));
    let worst = floats.iter().zip(&stored).map(|(a, b)| distance(a, b)).fold(0.0, f64::max);
    assert!(worst < 3e-3, "{worst}");
}

#[test]
fn every_stored_format_is_read_as_llama_cpp_reads_it() {
    let mut file = Bytes::open(&goldens().join("blocks.bin"));
    let mut seen = Vec::new();
    while !file.is_empty() {
        let name = String::from_utf8(file.take(16).to_vec()).unwrap();
        let name = name.trim_end_matches('\0').to_owned();
        let (rows, cols, len) = (file.u32() as usize, file.u32() as usize, file.u32() as usize);
        let stored = file.take(len).to_vec();
        let expected = file.f32s(rows * cols);
        let format = polder_model::Format::ALL
            .into_iter()
            .find(|f| format!("{f:?}") == name)
            .expect("a known format");
        let mut ours = vec![0.0; rows * cols];
        polder_model::quant::dequantize(format, &stored, &mut ours);
        for (i, (a, b)) in expected.iter().zip(&ours).enumerate() {
            assert!((a - b).abs() <= a.abs() * 1e-6 + 1e-9, "{name} value {i}: {a} and {b}");
        }
        assert!(ours.iter().any(|v| *v != 0.0));
        seen.push(name);
    }
    assert_eq!(seen.len(), polder_model::Format::ALL.len());
}
