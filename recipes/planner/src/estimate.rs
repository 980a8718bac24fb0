use polder_recipes::{BoxSpec, Facts, Recipe};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::cost::{Cost, cost};
use crate::count::Weights;
use crate::guide::{self, Note};
use crate::memory::{Fit, KvPerToken, Memory, SessionRow, Verdict, kv_per_token, sessions, split};
use crate::request::{PlanError, PlanRequest};
use crate::speed::{DecodeRow, PrefillRow, Speed, StepRow};
use crate::text;

/// A box, a model and a number of people: what to expect.
///
/// [`Estimate::render_table`] writes it for people; `serde` writes it for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The box's name.
    #[serde(rename = "box")]
    pub box_name: String,
    /// What people call it.
    pub box_title: String,
    /// The recipe's name.
    pub model: String,
    /// What people call it.
    pub model_title: String,
    /// People who share the box.
    pub members: u32,
    /// Fits or not, and why.
    pub verdict: Verdict,
    /// What a person wants to know first, a sentence each.
    pub in_short: Vec<String>,
    /// Where memory goes.
    pub memory: Memory,
    /// What a token of a conversation takes.
    pub kv: KvPerToken,
    /// How many conversations stay in memory, by length.
    pub sessions: Vec<SessionRow>,
    /// What a step reads of the weights, by people answered at once. Empty if it does not fit.
    pub steps: Vec<StepRow>,
    /// How fast answers are written, by length of conversation, then people at once. Empty if it
    /// does not fit.
    pub decode: Vec<DecodeRow>,
    /// How fast prompts are read. Empty if it does not fit.
    pub prefill: Vec<PrefillRow>,
    /// What it costs.
    pub cost: Cost,
    /// Where the published guide differs for this box and model.
    pub notes: Vec<Note>,
    /// What to know about this box and this recipe, a sentence each.
    pub remarks: Vec<String>,
    /// What was taken for granted, a sentence each.
    pub assumed: Vec<String>,
    /// The same as numbers.
    pub assumptions: Assumptions,
    /// Tokens that the model was made for, if the recipe says.
    pub context: Option<u32>,
}

/// Plans: what fits, for how many, how fast, for how much. Pure.
///
/// # Errors
/// If there are no members, or the recipe does not describe its layers and quantization.
pub fn plan(
    spec: &BoxSpec,
    recipe: &Recipe,
    members: u32,
    assumptions: &Assumptions,
) -> Result<Estimate, PlanError> {
    if !(1..=PlanRequest::MOST_MEMBERS).contains(&members) {
        return Err(PlanError::Members(members));
    }
    let missing = |missing| PlanError::Undescribed { recipe: recipe.name.clone(), missing };
    let architecture = recipe.architecture.as_ref().ok_or(missing("architecture"))?;
    let quantization = recipe.quantization.as_ref().ok_or(missing("quantization"))?;

    let split = split(spec, recipe, (architecture, quantization), assumptions);
    let speed = Speed {
        spec,
        recipe,
        architecture,
        quantization,
        weights: Weights::of(architecture),
        split: &split,
        assumed: assumptions,
    };
    let fits = split.verdict.fit != Fit::DoesNotFit;
    let mut estimate = Estimate {
        box_name: spec.name.clone(),
        box_title: spec.title.clone(),
        model: recipe.name.clone(),
        model_title: recipe.title.clone(),
        members,
        in_short: Vec::new(),
        kv: kv_per_token(architecture, assumptions),
        sessions: sessions(spec, recipe, &split),
        steps: if fits { speed.steps() } else { Vec::new() },
        decode: if fits { speed.decode() } else { Vec::new() },
        prefill: if fits { speed.prefill() } else { Vec::new() },
        cost: cost(spec, members, assumptions),
        notes: Vec::new(),
        remarks: remarks(spec, recipe),
        assumed: assumptions.in_words(),
        assumptions: assumptions.clone(),
        context: recipe.context,
        verdict: split.verdict.clone(),
        memory: split.memory.clone(),
    };
    estimate.notes = guide::notes(spec, recipe, &speed, &estimate);
    estimate.in_short = in_short(&estimate);
    Ok(estimate)
}

fn remarks(spec: &BoxSpec, recipe: &Recipe) -> Vec<String> {
    let mut remarks = spec.remarks.clone();
    if recipe.unpinned {
        remarks.push(
            "This recipe is unpinned: its files' digests are not known until the first import, which holds \
             on to them."
                .into(),
        );
    }
    if recipe.facts != Some(Facts::Config) {
        remarks.push("Some of this recipe's figures are from memory; its file says which.".into());
    }
    if recipe.trial {
        remarks.push("This is a trial model: tiny and often wrong.".into());
    }
    if spec.slow.is_none() && !spec.is_cpu() {
        remarks.push(
            "How many conversations can wait depends on the machine's main memory, which is not known here."
                .into(),
        );
    }
    remarks
}

/// The few sentences that answer "is it any good for us?".
fn in_short(estimate: &Estimate) -> Vec<String> {
    if estimate.verdict.fit == Fit::DoesNotFit {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let at = |together, context| {
        estimate.decode.iter().find(|row| row.together == together && row.context == context)
    };
    // The longest conversations that both the model and the plan's tables know.
    let long = estimate
        .decode
        .iter()
        .filter(|row| row.together == 1 && !row.beyond_context && row.context <= 32_768)
        .map(|row| row.context)
        .max()
        .unwrap_or(0);
    if let Some(row) = at(1, 0) {
        lines.push(format!(
            "One person alone, at the start of a conversation: at most {} tokens a second, likely {}.",
            row.ceiling, row.likely
        ));
    }
    if let Some(row) = at(8, long).filter(|row| row.all_ready && row.context > 0) {
        lines.push(format!(
            "Eight people at once, {} tokens into their conversations: at most {} tokens a second each, \
             likely {}.",
            text::tokens(long),
            row.ceiling,
            row.likely
        ));
    }
    if let Some(row) = estimate.sessions.iter().find(|row| row.tokens == long)
        && estimate.members > 1
    {
        let ready = row.ready.value.floor().min(f64::from(estimate.members));
        let others = f64::from(estimate.members) - ready;
        let stay = match ready as u32 {
            _ if others == 0.0 => "all stay".to_owned(),
            0 => "none stays".to_owned(),
            1 => "1 stays".to_owned(),
            many => format!("{many} stay"),
        };
        let mut line = format!(
            "Of {} conversations of {} tokens, one for each member, {stay} ready in memory",
            estimate.members,
            text::tokens(long),
        );
        if let (true, Some(waiting), Some(back)) = (others > 0.0, &row.waiting, &row.bring_back) {
            let wait = waiting.value.floor().min(others);
            line +=
                &format!("; {} can wait in slow memory and be back in {back}", text::whole(wait));
            if wait < others {
                line += &format!("; {} would have to be read again", text::whole(others - wait));
            }
        }
        lines.push(line + ".");
    }
    match (&estimate.cost.per_member, &estimate.cost.running) {
        (Some(each), _) => lines.push(format!(
            "Each member pays {each} a month over {} months, the machine included.",
            estimate.assumptions.amortisation_months
        )),
        (None, Some(running)) => {
            lines.push(format!(
                "No price is known for this machine; it costs {running} a month to run."
            ));
        }
        (None, None) => {}
    }
    lines.push("A token is about three quarters of an English word; people read four or five words a second.".into());
    lines
}
