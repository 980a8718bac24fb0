//! What people do with a box, one file per thing, against the real binary and the real model.

#![allow(
    clippy::unwrap_used,
    reason = "a story that meets what it did not expect should end there"
)]

mod answer;
mod backup;
mod bakeoff;
mod clients;
mod collective;
mod command_line;
mod elsewhere;
mod engine_dies;
mod import;
mod install_page;
mod keys;
mod model_change;
mod money;
mod moving;
mod network;
mod outside;
mod power;
mod rename;
mod rented;
mod replaced;
mod restart;
mod seed;
mod spare;
mod stolen_disk;
mod takeover;
mod two_models;
mod uplinks;
mod wizard;
