//! `POST /v1/embeddings`: the request and the answer.

use polder_scheduler::Pooling;
use serde_json::{Value, json};

use crate::wire::chat::model;
use crate::wire::completions::{Prompt, parse_prompts};
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, Ignored};
use crate::wire::table;

/// Most texts in one request, as in OpenAI's specification.
const MOST_INPUTS: usize = 2048;

/// A request for vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsRequest {
    /// The model's name.
    pub model: String,
    /// At least one; each gets a vector.
    pub inputs: Vec<Prompt>,
    /// The length that the vectors must have.
    pub dimensions: Option<i64>,
    /// Which hidden states make up a vector.
    pub pooling: Pooling,
    /// As base64 of little-endian floats, and not as numbers.
    pub base64: bool,
    /// Fields that had no effect, to be named in the answer.
    pub ignored: Vec<String>,
}

/// Reads a request. A strict client is refused where another's unknown field is ignored.
pub fn parse_embeddings(body: &[u8], strict: bool) -> Result<EmbeddingsRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let model = model(&mut fields)?;
    let inputs = parse_prompts(&mut fields, "input")?;
    if inputs.len() > MOST_INPUTS {
        return Err(ApiError::bad_field(
            "input",
            format!("\"input\" holds more than {MOST_INPUTS} texts; send several requests."),
        ));
    }
    let dimensions = fields.integer("dimensions", 1..=i64::from(u32::MAX))?;
    let base64 = choice(&mut fields, "encoding_format", [("float", false), ("base64", true)])?;
    let pooling =
        choice(&mut fields, "pooling", [("last", Pooling::Last), ("mean", Pooling::Mean)])?;
    table::EMBEDDINGS.settle(&mut fields)?;
    fields.finish(&mut ignored);
    let ignored = ignored.finish(strict)?;
    Ok(EmbeddingsRequest { model, inputs, dimensions, pooling, base64, ignored })
}

/// One of two words, the first where none is said.
fn choice<T: Copy>(fields: &mut Fields, field: &str, words: [(&str, T); 2]) -> Result<T, ApiError> {
    let Some(said) = fields.string(field)? else { return Ok(words[0].1) };
    words.iter().find(|(word, _)| *word == said).map(|(_, value)| *value).ok_or_else(|| {
        ApiError::bad_field(
            field,
            format!("\"{field}\" must be \"{}\" or \"{}\".", words[0].0, words[1].0),
        )
    })
}

/// The whole answer. Vectors are of length one.
pub(crate) fn answer(model: &str, vectors: &[Vec<f32>], base64: bool, tokens: u64) -> Value {
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding: Value = match base64 {
                true => encoded(vector).into(),
                false => vector.as_slice().into(),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    json!({
        "object": "list", "data": data, "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

/// The vector of length one that points the same way.
pub(crate) fn normalised(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    match length > 0.0 {
        true => vector.iter().map(|value| (f64::from(*value) / length) as f32).collect(),
        false => vector.to_vec(),
    }
}

/// Base64 (RFC 4648, with padding) of the little-endian floats.
fn encoded(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit > group.len() { '=' } else { char::from(DIGITS[at]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_everybody_else_makes_of_it() {
        assert_eq!(encoded(&[]), "");
        assert_eq!(encoded(&[1.0]), "AACAPw==");
        assert_eq!(encoded(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(encoded(&[1.0, -2.5, 0.1]), "AACAPwAAIMDNzMw9");
    }

    #[test]
    fn a_vector_keeps_its_direction_and_nothing_stays_nothing() {
        assert_eq!(normalised(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(normalised(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalised(&[1e-30, 0.0]), [1.0, 0.0]);
    }
}
