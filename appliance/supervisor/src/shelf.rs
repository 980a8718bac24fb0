use std::collections::BTreeSet;

use polder_control::{ImportSource, Machine, Progress};
use polder_site::{RecipeName, Site};
use polder_weights::CancelFlag;

/// Where models come from and where they are kept. All calls may block.
pub trait Shelf: Send + Sync + 'static {
    /// What a recipe is, if there is one of that name.
    fn describe(&self, recipe: &RecipeName) -> Option<Described>;

    /// Recipes whose every file is there and was checked. The error is one sentence.
    fn imported(&self) -> Result<BTreeSet<RecipeName>, String>;

    /// Whether the engines of a site fit into the memory that they share on this machine. The error is one sentence.
    fn fits(&self, _site: &Site, _machine: &Machine) -> Result<(), String> {
        Ok(())
    }

    /// Whether bringing it in from there needs no network. It is asked before an import over one that somebody pays for.
    fn is_near(&self, _recipe: &RecipeName, from: &ImportSource) -> bool {
        matches!(from, ImportSource::Folder(_))
    }

    /// Brings a model in, and returns when every file of it is there and checked. Stops soon
    /// after `stop` is set, with [`ImportEnd::Stopped`]; what was fetched stays.
    fn import(
        &self,
        recipe: &RecipeName,
        from: &ImportSource,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &CancelFlag,
    ) -> Result<(), ImportEnd>;
}

/// What people are told of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What people call the model.
    pub title: String,
    /// Bytes of all its files, where known.
    pub bytes: Option<u64>,
}

/// Why an import ended without a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportEnd {
    /// It was told to.
    Stopped,
    /// One sentence: what failed, on what, what to do next.
    Failed(String),
}
