use polder_recipes::{BoxSpec, Recipe};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::estimate::plan;
use crate::memory::{Fit, Verdict};
use crate::text;

/// Whether one model fits a box, in a line for a list to choose from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelFit {
    /// The recipe.
    pub recipe: Recipe,
    /// Fits or not, and why.
    pub verdict: Verdict,
    /// `fits: up to 582 tokens a second for one person, 31 conversations of 32K kept ready`.
    pub line: String,
}

/// Every built-in model, those that fit first and among them the largest first.
pub fn what_fits(spec: &BoxSpec) -> Vec<ModelFit> {
    let assumed = Assumptions::for_box(spec);
    let of = |recipe: &Recipe| {
        // A built-in recipe says all that a plan needs; a test plans every one.
        let estimate = plan(spec, recipe, 1, &assumed).ok()?;
        let speed = estimate.decode.first().map(|row| row.ceiling.to_string());
        let ready = estimate
            .sessions
            .iter()
            .rfind(|row| !row.beyond_context && row.tokens <= 32_768)
            .map(|row| (text::tokens(row.tokens), row.ready.to_string()));
        let line = match (estimate.verdict.fit, speed, ready) {
            (Fit::DoesNotFit, ..) => {
                format!("does not fit: {} of weights", estimate.memory.weights)
            }
            (fit, Some(speed), Some((length, ready))) => format!(
                "{}: up to {speed} tokens a second for one person, {} of {length} kept ready",
                match fit {
                    Fit::FitsTightly => "fits barely",
                    Fit::FitsWithSlowExperts => "fits with experts in slow memory",
                    _ => "fits",
                },
                match ready.as_str() {
                    "0" => "no conversation".to_owned(),
                    "1" => "1 conversation".to_owned(),
                    many => format!("{many} conversations"),
                }
            ),
            _ => "fits".to_owned(),
        };
        Some(ModelFit { recipe: recipe.clone(), verdict: estimate.verdict, line })
    };
    let mut all: Vec<ModelFit> = Recipe::builtin().iter().filter_map(of).collect();
    all.sort_by_key(|model| {
        let order = match model.verdict.fit {
            Fit::Fits => 0,
            Fit::FitsTightly => 1,
            Fit::FitsWithSlowExperts => 2,
            Fit::DoesNotFit => 3,
        };
        let size = model.recipe.parameters.map_or(0, |parameters| parameters.total);
        (order, std::cmp::Reverse(size))
    });
    all
}
