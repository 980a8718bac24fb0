//! Brings a model's weights onto the box and keeps them: every file is stored under its SHA-256 and
//! nothing is visible to an engine before that digest matched.
//!
//! ```no_run
//! # fn main() -> Result<(), polder_weights::WeightsError> {
//! # let recipe: polder_recipes::Recipe = unimplemented!();
//! use polder_weights::{CancelFlag, Origin, Store};
//!
//! let store = Store::open("polder/weights")?;
//! let imported = store.import(
//!     &recipe,
//!     &Origin::AsTheRecipeSays,
//!     &mut |event| println!("{event}"),
//!     &CancelFlag::default(),
//! )?;
//! assert_eq!(store.model_folder(&recipe), Some(imported.folder));
//! # Ok(()) }
//! ```
//!
//! [`Store`] is cheap to clone and may be used from several threads and processes at once: one
//! import runs at a time, the next waits (or is told, see [`Options::wait_for_others`]). All calls
//! block; a server runs them on a thread of their own. An import that is cut, by a cancelled
//! [`CancelFlag`], a crash or a power cut, goes on where it was when it is asked for again.

mod bring;
mod chunks;
mod error;
mod folder;
mod hub;
mod import;
mod keep;
mod manifest;
mod mirror;
mod names;
mod partial;
mod pip;
mod plan;
mod progress;
mod ranges;
mod registry;
mod select;
mod space;
mod store;
mod view;
mod web;
mod wheel;

pub use error::WeightsError;
pub use import::{Fetched, Imported, Origin};
pub use keep::{Collected, Damage, Verified};
pub use manifest::{Manifest, StoredFile};
pub use mirror::{Held, HeldModel, Judged, PIECE, Taken};
pub use progress::{CancelFlag, Event, Phase, Progress};
pub use registry::FetchedImage;
pub use store::{Options, STALE, Store};
