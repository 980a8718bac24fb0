use polder_recipes::{BoxSpec, Recipe, RecipeError};

use crate::assumptions::Assumptions;
use crate::estimate::{Estimate, plan};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No box or model of that name.
    #[error(transparent)]
    Find(#[from] RecipeError),
    /// A collective has members.
    #[error("a plan for {0} members makes no sense; say a number from 1 to {max}", max = PlanRequest::MOST_MEMBERS)]
    Members(u32),
    /// The recipe does not describe the model.
    #[error(
        "the recipe {recipe:?} says no {missing}, which a plan is computed from; add it to the recipe"
    )]
    Undescribed {
        /// The recipe's name.
        recipe: String,
        /// Which part.
        missing: &'static str,
    },
}

/// A plan as people ask for it: by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    /// A built-in box.
    pub box_name: String,
    /// A built-in recipe.
    pub model_name: String,
    /// People who share the box.
    pub members: u32,
}

impl PlanRequest {
    /// The largest collective that a plan is made for.
    pub const MOST_MEMBERS: u32 = 100_000;

    /// Finds box and model and plans with the usual assumptions.
    ///
    /// # Errors
    /// A name that is not known, with the one that was probably meant, or a senseless number.
    pub fn estimate(&self) -> Result<Estimate, PlanError> {
        let spec = BoxSpec::find(&self.box_name)?;
        let recipe = Recipe::find(&self.model_name)?;
        plan(spec, recipe, self.members, &Assumptions::for_box(spec))
    }
}
