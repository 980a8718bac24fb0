//! Two uplinks, one way out: which one a box uses, and what follows when it fails.
//!
//! [`Machine`] decides, from events and the time alone; [`routing`] says what the kernel should have for that; [`run`] is the
//! part of the box that asks, listens and does it.

mod dynamic_dns;
mod families;
mod follow;
mod machine;
mod netlink;
mod owed;
mod policy;
mod ports;
mod probe;
pub mod routing;
mod run;
mod sockets;
mod status;
mod uplink;
mod window;

pub use dynamic_dns::SECRET;
pub use families::Heard;
pub use follow::{WanError, serve};
pub use machine::{Decision, Event, Machine, View, Why};
pub use netlink::{Netlink, NetlinkError, Observed};
pub use policy::Policy;
pub use probe::Pages;
pub use run::{Options, run};
pub use uplink::Condition;
pub use window::Quality;

/// Time since the machine began; only its differences mean anything.
pub type Time = std::time::Duration;
