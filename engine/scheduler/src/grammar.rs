//! What may come next: the seam to whoever knows a grammar.
//!
//! The scheduler knows no grammar, only that an answer may be under one. A [`Grammar`] is what a
//! request brings, a [`Matcher`] is where one of its answers stands. A matcher goes on away from
//! the engine's thread: it moves out as [`MaskWork`], and comes back as [`MaskDone`].

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use polder_backend::TokenId;

use crate::request::RequestId;

/// Rules for the tokens of an answer, made once for a request and shared by its answers.
pub trait Grammar: Debug + Send + Sync {
    /// Which tokens an answer may begin with: bit `i` of word `i / 32` allows token `i`, at least
    /// one is allowed, and there are as many words as the back end's vocabulary needs. Called on
    /// the engine's thread: it only copies.
    fn first_mask(&self) -> Vec<u32>;

    /// Where an answer stands before its first token. Called where masks are computed.
    fn begin(&self) -> Box<dyn Matcher>;
}

impl PartialEq for dyn Grammar {
    /// The same one, not one alike.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// Where one answer stands in its grammar.
pub trait Matcher: Debug + Send {
    /// Goes on by a token that the last mask allowed and that ends no answer. The outcome depends
    /// on the grammar and the answer so far, and on nothing else: equal requests must get equal
    /// answers. Called where masks are computed.
    fn after(&mut self, token: TokenId) -> Next;
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The tokens that are allowed, as in [`Grammar::first_mask`]; tokens that end the answer are
    /// among them exactly where it may end.
    Mask(Vec<u32>),
    /// The answer is complete and nothing can follow.
    Complete,
    /// The answer cannot go on and is not complete. Says why, for whoever sent the grammar.
    Stuck(String),
}

/// A matcher that has not begun yet, or has.
#[derive(Debug)]
pub(crate) enum Stand {
    New(Arc<dyn Grammar>),
    Begun(Box<dyn Matcher>),
}

/// Where a sequence under a grammar is with its masks.
#[derive(Debug)]
pub(crate) enum Masking {
    /// The mask of its next token is there.
    Ready(Stand, Vec<u32>),
    /// A planned step samples under it.
    Sampling(Stand),
    /// That token is known, and the mask after it is to be computed.
    Due(Stand, TokenId),
    /// It is being computed.
    Away,
}

impl Masking {
    pub(crate) fn new(grammar: Arc<dyn Grammar>) -> Self {
        let mask = grammar.first_mask();
        Self::Ready(Stand::New(grammar), mask)
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(..))
    }

    /// The mask to sample under, where it is ready.
    pub(crate) fn spend(&mut self) -> Option<Vec<u32>> {
        match std::mem::replace(self, Self::Away) {
            Self::Ready(stand, mask) => {
                *self = Self::Sampling(stand);
                Some(mask)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// The token that was sampled under the last mask.
    pub(crate) fn sampled(&mut self, token: TokenId) {
        *self = match std::mem::replace(self, Self::Away) {
            Self::Sampling(stand) => Self::Due(stand, token),
            other => other,
        };
    }

    /// What is to be computed, once.
    pub(crate) fn work(&mut self, id: RequestId) -> Option<MaskWork> {
        match std::mem::replace(self, Self::Away) {
            Self::Due(stand, token) => Some(MaskWork { id, stand, token }),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// A mask to compute, anywhere.
#[derive(Debug)]
pub struct MaskWork {
    id: RequestId,
    stand: Stand,
    token: TokenId,
}

impl MaskWork {
    /// Computes it.
    pub fn run(self) -> MaskDone {
        let Self { id, stand, token } = self;
        // What panics ends one answer, not the thread that computes everyone's masks.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut matcher = match stand {
                Stand::New(grammar) => grammar.begin(),
                Stand::Begun(matcher) => matcher,
            };
            let next = matcher.after(token);
            (next, matcher)
        }));
        match outcome {
            Ok((next, matcher)) => MaskDone { id, next, matcher: Some(matcher) },
            Err(_) => {
                log::error!("computing which tokens a grammar allows panicked; an answer ends");
                let next = Next::Stuck("reading its grammar failed unexpectedly".into());
                MaskDone { id, next, matcher: None }
            }
        }
    }
}

/// A mask that was computed.
#[derive(Debug)]
pub struct MaskDone {
    pub(crate) id: RequestId,
    pub(crate) next: Next,
    pub(crate) matcher: Option<Box<dyn Matcher>>,
}
