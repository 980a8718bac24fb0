//! Answers that must have a form: which tokens may come next under a JSON schema, a regular
//! expression, a list of choices or a grammar.
//!
//! [`Grammars`] knows a model's vocabulary; [`Grammars::compile`] makes a [`Grammar`] of a
//! [`GrammarSpec`], within limits, for the scheduler's [`Request`](polder_scheduler::Request).

mod error;
mod grammars;
mod matcher;
mod spec;
mod tree;

pub use error::GrammarError;
pub use grammars::Grammars;
pub use spec::GrammarSpec;

/// A compiled grammar: the scheduler's own trait.
pub use polder_scheduler::Grammar;
