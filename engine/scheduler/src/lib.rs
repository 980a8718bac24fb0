//! Continuous batching over a back end: many members' sequences, one forward pass at a time.
//!
//! [`Scheduler`] is the decision, without I/O: [`Scheduler::plan_step`] fills the next
//! [`StepBatch`](polder_backend::StepBatch), [`Scheduler::take`] reads what came back and says
//! what happened to whom. [`spawn`] is the thin thread that owns the back end, and
//! [`EngineHandle`] is how the rest of a process talks to that thread.

mod cost;
mod drafting;
mod engine_loop;
mod fair;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod grammar;
mod keeper;
mod mask_threads;
mod pace;
mod pool;
mod pooling;
mod prefix;
mod pulse;
mod queue;
mod repeats;
mod request;
mod scheduler;
mod sequence;
mod share;
mod tiers;

pub use cost::Cost;
pub use engine_loop::{EngineHandle, EngineThread, Sink, spawn, spawn_with_store};
pub use grammar::{Grammar, MaskDone, MaskWork, Matcher, Next};
pub use pooling::Pooling;
pub use request::{
    Claim, Event, FinishReason, MemberId, PromptLogprob, Refusal, Request, RequestId,
    SchedulerError, Weight,
};
pub use scheduler::{Config, Scheduler, Stats};
pub use tiers::{KeptBlock, Owner, PutWork, RestoreId, RestoreWork, Tiers};
