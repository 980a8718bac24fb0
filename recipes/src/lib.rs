//! Pinned models (`recipes/models/*.toml`) and known machines (`recipes/boxes/*.toml`), as checked
//! types. The files are built into the binary; [`Recipe::from_toml`] reads a collective's own.

mod digest;
mod recipe;

pub use digest::{Digest, DigestError};
pub use recipe::{FileSpec, Recipe, Source};
