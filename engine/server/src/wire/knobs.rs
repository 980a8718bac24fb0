//! The fields that chat and plain completions share: how to sample, when to stop, how to send.

use polder_backend::{Sampling, TokenId};
use serde_json::Value;

use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, Ignored};
use crate::wire::format::{self, Format};

/// Most stop strings in one request.
const MOST_STOPS: usize = 16;
/// Longest stop string, bytes: that much text may have to be held back.
const LONGEST_STOP: usize = 4096;
/// Most entries of `logit_bias`.
const MOST_BIASES: usize = 4096;
/// Most alternatives beside a token, as in OpenAI's specification.
pub(crate) const MOST_LOGPROBS: i64 = 20;

/// How an answer is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Knobs {
    /// How to choose tokens; `seed` counts only where the next field is set.
    pub sampling: Sampling,
    /// The caller fixed the seed.
    pub seeded: bool,
    /// Most tokens to sample.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Go on past the model's own end of text.
    pub ignore_eos: bool,
    /// How many answers.
    pub n: u32,
    /// Send the answer as it grows.
    pub stream: bool,
    /// Send the usage as a last event of the stream.
    pub include_usage: bool,
    /// What the answers must be, where that is more than text.
    pub format: Option<Format>,
}

/// Most answers in one request.
pub(crate) const MOST_CHOICES: i64 = 128;

pub(crate) fn parse(fields: &mut Fields, ignored: &mut Ignored) -> Result<Knobs, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        // Minus one is how others say "all of them".
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0).max(0) as u32,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(1.0),
        seed: seed.unwrap_or(0) as u64,
        bias: parse_bias(fields)?,
        mask: None,
        logprobs: None,
    };
    let n = fields.integer("n", 1..=MOST_CHOICES)?.unwrap_or(1) as u32;
    let stop = parse_stop(fields, "stop")?;
    let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = parse_stream_options(fields, stream, ignored)?;
    let format = format::parse(fields, ignored)?;
    if format.is_some() && ignore_eos {
        return Err(fields.unsupported(
            "ignore_eos",
            "an answer of a certain form ends where that is complete, leave it out",
        ));
    }
    Ok(Knobs {
        sampling,
        seeded: seed.is_some(),
        max_tokens: None,
        stop,
        ignore_eos,
        n,
        stream,
        include_usage,
        format,
    })
}

fn parse_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let wrong = || {
        ApiError::bad_field(
            "logit_bias",
            format!(
                "\"logit_bias\" must map token ids to numbers from -100 to 100, at most \
                 {MOST_BIASES} of them."
            ),
        )
    };
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MOST_BIASES => map,
        Some(_) => return Err(wrong()),
    };
    map.iter()
        .map(|(token, bias)| {
            let token = token.parse().map_err(|_| wrong())?;
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            Ok((TokenId(token), bias.ok_or_else(wrong)? as f32))
        })
        .collect()
}

/// Texts that end the answer, under the name that they have in this request.
pub(crate) fn parse_stop(fields: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let stops: Option<Vec<String>> = stops
        .into_iter()
        .map(|stop| match stop {
            Value::String(text) if !text.is_empty() && text.len() <= LONGEST_STOP => Some(text),
            _ => None,
        })
        .collect();
    stops.filter(|stops| stops.len() <= MOST_STOPS).ok_or_else(|| {
        ApiError::bad_field(
            name,
            format!(
                "\"{name}\" must be a string or at most {MOST_STOPS} strings, none empty or \
                 longer than {LONGEST_STOP} bytes."
            ),
        )
    })
}

/// Whether the usage is to follow a stream.
pub(crate) fn parse_stream_options(
    fields: &mut Fields,
    stream: bool,
    ignored: &mut Ignored,
) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::bad_field(
            "stream_options",
            "\"stream_options\" has a meaning only with \"stream\": true; leave it out.",
        ));
    }
    let mut options = Fields::nested(options, "stream_options", "stream_options")?;
    let usage = options.boolean("include_usage")?.unwrap_or(false);
    if options.boolean("include_obfuscation")? == Some(true) {
        ignored.add("stream_options.include_obfuscation".into());
    }
    options.finish(ignored);
    Ok(usage)
}

/// A limit on the answer's length under any of its names.
pub(crate) fn parse_max_tokens(
    fields: &mut Fields,
    names: &[&str],
    least: i64,
) -> Result<Option<u32>, ApiError> {
    let mut limit = None;
    for name in names {
        let value = fields.integer(name, least..=i64::from(u32::MAX))?;
        limit = limit.or(value.map(|value| value as u32));
    }
    Ok(limit)
}
