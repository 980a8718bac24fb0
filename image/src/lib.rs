//! The OS image: makes, from pinned packages and a checkout of Polder, the one file that people write to a
//! stick.
//!
//! [`Workshop::build`] carries out a [`plan`](fn@plan) of named steps; each product is kept under a key of
//! everything that it was made from. `packages.toml` says what is wanted, [`Lock`] exactly what is taken,
//! `steps/` how each product is made, `tree/` what goes in as it is.

mod apt;
mod arch;
mod cache;
mod command;
mod compare;
mod debs;
mod driver;
mod error;
mod kernels;
mod keys;
mod lock;
mod parcel;
mod plan;
mod room;
mod sign;
mod source;
mod spdx;
mod uuid;
mod want;
mod wheels;
mod workshop;

pub use apt::Mirror;
pub use arch::{Arch, UnknownArch};
pub use cache::Cache;
pub use debs::Debs;
pub use driver::{Built, Bundle, Cards, Driver};
pub use error::ImageError;
pub use kernels::Compiling;
pub use keys::{Digests, Keys};
pub use lock::{Layer, Lock, LockError, Package, Packages};
pub use parcel::{Imported, ParcelError};
pub use plan::{Action, Inputs, Key, Product, Sizes, plan};
pub use polder_update::{Version, VersionError};
pub use room::Room;
pub use sign::{check, sign};
pub use source::Source;
pub use want::Want;
pub use workshop::{Made, News, Order, Workshop};
