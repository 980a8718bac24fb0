//! What goes where: weights, working space, and what is left for conversations.

use polder_recipes::{Architecture, BoxSpec, FeedForward, Label, Quantization, Recipe, Tier};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::count::{KvShape, Weights, sum};
use crate::quantity::{Quantity, Unit};
use crate::text;

/// Lengths of a conversation that plans are made for; 68,000 tokens is the mean prompt of a coding
/// agent in a published trace.
pub(crate) const LENGTHS: [u32; 5] = [8192, 32_768, 68_000, 131_072, 1 << 20];

/// Whether a model can be used on a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// In fast memory, with room for conversations.
    Fits,
    /// In fast memory, with room for fewer than eight short conversations.
    FitsTightly,
    /// Only with a part of its experts in slow memory.
    FitsWithSlowExperts,
    /// Not at all.
    DoesNotFit,
}

/// Fits or not, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether it fits.
    pub fit: Fit,
    /// Why, with the numbers, as one or two sentences.
    pub why: String,
}

/// How memory is split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// All of the fast memory.
    pub fast: Quantity,
    /// The share of it that we use.
    pub usable: Quantity,
    /// All weights.
    pub weights: Quantity,
    /// The experts among them that wait in slow memory, if any.
    pub weights_in_slow: Option<Quantity>,
    /// Buffers of the engine.
    pub workspace: Quantity,
    /// Left for conversations in fast memory; 0 if the model does not fit.
    pub conversations: Quantity,
    /// All of the slow memory, where it is known.
    pub slow: Option<Quantity>,
    /// Left for waiting conversations in slow memory.
    pub waiting: Option<Quantity>,
}

/// What one token of a conversation takes in memory, once the conversation is long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvPerToken {
    /// With 16 bits per remembered number.
    pub bits16: Quantity,
    /// With 8 bits (FP8).
    pub bits8: Quantity,
    /// What the plan uses: 8 or 16.
    pub bits_used: f64,
    /// What a conversation takes besides, however long: recurrent states and full windows.
    pub per_conversation: Quantity,
}

/// How many conversations of one length stay in memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionRow {
    /// Length of each, in tokens.
    pub tokens: u32,
    /// Longer than the model was made for.
    pub beyond_context: bool,
    /// What one takes.
    pub each: Quantity,
    /// How many stay ready in fast memory.
    pub ready: Quantity,
    /// How many more can wait in slow memory.
    pub waiting: Option<Quantity>,
    /// How long it takes to bring a waiting one back.
    pub bring_back: Option<Quantity>,
}

/// Everything that the other parts of a plan need to know about memory.
pub(crate) struct Split {
    pub(crate) memory: Memory,
    pub(crate) verdict: Verdict,
    pub(crate) kv: KvShape,
    /// Bytes of experts in slow memory.
    pub(crate) in_slow: f64,
}

pub(crate) fn split(
    spec: &BoxSpec,
    recipe: &Recipe,
    (architecture, quantization): (&Architecture, &Quantization),
    assumed: &Assumptions,
) -> Split {
    let counted = Weights::of(architecture);
    let weights = weights_size(recipe, &counted, quantization);
    let workspace = workspace(architecture, assumed);
    let kv = KvShape::of(architecture, assumed.kv_bits);
    let tier = &spec.fast;
    let fast = Quantity::new(tier.bytes.value, Unit::Bytes, tier.bytes.label, known(tier));
    let usable = Quantity::computed(
        tier.bytes.value * assumed.utilisation,
        Unit::Bytes,
        format!("{} x {:.0} %", text::bytes(tier.bytes.value), assumed.utilisation * 100.0),
    );
    let slow = spec
        .slow
        .as_ref()
        .map(|tier| Quantity::new(tier.bytes.value, Unit::Bytes, tier.bytes.label, known(tier)));
    let slow_usable = spec.slow.as_ref().map_or(0.0, |t| t.bytes.value * assumed.warm_share);

    let free = usable.value - weights.value - workspace.value;
    let shortest = kv.session_bytes(LENGTHS[0].min(recipe.context.unwrap_or(LENGTHS[0])));
    let (fit, in_slow) = if free >= shortest {
        (if free < 8.0 * shortest { Fit::FitsTightly } else { Fit::Fits }, 0.0)
    } else {
        // Room for eight conversations of 32K stays in fast memory; experts make way for it.
        let reserve = 8.0 * kv.session_bytes(LENGTHS[1]);
        let out = reserve - free;
        let movable = counted.expert_bytes(quantization).min(weights.value);
        if out <= movable && out <= slow_usable {
            (Fit::FitsWithSlowExperts, out)
        } else {
            (Fit::DoesNotFit, 0.0)
        }
    };
    let room = if fit == Fit::DoesNotFit { 0.0 } else { free + in_slow };
    let conversations = Quantity::computed(
        room,
        Unit::Bytes,
        if fit == Fit::DoesNotFit {
            "nothing is left".to_owned()
        } else {
            let moved =
                if in_slow > 0.0 { format!(" + {}", text::bytes(in_slow)) } else { String::new() };
            format!("{usable} - {weights} - {workspace}{moved}")
        },
    );
    let waiting = spec.slow.as_ref().map(|tier| {
        let less =
            if in_slow > 0.0 { format!(" - {}", text::bytes(in_slow)) } else { String::new() };
        Quantity::computed(
            slow_usable - in_slow,
            Unit::Bytes,
            format!(
                "{} x {:.0} %{less}",
                text::bytes(tier.bytes.value),
                assumed.warm_share * 100.0
            ),
        )
    });
    let weights_in_slow = (in_slow > 0.0).then(|| {
        Quantity::computed(
            in_slow,
            Unit::Bytes,
            format!(
                "{weights} + {workspace} + 8 conversations of 32K ({}) - {usable}",
                text::bytes(8.0 * kv.session_bytes(LENGTHS[1]))
            ),
        )
    });
    let memory =
        Memory { fast, usable, weights, weights_in_slow, workspace, conversations, slow, waiting };
    let verdict = verdict(fit, spec, &memory, &counted);
    Split { memory, verdict, kv, in_slow }
}

fn verdict(fit: Fit, spec: &BoxSpec, memory: &Memory, counted: &Weights) -> Verdict {
    let needed = memory.weights.value + memory.workspace.value;
    let kind = &spec.fast.kind;
    let why = match fit {
        Fit::Fits | Fit::FitsTightly => format!(
            "{} of weights and {} of working space leave {} of {kind} for conversations.",
            memory.weights, memory.workspace, memory.conversations
        ),
        Fit::FitsWithSlowExperts => format!(
            "{} of weights do not fit into {} of {kind}: {} of experts have to stay in the slow memory, \
             which then sets the speed.",
            memory.weights,
            memory.usable,
            memory.weights_in_slow.as_ref().expect("experts are in slow memory here"),
        ),
        Fit::DoesNotFit => {
            let mut why = format!(
                "{} of weights and {} of working space are {} more than the {} of {kind} that can be used",
                memory.weights,
                memory.workspace,
                text::bytes((needed - memory.usable.value).max(0.0)),
                memory.usable
            );
            match (&memory.slow, counted.moe.is_empty()) {
                _ if needed <= memory.usable.value => {
                    why = format!(
                        "The weights fit into {} of {kind}, but not even one conversation does beside them",
                        memory.usable
                    );
                }
                (Some(slow), false) => {
                    let all = memory.fast.value + slow.value;
                    let than = if needed > all { "more than" } else { "too much for" };
                    why += &format!(
                        ", and {than} both memories together ({} and {} are {})",
                        memory.fast,
                        slow,
                        text::bytes(all)
                    );
                }
                (Some(_), true) => {
                    why +=
                        "; every weight is needed for every token, so the slow memory is no help";
                }
                (None, _) => {}
            }
            why + "."
        }
    };
    Verdict { fit, why }
}

/// The weights' size: the files' own where they are pinned, else the publisher's, else counted.
pub(crate) fn weights_size(recipe: &Recipe, counted: &Weights, q: &Quantization) -> Quantity {
    let formula = counted.bytes_formula(q);
    let count = counted.bytes(q);
    if let Some(bytes) = recipe.total_size() {
        let files = format!("the files' sizes; counted: {}", text::bytes(count));
        return Quantity::new(bytes as f64, Unit::Bytes, Label::Measured, files);
    }
    if let Some(size) = &recipe.published_size {
        let said = format!("{}; counted: {} = {formula}", size.note, text::bytes(count));
        return Quantity::new(size.bytes as f64, Unit::Bytes, Label::Vendor, said);
    }
    Quantity::computed(count, Unit::Bytes, formula)
}

pub(crate) fn workspace(architecture: &Architecture, assumed: &Assumptions) -> Quantity {
    let widest = architecture.layers.iter().map(|group| match group.feed_forward {
        FeedForward::Dense { inter } => f64::from(inter),
        FeedForward::Moe { top_k, inter, shared_inter, .. } => {
            f64::from(top_k) * f64::from(inter) + f64::from(shared_inter)
        }
    });
    let widest = widest.fold(0.0, f64::max);
    let hidden = f64::from(architecture.hidden);
    let chunk = f64::from(assumed.prefill_chunk);
    let logits = 64.0 * f64::from(architecture.vocab) * 4.0;
    let value = assumed.fixed_workspace + chunk * (8.0 * hidden + 2.0 * widest) * 2.0 + logits;
    let formula = format!(
        "{} + {} tokens at once x (8 x {} + 2 x {}) x 2 B + 64 x {} x 4 B",
        text::bytes(assumed.fixed_workspace),
        text::whole(chunk),
        text::whole(hidden),
        text::whole(widest),
        text::whole(f64::from(architecture.vocab))
    );
    Quantity::new(value, Unit::Bytes, Label::Estimate, formula)
}

fn known(tier: &Tier) -> String {
    let note = tier.bytes.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    format!("{} at {}{note}", tier.kind, text::per_second(tier.bandwidth.value))
}

pub(crate) fn kv_per_token(architecture: &Architecture, assumed: &Assumptions) -> KvPerToken {
    let at = |bits| {
        let shape = KvShape::of(architecture, bits);
        Quantity::computed(shape.growing, Unit::BytesPerToken, shape.formula())
    };
    let bits16 = at(16.0);
    let bits8 = Quantity { formula: format!("{bits16} / 2"), ..at(8.0) };
    let used = KvShape::of(architecture, assumed.kv_bits);
    let windows = sum(used.windows.iter().map(|(each, window)| each * window));
    KvPerToken {
        bits16,
        bits8,
        bits_used: assumed.kv_bits,
        per_conversation: Quantity::computed(
            used.fixed + windows,
            Unit::Bytes,
            format!(
                "{} of states + {} of full windows",
                text::bytes(used.fixed),
                text::bytes(windows)
            ),
        ),
    }
}

pub(crate) fn sessions(spec: &BoxSpec, recipe: &Recipe, split: &Split) -> Vec<SessionRow> {
    let memory = &split.memory;
    let row = |tokens: u32| {
        let each = split.kv.session_bytes(tokens).max(1.0);
        let besides = each - split.kv.growing * f64::from(tokens);
        let mut how = format!(
            "{} B x {} tokens",
            text::whole(split.kv.growing),
            text::whole(f64::from(tokens))
        );
        if besides >= 1.0 {
            how += &format!(" + {}", text::bytes(besides));
        }
        let many = |room: &Quantity| {
            Quantity::computed(
                room.value / each,
                Unit::Conversations,
                format!("{room} / {}", text::bytes(each)),
            )
        };
        SessionRow {
            tokens,
            beyond_context: recipe.context.is_some_and(|context| tokens > context),
            each: Quantity::computed(each, Unit::Bytes, how),
            ready: many(&memory.conversations),
            waiting: memory.waiting.as_ref().map(many),
            bring_back: spec.slow.as_ref().map(|tier| {
                Quantity::computed(
                    each / tier.bandwidth.value * 1e3,
                    Unit::Milliseconds,
                    format!("{} / {}", text::bytes(each), text::per_second(tier.bandwidth.value)),
                )
            }),
        }
    };
    LENGTHS.map(row).into()
}
