//! The gateway as its clients meet it: over real sockets, with a pretended engine and supervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod api;
mod apps;
#[allow(
    dead_code,
    reason = "it is the authority of another crate's tests, and has more than is needed here"
)]
#[path = "../../../acme/tests/authority/house.rs"]
mod authority;
mod certificate;
mod fence;
mod framing;
mod hostile_engine;
mod house;
mod identity;
mod limits;
mod outside;
mod provider;
mod proxies;
mod surfer;
mod tls;
mod trust;
mod verifier;
mod window;
