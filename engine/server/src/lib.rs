//! One model behind OpenAI's API on a Unix socket: what the gateway forwards requests to.
//!
//! [`run`] loads a model on the CPU and serves it until it is told to stop; [`serve`] does the
//! same with parts that are loaded by the caller. Prompts and answers are never logged.
//!
//! Between gateway and engine: requests carry `x-polder-member` (an opaque id, for the round
//! robin) and `x-polder-strict: 1` for keys that want unknown fields refused. Answers carry
//! `x-polder-prompt-tokens`, `x-polder-ignored` (fields that had no effect), and, where the
//! request says `TE: trailers`, a trailer `x-polder-usage: prompt=N,completion=M`.

mod answering;
mod app;
mod beginnings;
mod chat;
mod completions;
mod embeddings;
mod generate;
mod keeping;
mod load;
mod messages;
mod metrics;
mod reply;
mod responses;
mod serve;
mod socket;
mod stream;
mod synthetic;
mod tools;
mod turnover;
pub mod wire;

pub use keeping::Keeping;
pub use load::{EngineOptions, Parts};
pub use polder_backend_cpu::PackedWeights;
pub use serve::{run, serve};
pub use synthetic::Synthetic;

use std::path::PathBuf;

/// Why an engine could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The socket could not be made.
    #[error("cannot listen on {path}; does its folder exist and belong to this user?")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another engine answers there.
    #[error("another engine is listening on {path}; stop it first")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The model's files could not be opened.
    #[error("cannot open the model at {path}; import it again if this stays so")]
    Model {
        /// Where.
        path: PathBuf,
        /// Why.
        source: polder_model::ModelError,
    },
    /// The model's tokenizer could not be built.
    #[error("cannot use the tokenizer of the model at {path}")]
    Tokenizer {
        /// Where.
        path: PathBuf,
        /// Why.
        source: polder_chat::ChatError,
    },
    /// There is no room for even one short conversation.
    #[error(
        "beside the weights {available} bytes of memory are left for conversations, enough for {tokens} tokens, and at least {least} bytes are needed; choose a smaller model, or end other programs"
    )]
    Memory {
        /// Bytes allowed.
        available: u64,
        /// Tokens that they hold.
        tokens: u64,
        /// Bytes that would do.
        least: u64,
    },
    /// The back end could not load the model.
    #[error("cannot load the model onto the CPU")]
    Load(#[source] polder_backend_cpu::LoadError),
    /// The card could not take the model.
    #[error("cannot load the model onto the card")]
    Card(#[source] polder_backend_cuda::backend::LoadError),
    /// No such model can be drawn.
    #[error("no weights can be drawn for {name}: {why}")]
    Synthetic {
        /// The model's name in the API.
        name: String,
        /// Why.
        why: String,
    },
    /// Loading panicked.
    #[error("loading the model failed unexpectedly; the log says where")]
    LoadPanicked,
    /// The engine's thread could not start, or ended.
    #[error("the engine cannot go on")]
    Scheduler(#[source] polder_scheduler::SchedulerError),
    /// The engine's thread ended without a word.
    #[error("the engine's thread ended by itself")]
    Ended,
}
