//! Certificates from a real authority (Debian's pebble), over a real DNS (Debian's BIND, and pebble's own), with the failures
//! of both switched on, and cut off at every step.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod announcing;
mod failing;
mod house;
mod ordinary;
mod power_cut;
