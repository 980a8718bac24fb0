//! How members outside reach a box that nobody can call.
//!
//! A box behind a telephone company's address translation cannot be called. So it calls: a **relay**, the same program on any
//! small server with a public address. Members' programs connect to the relay under the box's name; the relay reads that name from the first
//! message of TLS, hands the bytes to the line that the box holds open, and understands none of them: the keys are the box's.
//!
//! [`relay`] is what runs on the server, [`dial`] what the box does, [`Pass`] what a steward carries from one to the other.

pub mod dial;
mod first;
mod line;
mod pass;
mod place;
mod register;
pub mod relay;
mod rewind;

pub use pass::{Pass, PassError};
pub use place::{Place, place};
pub use register::{Register, RegisterError};

/// A unit that runs the relay on a small server, with how to install it.
pub const UNIT: &str = include_str!("../polder-relay.service");
