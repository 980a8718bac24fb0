//! The box as units of the init system: [`Units`] runs parts over D-Bus, [`Host`] turns the machine
//! off and keeps it from going down before the parts have finished.
//!
//! Signals of the bus only wake us; what is true is always asked for. A signal that was lost, while
//! the bus was away or before we listened, therefore costs a moment and never a wrong answer.

mod bus;
mod chores;
mod host;
mod units;
mod words;

pub use bus::Bus;
pub use chores::Chores;
pub use host::{Hold, Host, HostError};
pub use units::{UnitProcess, Units};
