//! What is measured without being asked for, and what was promised.

use polder_backend_cuda::attention::KvFormat::{self, Bf16, Fp8};

use crate::Case;

/// Streams, context, KV, and what is promised for one H200: tokens a second of each stream, or a part of the roof.
type Row = (usize, usize, KvFormat, Option<Goal>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    Rate(f64),
    Part(f64),
}
use Goal::{Part, Rate};

const ROWS_30B: [Row; 9] = [
    (1, 1024, Bf16, Some(Rate(1150.0))),
    (8, 1024, Bf16, Some(Rate(365.0))),
    (32, 1024, Bf16, Some(Rate(190.0))),
    (1, 32_768, Bf16, None),
    (1, 1024, Fp8, None),
    (8, 1024, Fp8, None),
    (32, 1024, Fp8, None),
    (1, 32_768, Fp8, None),
    (8, 65_536, Fp8, Some(Rate(99.0))),
];
const ROWS_235B: [Row; 5] = [
    (1, 1024, Bf16, Some(Rate(255.0))),
    (8, 1024, Bf16, Some(Rate(63.0))),
    (32, 1024, Bf16, Some(Rate(30.0))),
    (1, 32_768, Fp8, Some(Rate(210.0))),
    (2, 65_536, Fp8, Some(Part(0.7))),
];
const ROWS_8B: [Row; 3] = [
    (1, 1024, Bf16, Some(Rate(268.0))),
    (8, 1024, Bf16, None),
    (32, 1024, Bf16, Some(Rate(195.0))),
];

fn rows(model: &str) -> &'static [Row] {
    match model {
        "qwen3-30b-a3b" => &ROWS_30B,
        "qwen3-235b-a22b" => &ROWS_235B,
        _ => &ROWS_8B,
    }
}

/// A model's decode table.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let case =
        |(streams, context, kv, _): &Row| Case { streams: *streams, context: *context, kv: *kv };
    rows(model).iter().map(case).collect()
}

/// Whether ways to keep KV are compared with it at every length.
pub(crate) fn compares_kv(model: &str) -> bool {
    model == "qwen3-30b-a3b"
}

/// The goal, and whether this rate meets it; it was set for an H200.
pub(crate) fn verdict(model: &str, case: &Case, rate: f64, roof: f64) -> String {
    let mine = |(streams, context, kv, _): &&Row| {
        (*streams, *context, *kv) == (case.streams, case.context, case.kv)
    };
    let Some(goal) = rows(model).iter().find(mine).and_then(|(.., goal)| *goal) else {
        return String::new();
    };
    let least = match goal {
        Rate(rate) => rate,
        Part(part) => part * roof,
    };
    format!("{least:.0}: {}", if rate >= least { "met" } else { "missed" })
}
