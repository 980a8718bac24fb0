//! The CUDA back end: kernels in CUDA C++, compiled by NVIDIA's run-time compiler into machine code that is kept.
//!
//! The program needs nothing of NVIDIA's to start: driver and compiler are looked for when somebody asks for them, and a
//! machine without them gets a sentence ([`device::NoDevice`], [`compiler::NoCompiler`]).
//!
//! Rooms, from the outside in: [`sources`] (what is compiled), [`compiler`] and [`pack`] (machine code, and where it is kept),
//! [`device`] (a card, its memory and its streams); then the kernels by what they do: [`attention`].

// The driver's functions are C's; `device` and `compiler` wrap them and say why each call is sound.
#![allow(unsafe_code)]

pub mod arch;
mod arena;
pub mod attention;
pub mod backend;
pub mod basics;
pub mod budget;
mod carry;
pub mod compiler;
pub mod cost;
mod dense;
pub mod device;
mod forward;
mod kv;
pub mod ledger;
pub mod linear;
pub mod loading;
pub mod moe;
pub mod no_code;
pub mod pack;
pub mod packed;
pub mod packing;
mod parts;
pub mod sampling;
pub mod sources;
mod step;
mod strips;
pub mod synthetic;
pub mod tiles;
pub mod weights;
