//! Weights that are packed once and mapped by every start after that.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{blocks, goldens, open, teacher_force};
use polder_backend_cpu::{CpuBackend, CpuOptions, PackedWeights, Precision};
use polder_model::Model;

const TEXT: [u32; 7] = [5, 2, 33, 60, 1, 7, 40];

/// One with integers, floats and several formats in it.
fn model() -> Arc<Model> {
    common::tiny("mixed")
}

fn kept(folder: &Path) -> PackedWeights {
    PackedWeights {
        path: folder.join("packed").join("weights.bin"),
        weights: "sha256 of all of them".into(),
        least_bytes: 0,
        reserve_bytes: 0,
    }
}

/// Loads it, waits until what it keeps is written, and says whether its weights were there, and what it answers.
fn start(model: &Arc<Model>, kept: &PackedWeights, precision: Precision) -> (bool, Vec<Vec<f32>>) {
    let options = CpuOptions {
        precision,
        kv_tokens: 64,
        slots: 1,
        step_tokens: 64,
        packed: Some(kept.clone()),
        ..CpuOptions::default()
    };
    let mut backend = CpuBackend::load(model, &options).unwrap();
    backend.settle();
    let answer = teacher_force(&mut backend, &TEXT, 7, &blocks(0, 1));
    (backend.is_mapped(), answer)
}

fn files(kept: &PackedWeights) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(kept.path.parent().unwrap());
    folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_second_start_maps_what_the_first_one_packed_and_answers_with_the_same_bits() {
    let experts = open(&goldens().join("families/awq-128"));
    for model in [model(), experts] {
        for precision in [Precision::Stored, Precision::F32] {
            let folder = tempfile::tempdir().unwrap();
            let kept = kept(folder.path());
            let (mapped, first) = start(&model, &kept, precision);
            assert!(!mapped);
            assert_eq!(files(&kept), std::slice::from_ref(&kept.path));
            let (mapped, second) = start(&model, &kept, precision);
            assert!(mapped);
            assert_eq!(first, second);
        }
    }
}

#[test]
fn what_was_packed_of_other_weights_or_for_another_precision_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let ours = kept(folder.path());
    let model = model();
    start(&model, &ours, Precision::Stored);
    let others = PackedWeights { weights: "others".into(), ..ours.clone() };
    for (kept, precision) in
        [(&others, Precision::Stored), (&ours, Precision::Stored), (&ours, Precision::F32)]
    {
        assert!(!start(&model, kept, precision).0);
        assert!(start(&model, kept, precision).0, "the newest ones take the place of others");
    }
}

#[test]
fn a_damaged_file_is_noticed_wherever_it_is_damaged_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept(folder.path());
    let model = model();
    let (_, right) = start(&model, &kept, Precision::Stored);
    let whole = std::fs::read(&kept.path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let mut damaged: Vec<Vec<u8>> = (0..40).map(|n| flipped(n * (whole.len() - 1) / 39)).collect();
    damaged.extend((0..64).map(|at| flipped(at * 3)));
    damaged.extend([0, 1, 16, 20, 24, 100, 5000].map(|length| whole[..length].to_vec()));
    damaged.push([whole.as_slice(), &[0; 64]].concat());
    damaged.push([&whole[..whole.len() - 1]].concat());
    for bytes in damaged {
        std::fs::write(&kept.path, &bytes).unwrap();
        let (mapped, answer) = start(&model, &kept, Precision::Stored);
        assert!(!mapped, "{} bytes", bytes.len());
        assert_eq!(answer, right);
        assert_eq!(std::fs::read(&kept.path).unwrap(), whole);
    }
    assert!(start(&model, &kept, Precision::Stored).0);
}

#[test]
fn a_model_that_is_packed_quickly_and_a_disk_that_is_full_keep_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for kept in [
        PackedWeights { least_bytes: 1 << 40, ..kept(folder.path()) },
        PackedWeights { reserve_bytes: u64::MAX, ..kept(folder.path()) },
    ] {
        start(&model(), &kept, Precision::Stored);
        assert!(files(&kept).is_empty());
    }
    // Nor does a folder that cannot be.
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let (mapped, _) = start(&model(), &kept(&file), Precision::Stored);
    assert!(!mapped);
}
