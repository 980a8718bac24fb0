//! The public door: TLS, sign-in, API keys, routing, metering, dashboard.
//!
//! [`run`] is the whole of it. Pages ([`pages`]) and the wizard ([`wizard`]) are merged into one
//! router with the API; everything they share is in [`Gateway`].

mod engines;
mod link;
pub mod pages;
mod peer;
mod state;
pub mod wizard;

pub use engines::{EngineAnswer, EngineRefusal};
pub use link::AskError;
pub use peer::{Peer, is_local_network, is_this_machine};
pub use state::{CaInfo, Gateway};
