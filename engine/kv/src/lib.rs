//! Blocks of KV that have left the device, or may leave it: kept in host memory and, encrypted, on disk.
//!
//! A block is an opaque string of bytes, as many for each block of one [`Store`]. Its address is a member and a
//! [`ChainDigest`] over the model, all tokens before it and its own. [`Store::put`] and [`Store::find`] never wait
//! for a disk; [`Store::read`] answers from a thread of its own. Whatever cannot be read back to the last bit was
//! never kept: the engine reads those tokens again.

mod clock;
mod counters;
mod digest;
mod estimate;
mod index;
mod keys;
mod layout;
mod members;
mod options;
mod record;
mod segments;
mod spill;
mod store;
mod system;

pub use counters::Counters;
pub use digest::{ChainDigest, ModelDigest};
pub use estimate::RestoreEstimate;
pub use layout::{disk_size, erase};
pub use options::{OpenError, StoreOptions};
pub use store::{Block, ForgetError, Found, Handle, Kept, Put, ReadError, Store, Tier};
pub use system::{Machine, System};
