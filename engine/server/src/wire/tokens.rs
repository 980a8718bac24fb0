//! `POST /tokenize` and `POST /detokenize`: the requests.

use polder_backend::TokenId;
use serde_json::Value;

use crate::wire::completions::token_ids;
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, Ignored};

/// Text whose tokens are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    /// The text; control tokens written in it count.
    pub text: String,
    /// Begin with the token that begins every text, as for a prompt.
    pub add_special_tokens: bool,
    /// Fields that had no effect.
    pub ignored: Vec<String>,
}

/// Tokens whose text is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct DetokenizeRequest {
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// Fields that had no effect.
    pub ignored: Vec<String>,
}

/// Reads a `/tokenize` request.
pub fn parse_tokenize(body: &[u8], strict: bool) -> Result<TokenizeRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let text = fields.string("prompt")?.ok_or_else(|| {
        ApiError::bad_field("prompt", "\"prompt\" is missing; send the text to tokenize.")
    })?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    fields.accept(&["model"]);
    fields.finish(&mut ignored);
    Ok(TokenizeRequest { text, add_special_tokens, ignored: ignored.finish(strict)? })
}

/// Reads a `/detokenize` request.
pub fn parse_detokenize(body: &[u8], strict: bool) -> Result<DetokenizeRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let tokens = match fields.take("tokens") {
        Some(Value::Array(list)) => token_ids(&list),
        _ => None,
    };
    let tokens = tokens
        .ok_or_else(|| ApiError::bad_field("tokens", "\"tokens\" must be a list of token ids."))?;
    fields.accept(&["model"]);
    fields.finish(&mut ignored);
    Ok(DetokenizeRequest { tokens, ignored: ignored.finish(strict)? })
}
