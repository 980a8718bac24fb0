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
mod handle;
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
pub use load::{Conversations, EngineOptions, Parts};
pub use polder_backend::Place;
pub use polder_backend_cpu::PackedWeights;
pub use serve::{run, serve};
pub use synthetic::Synthetic;

use std::path::PathBuf;

use polder_backend::BackendError;
use polder_scheduler::SchedulerError;

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
    /// The weights are more than the engine may take.
    #[error(
        "the weights take {} MiB as the processor reads them, and this engine may take {} MiB of the machine's memory: {} MiB are lacking, and more for conversations; raise its memory in the site, or choose a smaller model",
        weights.div_ceil(1 << 20), budget >> 20, weights.saturating_sub(*budget).div_ceil(1 << 20)
    )]
    Budget {
        /// Bytes of the weights.
        weights: u64,
        /// Bytes that the engine may take.
        budget: u64,
    },
    /// One of several devices that run a model together.
    #[error("place {} of {} devices: one model on several devices is not there yet; use one", .0.rank, .0.world)]
    Place(Place),
    /// A step never came to its end.
    #[error("a step has been running for {} s, far longer than such steps take: the device hangs", .0.as_secs())]
    Hung(std::time::Duration),
    /// Nothing moves any more while the model is loaded.
    #[error("loading the model has not moved for {} minutes; look at the disk and the graphics card", .0.as_secs() / 60)]
    LoadHangs(std::time::Duration),
    /// Loading panicked.
    #[error("loading the model failed unexpectedly; the log says where")]
    LoadPanicked,
    /// The engine's thread could not start, or ended.
    #[error("the engine cannot go on")]
    Scheduler(#[source] SchedulerError),
    /// The engine's thread ended without a word.
    #[error("the engine's thread ended by itself")]
    Ended,
}

impl EngineError {
    /// What the process ends with, so that whoever started it need not read the sentence: [`Self::DEVICE_FAILED`],
    /// [`Self::DOES_NOT_FIT`], else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Scheduler(SchedulerError::Backend(BackendError::Device(_)))
            | Self::Hung(_)
            | Self::LoadHangs(_) => Self::DEVICE_FAILED,
            Self::Memory { .. } | Self::Budget { .. } => Self::DOES_NOT_FIT,
            Self::Card(error) if error.is_memory() => Self::DOES_NOT_FIT,
            _ => 1,
        }
    }

    /// The device failed or hangs; another start may find it well.
    pub const DEVICE_FAILED: u8 = 75;
    /// The model does not fit into the memory there is, or that it may take.
    pub const DOES_NOT_FIT: u8 = 78;
}
