//! `POST /v1/completions`: the request.

use polder_backend::TokenId;
use serde_json::Value;

use crate::wire::chat::model;
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, Ignored};
use crate::wire::knobs::{self, Knobs, MOST_LOGPROBS};
use crate::wire::table;

/// Text to go on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// As text; control tokens written in it count.
    Text(String),
    /// As tokens, fed as they are.
    Tokens(Vec<TokenId>),
}

/// A request for plain continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model's name.
    pub model: String,
    /// At least one; each gets its own answers.
    pub prompts: Vec<Prompt>,
    /// How to answer.
    pub knobs: Knobs,
    /// Begin each answer with its prompt.
    pub echo: bool,
    /// Fields that had no effect, to be named in the answer.
    pub ignored: Vec<String>,
}

/// Tokens of an answer where the request does not say.
const DEFAULT_TOKENS: u32 = 16;

/// Reads a request. A strict client is refused where another's unknown field is ignored.
pub fn parse_completion(body: &[u8], strict: bool) -> Result<CompletionRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let model = model(&mut fields)?;
    let prompts = parse_prompts(&mut fields, "prompt")?;
    let mut knobs = knobs::parse(&mut fields, &mut ignored)?;
    knobs.max_tokens =
        Some(knobs::parse_max_tokens(&mut fields, &["max_tokens"], 0)?.unwrap_or(DEFAULT_TOKENS));
    knobs.sampling.logprobs =
        fields.integer("logprobs", 0..=MOST_LOGPROBS)?.map(|count| count as u8);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let n = u64::from(knobs.n);
    fields.refuse(
        "best_of",
        |best| best.as_u64() == Some(n),
        "ask for \"n\" answers and choose yourself",
    )?;
    table::COMPLETIONS.settle(&mut fields)?;
    fields.finish(&mut ignored);
    let ignored = ignored.finish(strict)?;
    Ok(CompletionRequest { model, prompts, knobs, echo, ignored })
}

/// Texts or tokens, one or many, in `field`.
pub(crate) fn parse_prompts(fields: &mut Fields, field: &str) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || {
        ApiError::bad_field(
            field,
            format!(
                "\"{field}\" must be a string, a list of strings, a list of token ids, or a list of \
                 such lists, and not empty."
            ),
        )
    };
    match fields.take(field) {
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            Ok(vec![Prompt::Tokens(token_ids(&list).ok_or_else(wrong)?)])
        }
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .map(|prompt| match prompt {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(list) if !list.is_empty() => {
                    Ok(Prompt::Tokens(token_ids(&list).ok_or_else(wrong)?))
                }
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

pub(crate) fn token_ids(list: &[Value]) -> Option<Vec<TokenId>> {
    list.iter().map(|id| Some(TokenId(u32::try_from(id.as_u64()?).ok()?))).collect()
}
