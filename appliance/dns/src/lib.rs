//! Changes records of a DNS zone, for whoever has a key to it: dynamic updates (RFC 2136) over TCP, signed
//! with TSIG (RFC 8945).
//!
//! [`update`] is all of it: it comes back when the zone's primary server has taken every change, and says in a
//! sentence why not otherwise.

mod message;
mod name;
mod tsig;
mod update;

pub use name::{Name, NameError};
pub use tsig::{Key, KeyError};
pub use update::{Change, Data, DnsError, Zone, update};
