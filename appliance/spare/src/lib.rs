//! Another box that keeps what is precious of this one, so that the collective goes on when the machine does not.
//!
//! - [`Code`] is what a steward reads on the spare and types on the main box; [`pairing`] turns it into two pinned certificates.
//! - [`Desk`] gives codes out and counts tries: pure over a clock.
//! - [`Link`] is the main box's side of the link, [`serve`] runs whichever side this box is.
//! - [`Store`] is where backups are put, in restic's REST protocol; nothing in it can be removed from outside.
//! - [`Tombstones`] are keys and members that must never work again, [`Heads`] what the main box's trail ended with.
//! - [`Former`] is a main box that was lost, and hears so if it ever comes back.
//! - [`Lease`] says when the two last heard of each other, and under which epoch.

mod code;
mod desk;
mod door;
mod error;
mod folders;
mod follow;
mod former;
mod heads;
mod identity;
mod lease;
mod link;
mod messages;
pub mod pairing;
mod peer;
mod routes;
mod serve;
mod store;
mod tls;
mod tombstones;
mod words;

pub use code::Code;
pub use desk::{Desk, EXCHANGE, MINUTES, TRIES};
pub use door::{Caller, Mounts, STANDS_IN, TAKES_OVER};
pub use error::SpareError;
pub use folders::Folders;
pub use follow::pair;
pub use former::Former;
pub use heads::{Heads, Judged};
pub use identity::{Certificate, Identity};
pub use lease::{Lease, Standing};
pub use link::{Body, Link};
pub use messages::{Answer, Beat, DrillFound, Head, Hello, Push, Pushed, Room, State};
pub use peer::{Peer, Side};
pub use serve::serve;
pub use store::{Refused, Store};
pub use tombstones::Tombstones;

/// The port that a spare listens at where its site says no other.
pub const PORT: u16 = 8444;
/// The main box says that it is there this often.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(1);
/// Seconds without a word after which the spare may take over without being asked, and after which the main box must ask
/// before it serves.
pub const LEASE: i64 = 60;
