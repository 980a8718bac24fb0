//! Tokenizer, chat template and incremental text from a model's own files.
//!
//! [`Tokenizer`] turns text into tokens and back exactly as the model was trained to read it;
//! [`ChatTemplate`] writes a conversation in the model's own form; [`TextStream`] and
//! [`StopStrings`] turn sampled tokens into text that can be sent as it grows.
//!
//! [`reply`] takes apart what a model writes: thoughts, answer, calls of tools.
//!
//! What a person writes can never become a control token: [`ChatTemplate::encode`] marks every
//! place in a message that could be read as one, and only the template's own text is searched
//! for them.

mod error;
mod escape;
mod gguf;
mod history;
mod huggingface;
mod json;
pub mod reply;
mod special;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod vocabulary;

pub use error::ChatError;
pub use stream::{StopOutcome, StopStrings, TextStream};
pub use template::{ChatTemplate, Conversation};
pub use tokenizer::{Special, Tokenizer};
