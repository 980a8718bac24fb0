//! Certificates that the world trusts, for the box's public names: ordered, proved and renewed by ACME (RFC 8555) without
//! anybody's help, for the gateway.
//!
//! [`Acme`] is everything that the gateway needs: it follows the site, hands over what is to be served, and says how
//! things are. What to do next is a pure function ([`mod@decide`]) of what is on disk and the time; how a certificate comes
//! about is in `obtain`, step by step, each step on disk before the next. The box's own authority (`polder-pki`) is not
//! touched by any of it.

pub mod decide;
mod obtain;
mod prove;
mod service;
mod store;
mod trouble;
mod web;

pub use obtain::Step;
pub use prove::HttpProofs;
pub use service::{Acme, AcmeError, Patience};
