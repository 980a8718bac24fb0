//! The public door: TLS, sign-in, API keys, routing, metering, dashboard.
//!
//! [`run`] is the whole of it. Pages ([`pages`]) and the wizard ([`wizard`]) are merged into one
//! router with the API; everything that handlers share is in [`Gateway`].
//!
//! A request's way in: [`listen`] gives its connection a place, [`connection`] makes TLS and HTTP of
//! it, [`front`] judges its head, [`api`] or a page answers it, [`relay`] passes it to an engine.

mod api;
mod apps;
pub mod auth;
mod body;
mod common;
mod connection;
mod deeds;
mod door;
mod engines;
pub mod errors;
mod fence;
mod forgetting;
mod front;
mod handed;
pub mod headers;
mod health;
pub mod host;
mod house;
mod identity;
mod leash;
mod limits;
mod line;
mod link;
mod listen;
mod metrics;
mod naming;
pub mod origin;
mod outside;
mod owner;
pub mod pages;
mod patient;
mod peer;
pub mod relay;
mod run;
mod state;
mod subrequest;
mod supply;
mod tickets;
mod verifier;
pub mod wizard;
mod workers;

pub use engines::{EngineAnswer, EngineRefusal};
pub use handed::Handed;
pub use limits::Limits;
pub use line::EngineBody;
pub use link::AskError;
pub use metrics::Tally;
pub use peer::{Peer, is_local_network, is_this_machine};
pub use run::{GatewayError, GatewayOptions, run, run_on};
pub use state::{CaInfo, Gateway};
