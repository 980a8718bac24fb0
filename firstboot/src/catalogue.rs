//! The models a person may choose from, and what this machine can do with each.

use maud::{Markup, html};
use polder_control::Machine;
use polder_planner::{Fit, ModelFit, what_fits};
use polder_recipes::{BoxSpec, ChatTemplate, Recipe};
use polder_site::RecipeName;

/// A model as a line to choose.
pub(crate) struct Choice {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) about: Option<String>,
    /// Bytes to fetch and keep, where known.
    pub(crate) size: Option<u64>,
    pub(crate) licence: Option<String>,
    pub(crate) trial: bool,
    /// It only continues a text.
    pub(crate) cannot_chat: bool,
    pub(crate) unpinned: bool,
    pub(crate) imported: bool,
    /// Whether and how well it fits, where that can be told.
    pub(crate) fits: Option<String>,
    /// Why it cannot be chosen; continues "Not yet: ".
    pub(crate) lacks: Option<String>,
}

/// Every model, in the order in which people are shown them.
pub(crate) fn choices(machine: &Machine, imported: &[RecipeName]) -> Vec<Choice> {
    let (today, later) = (what_fits(&as_box_today(machine)), what_fits(&as_box(machine)));
    let line = |fits: &[ModelFit], name: &str| {
        fits.iter().find(|fit| fit.recipe.name == name).map(|fit| fit.line.clone())
    };
    let choice = |recipe: &Recipe| {
        let lacks = recipe.engine_lacks();
        Choice {
            name: recipe.name.clone(),
            title: recipe.title.clone(),
            about: recipe.about.clone(),
            size: recipe.total_size(),
            licence: recipe.licence.clone(),
            trial: recipe.trial,
            cannot_chat: recipe.chat_template == ChatTemplate::None,
            unpinned: recipe.unpinned,
            imported: imported.iter().any(|name| name.as_str() == recipe.name),
            fits: line(if lacks.is_none() { &today } else { &later }, &recipe.name),
            lacks,
        }
    };
    Recipe::builtin().iter().map(choice).collect()
}

/// This machine as the planner sees it while there is only an engine for its processor.
pub(crate) fn as_box_today(machine: &Machine) -> BoxSpec {
    BoxSpec::for_machine::<&str>(&[], machine.memory)
}

/// This machine as the planner sees it, with all that is in it.
pub(crate) fn as_box(machine: &Machine) -> BoxSpec {
    let gpus: Vec<_> = machine.gpus.iter().map(|gpu| (gpu.name.as_str(), gpu.memory)).collect();
    BoxSpec::for_machine(&gpus, machine.memory)
}

/// What people call this model.
pub(crate) fn title(name: &RecipeName) -> String {
    Recipe::find(name.as_str()).map_or_else(|_| name.to_string(), |recipe| recipe.title.clone())
}

/// The built-in recipe of this name, or a sentence.
pub(crate) fn recipe(name: &str) -> Result<&'static Recipe, String> {
    Recipe::find(name).map_err(|error| error.to_string())
}

/// What this machine can run, in short: what fits into it, and what of that an engine is there for.
pub(crate) fn summary(machine: &Machine) -> Markup {
    let fitting = |spec: &BoxSpec, runs: bool| -> Vec<ModelFit> {
        let mut all = what_fits(spec);
        all.retain(|model| {
            model.verdict.fit != Fit::DoesNotFit && model.recipe.engine_lacks().is_none() == runs
        });
        all
    };
    let (now, later) = (fitting(&as_box_today(machine), true), fitting(&as_box(machine), false));
    html! {
        @if now.is_empty() {
            p { "None of the models that Polder knows runs on this machine today." }
        } @else {
            p { "Today, on its processor:" }
            ul { @for model in &now { li { (line(model)) } } }
        }
        @if !later.is_empty() {
            details {
                summary { "It has the memory for more, once there is an engine for them (" (later.len()) ")" }
                ul { @for model in &later { li { (line(model)) } } }
            }
        }
    }
}

fn line(model: &ModelFit) -> Markup {
    html! { strong { (model.recipe.title) } ": " (model.line) }
}
