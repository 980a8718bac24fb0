//! The recipes and boxes that the binary brings along.

use std::sync::LazyLock;

use crate::error::RecipeError;
use crate::machine::BoxSpec;
use crate::names::hint;
use crate::recipe::Recipe;

/// The model that a new box starts with: small enough for any machine, under a trial banner.
pub const DEFAULT_RECIPE: &str = "smollm2-135m-instruct";

macro_rules! texts {
    ($folder:literal: $($name:literal)*) => {
        &[$(include_str!(concat!("../", $folder, "/", $name, ".toml"))),*]
    };
}

/// In the order in which people are shown them: trial models, then by the memory they need.
const MODELS: &[&str] = texts!("models":
    "smollm2-135m-instruct"
    "gemma-3-270m"
    "qwen3-4b"
    "deepseek-r1-0528-qwen3-8b"
    "phi-4-reasoning-plus"
    "hermes-4-14b"
    "qwen3-30b-a3b"
    "deepseek-r1-distill-qwen-32b"
    "qwen3.5-35b-a3b"
    "hermes-4.3-36b"
    "qwen3-235b-a22b"
    "deepseek-v4-flash"
    "llama-4-maverick"
    "kimi-k2"
    "deepseek-v4-pro"
);

const BOXES: &[&str] = texts!("boxes":
    "dgx-station-gb300"
    "h200-141"
    "h100-80"
    "rtx-5090-32"
    "rtx-4090-24"
    "cpu"
);

static RECIPES: LazyLock<Vec<Recipe>> = LazyLock::new(|| {
    let read = |text: &&str| Recipe::from_toml(text).expect("built in; a test reads every one");
    MODELS.iter().map(read).collect()
});

static MACHINES: LazyLock<Vec<BoxSpec>> = LazyLock::new(|| {
    let read = |text: &&str| BoxSpec::from_toml(text).expect("built in; a test reads every one");
    BOXES.iter().map(read).collect()
});

impl Recipe {
    /// Every recipe that Polder brings along.
    pub fn builtin() -> &'static [Self] {
        &RECIPES
    }

    /// The one that a new box starts with.
    pub fn default_recipe() -> &'static Self {
        Self::find(DEFAULT_RECIPE).expect("built in; a test finds it")
    }

    /// A built-in recipe by name.
    ///
    /// # Errors
    /// If there is none, with the name that was probably meant.
    pub fn find(name: &str) -> Result<&'static Self, RecipeError> {
        let all = Self::builtin();
        let found = all.iter().find(|recipe| recipe.name == name);
        found.ok_or_else(|| unknown("model", name, all.iter().map(|r| r.name.as_str())))
    }
}

impl BoxSpec {
    /// Every box that Polder brings along.
    pub fn builtin() -> &'static [Self] {
        &MACHINES
    }

    /// A built-in box by name.
    ///
    /// # Errors
    /// If there is none, with the name that was probably meant.
    pub fn find(name: &str) -> Result<&'static Self, RecipeError> {
        let all = Self::builtin();
        let found = all.iter().find(|spec| spec.name == name);
        found.ok_or_else(|| unknown("box", name, all.iter().map(|b| b.name.as_str())))
    }
}

pub(crate) fn unknown<'a>(
    what: &'static str,
    given: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> RecipeError {
    RecipeError::Unknown { what, given: given.chars().take(80).collect(), hint: hint(given, known) }
}
