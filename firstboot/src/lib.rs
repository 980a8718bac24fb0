//! The wizard: a typed state machine from claim to first member, and its pages.
//!
//! [`Wizard`] is the machine: plain data, one function. [`Setup`] puts it behind `/setup` for the
//! gateway to mount; whatever it needs of the box goes through [`Host`].

mod address;
mod battery;
mod catalogue;
mod claim;
mod disk;
mod host;
mod import;
mod lines;
mod machine;
mod member;
mod model;
mod page;
mod planner;
mod restore;
mod setup;
mod stored;
mod wizard;

pub use battery::{Chosen, Offers};
pub use host::{
    ClaimRefusal, ClaimToken, Distance, Host, Newcomer, SetupError, Trust, Visitor, Window,
};
pub use setup::Setup;
pub use stored::Stored;
pub use wizard::{Address, Event, Refusal, Step, Wizard};
