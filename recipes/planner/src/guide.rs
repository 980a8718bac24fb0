//! Notes where the published guide to such boxes differs from what its own premises give.
//!
//! The guide is "Sovereign compute for small collectives: technical implementation guide" (2026).
//! It calls its figures order-of-magnitude; most hold. These are the ones that do not, each shown
//! only for the box and model that it speaks of, with our figure computed, not quoted.

use polder_recipes::{BoxSpec, Label, Recipe};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::cost::cost;
use crate::count::KvShape;
use crate::estimate::Estimate;
use crate::memory::Fit;
use crate::speed::Speed;
use crate::text::{bytes, gb, per_second, short, tokens, trimmed, whole};

/// One figure of the guide, and what it comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// What the guide says.
    pub guide: String,
    /// What it comes to.
    pub here: String,
    /// How, with the numbers put in.
    pub formula: String,
    /// How ours is known.
    pub label: Label,
}

fn note(guide: &str, here: String, formula: String) -> Note {
    Note { guide: guide.into(), here, formula, label: Label::Computed }
}

const STATION: &str = "dgx-station-gb300";
const MILLION: u32 = 1 << 20;

pub(crate) fn notes(
    spec: &BoxSpec,
    recipe: &Recipe,
    speed: &Speed<'_>,
    estimate: &Estimate,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let at_station = spec.name == STATION;
    notes.extend(weights(recipe, speed));
    match recipe.name.as_str() {
        "qwen3-235b-a22b" if at_station => notes.extend(qwen_at_station(spec, speed, estimate)),
        "deepseek-v4-flash" => notes.extend(v4_flash(spec, speed, estimate)),
        "deepseek-v4-pro" => notes.push(v4_pro(recipe, estimate)),
        "kimi-k2" if at_station => notes.extend(kimi(speed, estimate)),
        _ => {}
    }
    if spec.name == "h100-80" {
        notes.extend(h100(spec, recipe, speed, estimate));
    }
    if at_station {
        notes.push(two_memories(spec));
        notes.extend(money(spec));
    }
    notes
}

/// The guide's sizes of the smaller models, in gigabytes.
fn weights(recipe: &Recipe, speed: &Speed<'_>) -> Option<Note> {
    let said = match recipe.name.as_str() {
        "qwen3.5-35b-a3b" => 18.0,
        "hermes-4.3-36b" => 20.0,
        "deepseek-r1-distill-qwen-32b" => 19.0,
        "hermes-4-14b" | "phi-4-reasoning-plus" => 8.0,
        "deepseek-r1-0528-qwen3-8b" => 5.0,
        _ => return None,
    };
    let ours = speed.weights.bytes(speed.quantization);
    let off = 1.0 - said * 1e9 / ours;
    (off.abs() > 0.015).then(|| {
        note(
            &format!("Its weights take {said} GB."),
            format!("They take {}: the guide is {:.0} % low.", bytes(ours), off * 100.0),
            speed.weights.bytes_formula(speed.quantization),
        )
    })
}

fn qwen_at_station(spec: &BoxSpec, speed: &Speed<'_>, estimate: &Estimate) -> Vec<Note> {
    let fast = spec.fast.bytes.value;
    let rate = spec.fast.bandwidth.value;
    let weights = estimate.memory.weights.value;
    let per_token = estimate.kv.bits8.value;
    let free = fast - weights;
    let room = free / per_token;
    let step = |together: u32, context: u32| {
        let kv = KvShape::of(speed.architecture, 8.0);
        let each = if context == 0 { 0.0 } else { kv.step_bytes(context) };
        speed.weights.fixed_step_bytes(speed.quantization)
            + speed.weights.expert_step_bytes(speed.quantization, together)
            + f64::from(together) * each
    };
    let ceiling = |together, context| rate / step(together, context);
    let mut notes = vec![
        note(
            "About 128 GB stay free, which is 1.4 million tokens of conversations.",
            format!(
                "{:.2} million, and {:.2} million with the share of memory and the working space of this plan.",
                room / 1e6,
                estimate.memory.conversations.value / per_token / 1e6
            ),
            format!("({} - {}) / {} B per token", bytes(fast), bytes(weights), whole(per_token)),
        ),
        note(
            "175, 44, 11 and 1.4 people at 8K, 32K, 128K and 1M tokens.",
            {
                let raw: Vec<String> = [8192, 32_768, 131_072, MILLION]
                    .map(|length| trimmed((room / f64::from(length) * 10.0).round() / 10.0))
                    .into();
                format!("{} of all free memory; this plan's table keeps a reserve.", raw.join(", "))
            },
            format!("{:.2} million / 8,192, 32,768, 131,072 and 1,048,576", room / 1e6),
        ),
        note(
            "The single-person ceiling is 645 tokens a second.",
            format!("{} before any conversation is read.", short(ceiling(1, 0))),
            format!(
                "{} / {} GB per step: attention, scales and the 16-bit head are read too",
                per_second(rate),
                gb(step(1, 0))
            ),
        ),
        note(
            "8 people get 100 to 200 tokens a second each.",
            format!(
                "At most {}, {} and {} with 0, 32K and 68K tokens behind them.",
                short(ceiling(8, 0)),
                short(ceiling(8, 32_768)),
                short(ceiling(8, 68_000))
            ),
            format!(
                "{} / {}, {} and {} GB per step",
                per_second(rate),
                gb(step(8, 0)),
                gb(step(8, 32_768)),
                gb(step(8, 68_000))
            ),
        ),
        note(
            "32 people get 30 to 60 tokens a second each.",
            format!(
                "At most {}, {} and {} with 0, 32K and 68K tokens behind them; past about 8K it is optimistic.",
                short(ceiling(32, 0)),
                short(ceiling(32, 32_768)),
                short(ceiling(32, 68_000))
            ),
            format!(
                "{} / {}, {} and {} GB per step",
                per_second(rate),
                gb(step(32, 0)),
                gb(step(32, 32_768)),
                gb(step(32, 68_000))
            ),
        ),
        note(
            "Answering several people together spreads the cost of reading the weights.",
            format!(
                "Only partly: 8 people read {:.1} times as many weights as one, for they visit more experts.",
                step(8, 0) / step(1, 0)
            ),
            format!("{} GB / {} GB per step", gb(step(8, 0)), gb(step(1, 0))),
        ),
        note(
            "20 PFLOPS.",
            "Not with these weights: that figure is for 4-bit floating point, and 4-bit integer weights are \
             multiplied in 16 bits."
                .into(),
            format!("{} PFLOPS dense 16-bit", trimmed(spec.compute.value / 1e15)),
        ),
    ];
    if let Some(slow) = &spec.slow {
        notes.insert(
            2,
            note(
                "The slow memory holds 2.6 million tokens (FP8).",
                format!(
                    "{:.2} million in FP8; {:.2} million is the 16-bit figure.",
                    slow.bytes.value / per_token / 1e6,
                    slow.bytes.value / estimate.kv.bits16.value / 1e6
                ),
                format!("{} / {} B per token", bytes(slow.bytes.value), whole(per_token)),
            ),
        );
    }
    if let Some(row) = estimate.prefill.first() {
        let work = 2.0 * speed.weights.per_token();
        let share = speed.assumed.prefill_utilisation;
        let peak = spec.compute.value;
        notes.push(note(
            "Prompts are read at 2,000 to 5,000 tokens a second.",
            format!(
                "About {} for short ones and {} at {}; the guide would use {:.1} to {:.1} % of the compute.",
                whole(peak * share / work),
                whole(row.speed.value),
                tokens(row.tokens),
                2000.0 * work / peak * 100.0,
                5000.0 * work / peak * 100.0
            ),
            format!(
                "{} PFLOPS x {:.0} % / {:.1} GFLOP per token",
                trimmed(peak / 1e15),
                share * 100.0,
                work / 1e9
            ),
        ));
    }
    notes
}

fn v4_flash(spec: &BoxSpec, speed: &Speed<'_>, estimate: &Estimate) -> Vec<Note> {
    let size = estimate.memory.weights.value;
    let counted = speed.weights.total();
    let session = |bits| {
        let shape = KvShape::of(speed.architecture, bits);
        shape.growing * f64::from(MILLION)
    };
    let (wide, narrow) = (session(16.0), session(8.0));
    let gib = |value: f64| value / f64::from(1 << 30);
    let mut notes = vec![
        note(
            "Its weights take about 90 GB in 4 bits.",
            format!(
                "{} as published; 90 GB would be {:.1} bits per weight.",
                bytes(size),
                90e9 * 8.0 / counted
            ),
            format!("{} x 8 / {:.0} bn weights", bytes(90e9), counted / 1e9),
        ),
        note(
            "A conversation of a million tokens takes 9.6 GB.",
            format!(
                "{:.2} GiB in 16 bits, {:.2} GiB in FP8. 9.6 GiB is V4 Pro, which has 61 layers.",
                gib(wide),
                gib(narrow)
            ),
            format!("{} B per token x 1,048,576", whole(wide / f64::from(MILLION))),
        ),
        note(
            "It needs 27 % of the work and a tenth of the memory; it uses DSA.",
            "Those are the maker's figures for V4 Pro, and V4 uses compressed attention (CSA and HCA); DSA is \
             V3.2's."
                .into(),
            "the maker's own text".into(),
        ),
    ];
    if spec.name == STATION {
        let free = spec.fast.bytes.value - size;
        let used = spec.fast.bytes.value * speed.assumed.utilisation - size;
        notes.push(note(
            "About 160 GB stay free, for 16 people at a million tokens.",
            format!(
                "{} stay free, for {:.1} in 16 bits or {:.1} in FP8; with {:.0} % of the memory {:.1} or {:.1}.",
                bytes(free),
                free / wide,
                free / narrow,
                speed.assumed.utilisation * 100.0,
                used / wide,
                used / narrow
            ),
            format!("({} - {}) / {} or {}", bytes(spec.fast.bytes.value), bytes(size), bytes(wide), bytes(narrow)),
        ));
    }
    notes
}

fn v4_pro(recipe: &Recipe, estimate: &Estimate) -> Note {
    let all = recipe.parameters.map_or(1.6e12, |parameters| parameters.total as f64);
    // llama.cpp's Q6_K: 210 bytes for 256 weights.
    let q6 = 210.0 * 8.0 / 256.0;
    note(
        "It takes about 648 GB at Q6, and does not fit.",
        format!(
            "Q6 is {}; 648 GB would be {:.2} bits per weight. As published it takes {}. It does not fit, \
             as the guide says.",
            bytes(all * q6 / 8.0),
            648e9 * 8.0 / all,
            estimate.memory.weights
        ),
        format!("{:.0} bn weights x {} bit / 8", all / 1e9, trimmed(q6)),
    )
}

fn kimi(speed: &Speed<'_>, estimate: &Estimate) -> Vec<Note> {
    let mut notes = vec![note(
        "Its weights take about 500 GB in 4 bits.",
        format!(
            "{}: {:.0} bn weights with their scales, and 16-bit tables.",
            estimate.memory.weights,
            speed.weights.total() / 1e9
        ),
        speed.weights.bytes_formula(speed.quantization),
    )];
    if let (Some(step), Fit::FitsWithSlowExperts) = (estimate.steps.first(), estimate.verdict.fit) {
        notes.push(note(
            "30 to 80 tokens a second with experts in slow memory.",
            format!(
                "At most {} if experts are chosen evenly; more only if the favourites are the ones in fast memory.",
                short(1e3 / step.time.value)
            ),
            format!("1 / ({})", step.time.formula),
        ));
    }
    notes
}

fn h100(spec: &BoxSpec, recipe: &Recipe, speed: &Speed<'_>, estimate: &Estimate) -> Option<Note> {
    let told =
        ["qwen3.5-35b-a3b", "hermes-4.3-36b", "deepseek-r1-distill-qwen-32b", "qwen3-30b-a3b"];
    if !told.contains(&recipe.name.as_str()) {
        return None;
    }
    let room = 60e9;
    let each = |bits| KvShape::of(speed.architecture, bits).session_bytes(32_768);
    let (wide, narrow) = (each(16.0), each(8.0));
    Some(note(
        "60 GB stay free on an H100, for about 12 people at 32K tokens, whichever of these models.",
        format!(
            "It depends on the model: 60 GB would do for {:.0} in 16 bits or {:.0} in FP8 of this one, and {} \
             stay free with the reserve.",
            (room / wide).floor(),
            (room / narrow).floor(),
            bytes(
                (spec.fast.bytes.value * speed.assumed.utilisation - estimate.memory.weights.value)
                    .max(0.0)
            )
        ),
        format!("60 GB / {} or {} for 32,768 tokens", bytes(wide), bytes(narrow)),
    ))
}

fn two_memories(spec: &BoxSpec) -> Note {
    let fast = spec.fast.bytes.value;
    let slow = spec.slow.as_ref().map_or(0.0, |tier| tier.bytes.value);
    note(
        "784 GB of memory in all.",
        format!(
            "{:.0} GB; 784 counts 288 GB of fast memory, of which {:.0} can be used.",
            (fast + slow) / 1e9,
            fast / 1e9
        ),
        format!("{:.0} + {:.0}", fast / 1e9, slow / 1e9),
    )
}

/// The guide's own sums are for 50 members and without a support contract.
fn money(spec: &BoxSpec) -> Vec<Note> {
    let assumed = Assumptions::for_box(spec);
    let all = cost(spec, 50, &assumed);
    let mut notes = Vec::new();
    if let (Some(each), Some(once), Some(monthly)) =
        (&all.per_member, &all.amortisation, &all.monthly)
    {
        notes.push(note(
            "A$155 to 193 per member and month at 50 members: 100 to 118, and 55 to 75 for the one-time costs.",
            format!("{each}: the one-time costs are already in the first figure and were counted twice."),
            format!("({once} one-time share + {} to run) / 50", all.running.as_ref().unwrap_or(monthly)),
        ));
        notes.push(note(
            "10 to 20 people at A$150 a month are enough to begin.",
            format!(
                "A good first signal: A$1,500 to 3,000 of the {monthly} that the box costs a month. It takes \
                 {:.0} to {:.0} such members.",
                (monthly.low / 150.0).ceil(),
                (monthly.high / 150.0).ceil()
            ),
            format!("{monthly} / A$150"),
        ));
    }
    notes.push(note(
        "Trying models out costs A$800 to 3,200 in all.",
        "Its own phases sum to A$1,600 to 3,200, or 600 to 1,200 without the optional one; this plan keeps \
         the guide's range."
            .into(),
        "phases 1 to 3".into(),
    ));
    notes
}
