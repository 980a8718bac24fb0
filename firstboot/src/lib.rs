//! The wizard: a typed state machine from claim to first member, and its pages.

mod stored;
mod wizard;

pub use stored::Stored;
pub use wizard::{Event, Refusal, Step, Wizard};
