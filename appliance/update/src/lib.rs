//! Updates: finds them, believes only signed ones, brings them, writes them into the slot that does not run, and
//! can say afterwards why one was taken back.
//!
//! The boot loader counts the tries of a new version and takes the old one when they are used up; a version stays
//! once its box can do everything that it could before.

mod disk;
mod error;
mod manifest;
mod offer;
mod record;
mod slots;
mod small;
mod source;
mod trust;
mod version;
mod why;
mod write;

pub use disk::{BOOT, here, look};
pub use error::UpdateError;
pub use manifest::{Manifest, Part};
pub use offer::{Here, Refusal, age, judge};
pub use record::{Able, Attempt, Boot, Offer, Outcome, Record, Start, folder};
pub use slots::{Entry, Slots, TRIES};
pub use source::{Shelf, find};
pub use trust::{KEYS, Keys};
pub use version::{Version, VersionError};
pub use why::why;
pub use write::{Job, JobState, go_back, write};
