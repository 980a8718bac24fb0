//! What a token costs on a card, for whoever shares a card's time out.

use std::time::Duration;

use polder_model::{Attention, ModelSpec};

/// Most work of a step beside what it decodes, in tokens at the start of a text. Where somebody is being answered, [`gap`] decides how
/// much of it is read: on a slower card or of a larger model less.
pub const STEP_WORK: u32 = 2048;

/// What a step that reads beside answers may take, so that these do not stutter: under 50 ms where that leaves a prompt its share, under
/// 150 for a model that is so large that a share alone takes longer.
pub fn gap(spec: &ModelSpec) -> Duration {
    /// Between the 14B's, which are read in time, and the 22B of the 235B's, which are not.
    const LARGE: f64 = 16e9;
    Duration::from_millis(if spec.active_weights() < LARGE { 42 } else { 130 })
}

/// What each position before a token adds to its work, where a token at the start of a text takes 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slopes {
    /// Of a token that is read.
    pub read: f64,
    /// Of a token whose successor is sampled.
    pub decode: f64,
}

/// Reading a prompt is bound by arithmetic, going on with an answer by the memory that is read: keys and values of all positions. Of
/// a query head's group each value is read once and multiplied for every head, and a card does some 75 multiplications and additions
/// in the time of reading two bytes (H200: 300 TFLOP/s that are reached, 4 TB/s).
pub fn slopes(spec: &ModelSpec) -> Slopes {
    let read = spec.attention_slope();
    let group = spec.layers.first().map_or(1.0, |layer| {
        let Attention::Gqa(gqa) = &layer.attention;
        f64::from(gqa.heads) / f64::from(gqa.kv_heads)
    });
    Slopes { read, decode: read * (75.0 / group).max(1.0) }
}
