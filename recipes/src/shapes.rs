//! Models' published configurations (`recipes/shapes/*.json`): what an engine needs to run one with drawn weights, to measure it
//! without a download.

use crate::builtin::unknown;
use crate::error::RecipeError;

/// A model's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// As the recipe of the same model, where there is one.
    pub name: &'static str,
    /// The text of a `config.json`.
    pub config: &'static str,
}

macro_rules! shapes {
    ($($name:literal)*) => {
        &[$(Shape { name: $name, config: include_str!(concat!("../shapes/", $name, ".json")) }),*]
    };
}

const SHAPES: &[Shape] = shapes!(
    "smollm2-135m-instruct"
    "qwen3-4b"
    "qwen3-8b"
    "qwen3-30b-a3b"
    "qwen3-235b-a22b"
);

impl Shape {
    /// Every shape that Polder brings along, smallest first.
    pub fn builtin() -> &'static [Self] {
        SHAPES
    }

    /// A shape by name.
    ///
    /// # Errors
    /// If there is none, with the name that was probably meant.
    pub fn find(name: &str) -> Result<&'static Self, RecipeError> {
        let found = SHAPES.iter().find(|shape| shape.name == name);
        found.ok_or_else(|| unknown("shape", name, SHAPES.iter().map(|shape| shape.name)))
    }
}
