//! Asks a router to let callers from the internet in at one port: PCP, NAT-PMP, UPnP.
//!
//! [`ask`] asks, renews and finds out in one; [`give_back`] takes the port away again. [`pcp`] and [`upnp`] are what is said, as
//! plain bytes and words; nothing that a router answers is believed beyond its size, its sender and its place.

mod ask;
pub mod pcp;
pub mod upnp;

pub use ask::{Mapping, Refusal, Speech, Way, Wish, ask, give_back};
