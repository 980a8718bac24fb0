//! OpenAI's and Anthropic's wire formats: requests in, answers out. Pure functions over bytes.

pub(crate) mod answer;
pub(crate) mod blocks;
pub mod chat;
pub(crate) mod chunks;
pub mod completions;
pub mod embeddings;
pub mod error;
pub(crate) mod fields;
pub mod format;
pub mod knobs;
pub(crate) mod message;
pub(crate) mod message_tools;
pub mod messages;
pub mod noise;
pub(crate) mod reply;
pub(crate) mod response;
pub(crate) mod response_tools;
pub mod responses;
pub mod table;
pub mod tokens;
pub mod tools;
