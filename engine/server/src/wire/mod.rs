//! OpenAI's wire format: requests in, answers out. Pure functions over bytes.

pub(crate) mod answer;
pub mod chat;
pub mod completions;
pub mod error;
pub(crate) mod fields;
pub mod knobs;
pub(crate) mod reply;
pub mod tokens;
pub mod tools;
