//! The CPU back end: runs a model's specification on this machine's cores, for boxes without a
//! GPU and as the reference that every other back end is measured against.
//!
//! [`CpuBackend::load`] packs the weights into its own layout and starts a worker thread;
//! [`Backend::submit`](polder_backend::Backend::submit) hands it a step and returns at once.
//! Every token's result is bit for bit the same whatever else is in the step, however the prompt
//! was cut into steps, and wherever its blocks lie.

mod attention;
mod backend;
mod ffn;
mod forward;
mod fp8;
mod kernels;
mod kv;
mod matrix;
mod packed;
mod sampling;
mod team;

pub use backend::{CpuBackend, CpuOptions, LoadError, Precision};
pub use kv::KvFormat;
pub use packed::PackedWeights;
