//! The gateway as its clients meet it: over real sockets, with a pretended engine and supervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod api;
mod apps;
mod framing;
mod hostile_engine;
mod house;
mod limits;
mod outside;
mod proxies;
mod tls;
mod trust;
mod verifier;
