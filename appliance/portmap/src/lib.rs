//! Asks a router to let callers from the internet in at one port: PCP, NAT-PMP, UPnP.
//!
//! [`ask`] asks, renews and finds out in one; [`give_back`] takes away again whatever the [`Book`] says that may be open, and [`settle`] what was
//! left open before, at its [`creditor`]. [`pcp`] and [`upnp`] are what is said, as plain bytes and words; nothing that a router answers is believed beyond its size,
//! its sender and its place.

mod ask;
mod back;
mod book;
pub mod pcp;
pub mod upnp;
mod way;

pub use ask::{Mapping, Refusal, Speech, Wish, ask};
pub use back::{Debt, Ending, creditor, give_back, settle};
pub use book::{Asked, Book};
pub use way::Way;
