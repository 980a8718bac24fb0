//! What is wrong with a box, in words; telling its stewards; a text for whoever helps.
//!
//! [`run`] is the whole of it, as a part of the box. [`look`] sees and says it as plain data ([`seen`]); [`checks`] are functions
//! from that to issues; [`ledger`] says since when, and what is over; [`alerts`] say whom to tell, and when.

pub mod alerts;
pub mod checks;
mod daemon;
pub mod ledger;
pub mod look;
pub mod memory;
mod secrets;
pub mod seen;
mod support;
#[cfg(test)]
mod year;

pub use daemon::{HealthError, run};
pub use look::{DRIVES, leave_drives};
