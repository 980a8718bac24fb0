//! Pinned models (`recipes/models/*.toml`) and known machines (`recipes/boxes/*.toml`), as checked
//! types, for the importer, the planner and the wizard. The files are built into the binary;
//! [`Recipe::from_toml`] and [`BoxSpec::from_toml`] read a collective's own.

mod architecture;
mod builtin;
mod check;
mod digest;
mod engine;
mod error;
mod machine;
mod names;
mod recipe;
mod shapes;

pub use architecture::{Architecture, Attention, FeedForward, Indexer, LayerGroup, Quantization};
pub use builtin::DEFAULT_RECIPE;
pub use digest::{Digest, DigestError};
pub use error::RecipeError;
pub use machine::{BoxSpec, Figure, Label, Range, Tier};
pub use recipe::{ChatTemplate, Facts, FileSpec, Parameters, PublishedSize, Recipe, Role, Source};
pub use shapes::Shape;
