//! From the first second on battery to the last: what the box does when its mains is away, and how it talks to the UPS.
//!
//! [`policy`] decides and does nothing, [`protocol`] reads and writes lines and connects to nobody; [`upsd`] and [`watch`] are
//! the shells around them. The part that runs is [`watch::run`].

pub mod around;
pub mod battery_age;
pub mod battery_test;
pub mod cards;
pub mod find;
pub mod nut;
pub mod policy;
pub mod protocol;
pub mod reading;
pub mod upsd;
pub mod watch;
pub mod words;

pub use polder_control::PowerPhase;
