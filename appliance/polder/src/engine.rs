use anyhow::Context;
use polder_control::Sockets;
use polder_engine_server::EngineOptions;
use polder_recipes::Recipe;
use polder_site::EngineName;
use polder_supervisor::Part;
use polder_weights::Store;

use crate::part;
use crate::state::State;

/// Run one engine of a box (its supervisor starts this).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polder engine fast --state /var/lib/polder")]
pub(crate) struct Engine {
    /// The slot, as site.toml names it.
    name: EngineName,
    #[command(flatten)]
    state: State,
}

impl Engine {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self { name, state } = self;
        let state = state.folder()?;
        let site = part::site(&state)?;
        let slot = site.engines.get(&name).with_context(|| {
            format!("site.toml names no engine {name}; choose a model for it first")
        })?;
        let recipe = Recipe::find(slot.recipe.as_str())?;
        let model = Store::open(state.join("weights"))?.model_folder(recipe).with_context(|| {
            format!(
                "the weights of {} are not here or not whole; bring them in with `polder weights \
                 import {}`",
                recipe.title, recipe.name
            )
        })?;
        let socket = Sockets::of(&state).engine(&name);
        if let Some(folder) = socket.parent() {
            crate::state::make(folder)?;
        }
        let options = EngineOptions::new(name.as_str(), socket, model, recipe.name.as_str());
        let runtime = part::runtime()?;
        part::run(runtime, Part::Engine(name), &state, |told| {
            polder_engine_server::run(options, told)
        })
    }
}
