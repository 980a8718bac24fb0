//! What the stories share: a real box, started as its owner would start it, on a free port and in a
//! folder of its own, stopped when the story ends.
//!
//! The stories need what `make test` prepares and says so when it is missing: `POLDER_BIN` (the
//! binary), `POLDER_SMOLLM2_FOLDER` (a folder with the trial model's file), `POLDER_VENV` (a Python
//! environment with the official SDKs).

mod browser;
mod client;
mod running;

pub use browser::Browser;
pub use client::{Answer, Client, Stream, chat};
pub use running::{
    Running, Up, free_port, import_trial_model, model_folder, need, polder, python, scaled,
    screenshots, send_signal,
};
