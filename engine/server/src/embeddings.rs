//! `POST /v1/embeddings`: vectors of texts, from the hidden states of the model that is served.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use polder_backend::{Sampling, TokenId};
use polder_scheduler::{Event, Pooling, Request, RequestId, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::answering::name_prompt;
use crate::app::{App, Caller, Engine, aside, check_tokens, name_ignored, read_body};
use crate::completions::tokens_of;
use crate::generate::{refused, stopped, too_long, unusable};
use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::stream;
use crate::wire::answer::Usage;
use crate::wire::completions::Prompt;
use crate::wire::embeddings::{EmbeddingsRequest, answer as worded, normalised, parse_embeddings};
use crate::wire::error::ApiError;

/// Texts that are handed in together: enough to fill steps, and few beside those of others.
const TOGETHER: usize = 8;

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let engine = app.engine()?.clone();
    let caller = Caller::of(&headers);
    let body = read_body(body).await?;
    let (this, reader, strict) = (app.clone(), engine.clone(), caller.strict);
    let (request, texts) =
        aside(&app, body, move |body| read(&this, &reader, body, strict)).await?;
    let prompt: u64 = texts.iter().map(|text| text.len() as u64).sum();

    let mut vectors = Vec::with_capacity(texts.len());
    let mut cached = 0;
    for texts in texts.chunks(TOGETHER.min(engine.most_sequences)) {
        let mut wave = Wave::start(&engine.handle, &caller, texts, request.pooling);
        cached += wave.finish(&mut vectors, &app.metrics).await?;
        app.metrics.prompt_tokens(texts.iter().map(|text| text.len() as u64).sum());
        check_dimensions(&request, &vectors)?;
    }
    let body = worded(&app.served_as, &vectors, request.base64, prompt).to_string();
    let trailers = stream::takes_trailers(&headers);
    let mut response =
        stream::json(Bytes::from(body), Usage { prompt, cached, ..Usage::default() }, trailers);
    name_ignored(&app, &mut response, &request.ignored);
    name_prompt(&mut response, prompt);
    Ok(response)
}

fn read(
    app: &App,
    engine: &Engine,
    body: &[u8],
    strict: bool,
) -> Result<(EmbeddingsRequest, Vec<Vec<TokenId>>), ApiError> {
    let mut request = parse_embeddings(body, strict)?;
    app.check_model(&request.model)?;
    let capacity = engine.handle.capacity();
    let mut texts = Vec::with_capacity(request.inputs.len());
    for input in std::mem::take(&mut request.inputs) {
        let tokens = match input {
            Prompt::Tokens(tokens) => {
                check_tokens(&tokens, engine.vocab, "input")?;
                tokens
            }
            Prompt::Text(text) => tokens_of(engine, &text, "input")?,
        };
        if tokens.is_empty() {
            return Err(ApiError::bad_field(
                "input",
                "\"input\" holds an empty text; send at least one character or token.",
            ));
        }
        if tokens.len() > capacity as usize {
            return Err(too_long(tokens.len(), capacity));
        }
        texts.push(tokens);
    }
    Ok((request, texts))
}

/// How long a model's vectors are shows in the first one.
fn check_dimensions(request: &EmbeddingsRequest, vectors: &[Vec<f32>]) -> Result<(), ApiError> {
    let length = vectors.first().map_or(0, Vec::len);
    match request.dimensions {
        Some(asked) if asked != length as i64 => Err(ApiError::bad_field(
            "dimensions",
            format!(
                "\"dimensions\" is {asked}, but this model's vectors have {length}, which cannot be \
                 shortened; leave it out."
            ),
        )
        .code("unsupported_parameter")),
        _ => Ok(()),
    }
}

/// Texts that are read at the same time. Dropping it ends those that are not done.
struct Wave {
    engine: Handle,
    ids: Vec<RequestId>,
    events: UnboundedReceiver<(usize, Event)>,
}

impl Wave {
    fn start(engine: &Handle, caller: &Caller, texts: &[Vec<TokenId>], pooling: Pooling) -> Self {
        let (sender, events) = unbounded_channel();
        let sequences = texts.iter().enumerate().map(|(index, text)| {
            let request = Request {
                member: caller.member.clone(),
                claim: caller.claim,
                prompt: text.clone(),
                max_tokens: 0,
                stop_tokens: [].into(),
                sampling: Sampling::greedy(),
                prompt_logprobs: None,
                grammar: None,
                pooling: Some(pooling),
            };
            let sender = sender.clone();
            let sink = move |event| sender.send((index, event)).is_ok();
            (request, Box::new(sink) as Box<dyn Sink>)
        });
        let ids = engine.submit(sequences.collect());
        Self { engine: engine.clone(), ids, events }
    }

    /// Appends every text's vector, in order; how many tokens did not have to be read.
    async fn finish(
        &mut self,
        vectors: &mut Vec<Vec<f32>>,
        metrics: &Metrics,
    ) -> Result<u64, ApiError> {
        let first = vectors.len();
        vectors.resize(first + self.ids.len(), Vec::new());
        let (mut left, mut known) = (self.ids.len(), 0);
        while left > 0 {
            match self.engine.hear(&mut self.events).await {
                Some((index, Event::Vector(vector))) => {
                    vectors[first + index] = normalised(&vector)
                }
                Some((_, Event::Begun { cached })) => known += u64::from(cached),
                Some((_, Event::Finished { .. })) => left -= 1,
                Some((_, Event::Queued | Event::Prompt(_) | Event::Token(_))) => {}
                Some((_, Event::Refused(refusal))) => return Err(refused(refusal, metrics.soon())),
                Some((_, Event::Unusable | Event::Stuck(_))) => return Err(unusable()),
                Some((_, Event::Failed)) | None => return Err(stopped()),
            }
        }
        Ok(known)
    }
}

impl Drop for Wave {
    fn drop(&mut self) {
        // Those that are done are fine.
        self.ids.iter().for_each(|id| self.engine.cancel(*id));
    }
}
