//! What all endpoints that write have in common once their prompts are tokens.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use polder_backend::TokenId;
use polder_scheduler::{Grammar, Request};

use crate::app::{App, Caller, Engine, aside, check_tokens, name_ignored, read_body};
use crate::generate::{Generation, Job};
use crate::reply::ReplyForm;
use crate::stream::{self, Wording};
use crate::wire::answer::{Envelope, Kind};
use crate::wire::chunks::Chunks;
use crate::wire::error::ApiError;
use crate::wire::knobs::Knobs;

/// Prompts as tokens, and how to answer them.
pub(crate) struct Ask {
    pub(crate) words: Words,
    pub(crate) prompts: Vec<Vec<TokenId>>,
    pub(crate) knobs: Knobs,
    pub(crate) echo: bool,
    /// How the model's text is taken apart; None where all of it is content.
    pub(crate) reply: Option<ReplyForm>,
    pub(crate) ignored: Vec<String>,
}

/// How the answer is worded, once it is known what stands above it.
pub(crate) type Words = Box<dyn FnOnce(Head) -> Box<dyn Wording> + Send>;

/// What stands above an answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// 32 hexadecimal digits.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: usize,
    pub(crate) prompt_tokens: u64,
}

/// Chunks as chat and plain completions send them.
pub(crate) fn chunks(kind: Kind, knobs: &Knobs) -> Words {
    let (logprobs, include_usage) = (knobs.sampling.logprobs.is_some(), knobs.include_usage);
    Box::new(move |head| {
        let id = match kind {
            Kind::Chat => format!("chatcmpl-{}", head.id),
            Kind::Completion => format!("cmpl-{}", head.id),
        };
        let Head { created, model, .. } = head;
        let envelope = Envelope { kind, id, created, model, logprobs, include_usage };
        Box::new(Chunks::new(envelope, head.choices))
    })
}

/// Reads a body with `read` and answers every prompt in it `n` times, as a stream or at once.
pub(crate) async fn answer(
    app: Arc<App>,
    headers: &HeaderMap,
    body: Body,
    read: impl FnOnce(&App, &Engine, &[u8], bool) -> Result<Ask, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let engine = app.engine()?.clone();
    let caller = Caller::of(headers);
    let body = read_body(body).await?;
    let (this, strict) = (app.clone(), caller.strict);
    let reader = engine.clone();
    let (ask, grammar) = aside(&app, body, move |body| {
        let ask = read(&this, &reader, body, strict)?;
        let grammar = ask.knobs.format.as_ref().map(|format| format.compile(&reader.grammars));
        Ok((ask, grammar.transpose()?))
    })
    .await?;
    let Ask { words, prompts, knobs, echo, reply, ignored } = ask;
    let choices = check_choices(&engine, prompts.len(), &knobs)?;
    let biased: Vec<TokenId> = knobs.sampling.bias.iter().map(|(token, _)| *token).collect();
    check_tokens(&biased, engine.vocab, "logit_bias")?;

    let prompt_tokens: u64 = prompts.iter().map(|prompt| prompt.len() as u64).sum();
    let wording = words(Head {
        id: new_id()?,
        created: now(),
        model: app.served_as.clone(),
        choices,
        prompt_tokens,
    });
    let ends = engine.tokenizer.ends();
    let jobs = jobs(&caller, prompts, &knobs, echo, reply, ends, grammar.as_ref())?;
    let generation = Generation::start(
        engine.handle.clone(),
        app.metrics.clone(),
        engine.tokenizer.clone(),
        jobs,
        prompt_tokens,
    )
    .await?;
    let trailers = stream::takes_trailers(headers);
    let mut response = match knobs.stream {
        true => stream::events(generation, wording, trailers, stream::KEEP_ALIVE),
        false => stream::whole(generation, wording, trailers).await?,
    };
    name_ignored(&app, &mut response, &ignored);
    name_prompt(&mut response, prompt_tokens);
    Ok(response)
}

/// Tells the gateway how long the prompt was.
pub(crate) fn name_prompt(response: &mut Response, tokens: u64) {
    let name = HeaderName::from_static("x-polder-prompt-tokens");
    response.headers_mut().insert(name, HeaderValue::from(tokens));
}

/// 32 hexadecimal digits that nobody had before.
pub(crate) fn new_id() -> Result<String, ApiError> {
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

/// How many answers are asked for, if they are not too many.
pub(crate) fn check_choices(
    engine: &Engine,
    prompts: usize,
    knobs: &Knobs,
) -> Result<usize, ApiError> {
    let choices = prompts.saturating_mul(knobs.n as usize);
    if choices <= engine.most_sequences {
        return Ok(choices);
    }
    Err(ApiError::bad_field(
        "n",
        format!(
            "This request asks for {choices} answers, \"n\" for each prompt, but one may ask for \
             {}; send several requests.",
            engine.most_sequences
        ),
    ))
}

/// One sequence for each answer. Answers to one prompt differ by their seeds.
fn jobs(
    caller: &Caller,
    prompts: Vec<Vec<TokenId>>,
    knobs: &Knobs,
    echo: bool,
    reply: Option<ReplyForm>,
    ends: &[TokenId],
    grammar: Option<&Arc<dyn Grammar>>,
) -> Result<Vec<Job>, ApiError> {
    let mut jobs = Vec::new();
    let stop_tokens: Arc<[TokenId]> = if knobs.ignore_eos { [].into() } else { ends.into() };
    for (number, prompt) in prompts.into_iter().enumerate() {
        let base = if knobs.seeded { knobs.sampling.seed } else { random()? };
        for choice in 0..knobs.n {
            let mut sampling = knobs.sampling.clone();
            sampling.seed = base.wrapping_add(choice.into());
            jobs.push(Job {
                prompt: number,
                request: Request {
                    member: caller.member.clone(),
                    claim: caller.claim,
                    prompt: prompt.clone(),
                    max_tokens: knobs.max_tokens.unwrap_or(u32::MAX),
                    stop_tokens: stop_tokens.clone(),
                    grammar: grammar.cloned(),
                    prompt_logprobs: sampling.logprobs.filter(|_| echo),
                    pooling: None,
                    sampling,
                },
                stop: knobs.stop.clone(),
                echo,
                reply: reply.clone(),
            });
        }
    }
    Ok(jobs)
}

fn random() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The machine gives no random numbers; tell the steward.",
        )
    })
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
