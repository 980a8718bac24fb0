//! What callers ask of the scheduler, and what it tells them.

use std::sync::Arc;

use polder_backend::{BackendError, SampledToken, Sampling, TokenId};

use crate::grammar::Grammar;
use crate::pooling::Pooling;

/// Whose request it is. Opaque here: equal ids share one share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// A member by any stable name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a request may claim beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its member's share of the work beside other members'. The newest one counts.
    pub weight: Weight,
    /// Most of its member's sequences that may run while it starts.
    pub most_running: u16,
    /// Of one member's waiting requests, a higher one goes first. It says nothing to other members.
    pub priority: i32,
    /// Its member shares what is kept with all who do so too: by the time of an answer they may tell what others asked.
    pub trusting: bool,
}

impl Default for Claim {
    /// As everybody.
    fn default() -> Self {
        Self { weight: Weight::USUAL, most_running: u16::MAX, priority: 0, trusting: false }
    }
}

/// A share of the work beside others': who has twice the weight gets twice as much where there is not enough for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(u16);

impl Weight {
    /// What everybody has.
    pub const USUAL: Self = Self(100);

    /// In percent of what everybody has; 0 is read as 1.
    pub fn percent(percent: u16) -> Self {
        Self(percent.max(1))
    }

    /// 1 for the usual one.
    pub(crate) fn factor(self) -> f64 {
        f64::from(self.0) / f64::from(Self::USUAL.0)
    }
}

/// One sequence's number, unique for the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// For whom.
    pub member: MemberId,
    /// What it may claim beside others.
    pub claim: Claim,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// Most tokens to sample. Where the context leaves less room, that is the limit.
    pub max_tokens: u32,
    /// Sampling one of these ends the sequence; the token itself is not delivered.
    pub stop_tokens: Arc<[TokenId]>,
    /// How to sample.
    pub sampling: Sampling,
    /// Deliver the logprob of every prompt token after the first, with this many best
    /// alternatives.
    pub prompt_logprobs: Option<u8>,
    /// What the answer must be. Its masks take the place of [`Sampling::mask`].
    pub grammar: Option<Arc<dyn Grammar>>,
    /// Deliver a vector for the prompt and nothing else; nothing is sampled.
    pub pooling: Option<Pooling>,
}

/// What happened to a sequence. Order: `Queued`, `Begun`, `Prompt` (if asked for), `Token`… or `Vector`, `Finished`
/// or, at any point, `Unusable` or `Stuck`.
/// A sequence that is cancelled hears nothing more.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was taken and waits or runs; tokens follow.
    Queued,
    /// It was not taken; nothing follows.
    Refused(Refusal),
    /// Its first answer follows. Told then and not at the end: whoever has heard enough ends it, and still says what it took.
    Begun {
        /// Prompt tokens that did not have to be read, because an earlier request began alike.
        cached: u32,
    },
    /// The model's opinion of the next few prompt tokens, in order.
    Prompt(Vec<PromptLogprob>),
    /// One sampled token.
    Token(SampledToken),
    /// The prompt's vector: the pooled hidden states, not normalised.
    Vector(Vec<f32>),
    /// Nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens sampled in all, a stop token included.
        sampled: u32,
    },
    /// The model computed no distribution (NaN, infinity) for this sequence; nothing follows.
    Unusable,
    /// No token can go on the answer under its grammar, for the reason that is told; nothing
    /// follows.
    Stuck(String),
    /// The engine is ending after a failure of the device; nothing follows.
    Failed,
}

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It sampled a stop token, or its grammar lets nothing follow.
    Stop,
    /// It reached `max_tokens` or the end of the context.
    Length,
}

/// How likely the model found one prompt token, given those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogprob {
    /// The prompt's token.
    pub token: TokenId,
    /// Natural log of its probability.
    pub logprob: f32,
    /// The best tokens at that place and their logprobs, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is as long as it may be.
    #[error("{waiting} requests are already waiting, as many as may wait; try again in a moment")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The member has as many places as may be had while others could come.
    #[error(
        "{waiting} of your requests are already waiting, as many as one member may have now; try again when some are answered"
    )]
    ShareFull {
        /// How many of the member's requests wait.
        waiting: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens and a sequence may have {capacity}; send a shorter prompt"
    )]
    TooLong {
        /// The prompt's tokens.
        prompt: usize,
        /// Most tokens of prompt and answer together.
        capacity: u32,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty; send at least one token")]
    EmptyPrompt,
    /// No token to sample and no prompt token to judge.
    #[error("nothing was asked for; ask for at least one token")]
    NothingAsked,
    /// A token that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocab} tokens; use smaller token ids")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab: u32,
    },
    /// The engine is ending.
    #[error("the engine is stopping; try again when it is back")]
    Stopping,
}

/// Why scheduling cannot go on. All of them end the engine; its supervisor starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The back end refused or failed.
    #[error("running a step failed")]
    Backend(#[source] BackendError),
    /// The answer does not fit the step it answers.
    #[error("the back end answered a step of {expected} rows with {got} unfitting rows")]
    WrongAnswer {
        /// Rows asked for.
        expected: usize,
        /// Rows received.
        got: usize,
    },
    /// An answer to no step.
    #[error("the back end answered a step that was never planned")]
    NothingInFlight,
    /// There is work, and no step can be planned for it: a defect of the scheduler.
    #[error("requests are waiting but none can be scheduled")]
    Stalled,
    /// The back end can hold nothing.
    #[error("the back end offers no {what}; give it more memory")]
    NoRoom {
        /// What there is none of.
        what: &'static str,
    },
    /// The engine's thread could not be started.
    #[error("starting the engine's thread failed")]
    Thread(#[source] std::io::Error),
    /// The engine's thread panicked.
    #[error("the engine's thread panicked: {0}")]
    Panicked(String),
}
