//! From sequences in the engine to pieces of answers: text that may be sent, and why it ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::StatusCode;
use polder_backend::{SampledToken, TokenId};
use polder_chat::reply::ReplyEvent;
use polder_chat::{TextStream, Tokenizer};
use polder_scheduler::{Event, FinishReason, PromptLogprob, Refusal, Request, RequestId, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::handle::{self, Handle};
use crate::metrics::{Ended, Metrics};
use crate::reply::{Heard, Part, Reply, ReplyForm};
use crate::wire::answer::Usage;
use crate::wire::error::ApiError;

/// So many tokens may wait for their reader; then their sequence pauses.
const MOST_UNREAD: usize = 128;
/// When so many are left it goes on.
const FEW_UNREAD: usize = 64;

/// One answer to make.
#[derive(Debug)]
pub(crate) struct Job {
    /// Which of the prompts it answers.
    pub(crate) prompt: usize,
    pub(crate) request: Request,
    /// Texts that end it.
    pub(crate) stop: Vec<String>,
    /// Begin the answer with the prompt.
    pub(crate) echo: bool,
    /// How the model's text is taken apart; None where all of it is content.
    pub(crate) reply: Option<ReplyForm>,
}

/// A part of one answer; parts of several answers come interleaved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Piece {
    pub(crate) choice: usize,
    /// Content.
    pub(crate) text: String,
    /// What is no content. A piece of a growing answer has either text or one of these.
    pub(crate) besides: Vec<ReplyEvent>,
    /// The tokens whose text begins in `text`.
    pub(crate) tokens: Vec<Judged>,
    pub(crate) finish: Option<Finish>,
}

impl Piece {
    /// Whether it says anything to whoever reads the answer as it grows.
    pub(crate) fn says_something(&self) -> bool {
        let heard = |event: &ReplyEvent| !matches!(event, ReplyEvent::CallEnd { .. });
        !self.text.is_empty() || !self.tokens.is_empty() || self.besides.iter().any(heard)
    }
}

/// A token and what the model thought of it.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) name: Vec<u8>,
    /// None for a prompt's first token.
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(Vec<u8>, f32)>,
    /// Where its text begins, in characters from the start of its piece.
    pub(crate) offset: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it.
    Stop,
    /// The stop string of this number.
    StopString(usize),
    Length,
    /// The model waits for what its calls give.
    ToolCalls,
}

impl Finish {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Answers that are being made. Dropping it ends those that are not done.
#[derive(Debug)]
pub(crate) struct Generation {
    engine: Handle,
    metrics: Arc<Metrics>,
    tokenizer: Arc<Tokenizer>,
    events: UnboundedReceiver<(usize, Event)>,
    choices: Vec<Choice>,
    ready: VecDeque<Piece>,
    usage: Usage,
    started: Instant,
    heard_any: bool,
    /// It was ended before its time.
    hurried: bool,
}

#[derive(Debug)]
struct Choice {
    id: Option<RequestId>,
    prompt: usize,
    /// Tokens of its prompt that did not have to be read for it, once that is known.
    cached: Option<u32>,
    /// Tokens that the engine has sent and nobody has taken.
    unread: Arc<AtomicUsize>,
    text: TextStream,
    reply: Reply,
    /// Sampled tokens whose text was not sent yet, by where it begins.
    pending: VecDeque<(usize, SampledToken)>,
    /// Bytes of text sampled and sent.
    said: usize,
    sent: usize,
    tokens: u64,
    /// Those of them that are thoughts.
    thoughts: u64,
    last_token: Option<Instant>,
    echo: Option<Echo>,
    done: bool,
}

/// A prompt that is to be sent first, once the model has judged all of it.
#[derive(Debug)]
struct Echo {
    prompt: Vec<TokenId>,
    judged: Vec<PromptLogprob>,
    logprobs: bool,
}

impl Generation {
    /// Hands the jobs in and waits until the engine has taken or refused them. `prompt` is what
    /// the usage says about the prompts.
    pub(crate) async fn start(
        engine: Handle,
        metrics: Arc<Metrics>,
        tokenizer: Arc<Tokenizer>,
        jobs: Vec<Job>,
        prompt: u64,
    ) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        let mut choices = Vec::with_capacity(jobs.len());
        let mut sequences: Vec<(Request, Box<dyn Sink>)> = Vec::new();
        let mut submitted = Vec::new();
        let mut ready = VecDeque::new();
        for (index, job) in jobs.into_iter().enumerate() {
            let echo = job.echo.then(|| Echo {
                prompt: job.request.prompt.clone(),
                judged: Vec::new(),
                logprobs: job.request.sampling.logprobs.is_some(),
            });
            let mut choice = Choice {
                id: None,
                prompt: job.prompt,
                cached: None,
                unread: Arc::default(),
                text: match &job.reply {
                    None => TextStream::new(tokenizer.clone()),
                    Some(form) => TextStream::showing(tokenizer.clone(), form.dialect.shown()),
                },
                reply: Reply::new(job.reply.as_ref(), &job.stop),
                pending: VecDeque::new(),
                said: 0,
                sent: 0,
                tokens: 0,
                thoughts: 0,
                last_token: None,
                echo,
                done: false,
            };
            let judges = job.request.prompt_logprobs.is_some() && job.request.prompt.len() > 1;
            if job.request.max_tokens == 0 && !judges {
                // Nothing for the engine to do.
                ready.extend(choice.begin(index, &tokenizer));
                ready.push_back(Piece {
                    choice: index,
                    finish: Some(Finish::Length),
                    ..Piece::default()
                });
                choice.done = true;
            } else {
                let (sender, unread) = (sender.clone(), choice.unread.clone());
                sequences
                    .push((job.request, Box::new(Feed { index, sender, unread, full: false })));
                submitted.push(index);
            }
            choices.push(choice);
        }
        let mut generation = Self {
            engine,
            metrics,
            tokenizer,
            events,
            choices,
            ready,
            usage: Usage { prompt, ..Usage::default() },
            started: Instant::now(),
            heard_any: false,
            hurried: false,
        };
        let waiting = submitted.len();
        if waiting > 0 {
            let ids = generation.engine.submit(sequences);
            for (index, id) in submitted.into_iter().zip(ids) {
                generation.choices[index].id = Some(id);
            }
        }
        for _ in 0..waiting {
            match generation.engine.hear(&mut generation.events).await {
                Some((_, Event::Queued)) => {}
                Some((_, Event::Refused(refusal))) => {
                    // None of them was taken, so that none is given up.
                    generation.choices.iter_mut().for_each(|choice| choice.done = true);
                    return Err(refused(refusal, generation.metrics.soon()));
                }
                _ => return Err(stopped()),
            }
        }
        generation.metrics.prompt_tokens(prompt);
        Ok(generation)
    }

    /// The next piece; None when all answers are complete. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            if self.choices.iter().all(|choice| choice.done) {
                return None;
            }
            let knows = self.hurried;
            match self.engine.hear_or_hurry(&mut self.events, knows).await {
                handle::Heard::Event((index, event)) => {
                    if let Err(error) = self.hear(index, event) {
                        return Some(Err(error));
                    }
                }
                handle::Heard::Hurry if self.end_here() => {}
                handle::Heard::Hurry | handle::Heard::Ended => return Some(Err(stopped())),
            }
        }
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        let reasoning = self.choices.iter().map(|choice| choice.thoughts).sum();
        Usage { reasoning, cached: self.cached(), ..self.usage }
    }

    /// Prompt tokens that were read for nobody. A prompt counts once, however many answers it gets: what one of them had to
    /// read, the others often find.
    fn cached(&self) -> u64 {
        let mut least: HashMap<usize, u32> = HashMap::new();
        for choice in &self.choices {
            if let Some(cached) = choice.cached {
                let least = least.entry(choice.prompt).or_insert(cached);
                *least = cached.min(*least);
            }
        }
        least.into_values().map(u64::from).sum()
    }

    /// Ends every answer where it is, as if it had reached its limit. False where nothing was said yet: that is no answer.
    fn end_here(&mut self) -> bool {
        self.hurried = true;
        if !self.heard_any {
            return false;
        }
        for (index, choice) in self.choices.iter_mut().enumerate().filter(|(_, c)| !c.done) {
            if let Some(id) = choice.id {
                self.engine.cancel(id);
            }
            self.ready.extend(choice.begin(index, &self.tokenizer));
            self.ready.extend(choice.finish(index, FinishReason::Length, &self.tokenizer));
            self.metrics.ended(Ended::Length, self.started.elapsed());
        }
        true
    }

    fn hear(&mut self, index: usize, event: Event) -> Result<(), ApiError> {
        let choice = &mut self.choices[index];
        if choice.done {
            return Ok(());
        }
        match event {
            Event::Queued => {}
            Event::Refused(refusal) => return Err(refused(refusal, self.metrics.soon())),
            Event::Failed => return Err(stopped()),
            // Nobody asks for one here.
            Event::Vector(_) => {}
            Event::Unusable => {
                choice.done = true;
                return Err(unusable());
            }
            Event::Stuck(why) => {
                choice.done = true;
                return Err(stuck(&why));
            }
            Event::Prompt(judged) => {
                if let Some(echo) = &mut choice.echo {
                    echo.judged.extend(judged);
                }
            }
            Event::Token(token) => {
                if choice.unread.fetch_sub(1, Ordering::SeqCst) == FEW_UNREAD + 1 {
                    self.engine.wake();
                }
                self.ready.extend(choice.begin(index, &self.tokenizer));
                let now = Instant::now();
                match choice.last_token.replace(now) {
                    Some(before) => self.metrics.inter_token(now - before),
                    None if !self.heard_any => self.metrics.first_token(now - self.started),
                    None => {}
                }
                self.heard_any = true;
                self.usage.completion += 1;
                self.metrics.completion_tokens(1);
                self.ready.extend(choice.push(index, token, &self.tokenizer));
                if let (true, Some(id)) = (choice.done, choice.id) {
                    self.engine.cancel(id);
                    self.metrics.ended(Ended::Stop, self.started.elapsed());
                }
            }
            Event::Begun { cached } => choice.cached = Some(cached),
            Event::Finished { reason, sampled } => {
                self.ready.extend(choice.begin(index, &self.tokenizer));
                // A stop token was sampled but not delivered.
                let more = u64::from(sampled).saturating_sub(choice.tokens);
                self.usage.completion += more;
                self.metrics.completion_tokens(more);
                let pieces = choice.finish(index, reason, &self.tokenizer);
                let how = match pieces.iter().find_map(|piece| piece.finish) {
                    Some(Finish::Length) => Ended::Length,
                    _ => Ended::Stop,
                };
                self.metrics.ended(how, self.started.elapsed());
                self.ready.extend(pieces);
            }
        }
        Ok(())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        for choice in self.choices.iter().filter(|choice| !choice.done) {
            if let Some(id) = choice.id {
                self.engine.cancel(id);
                self.metrics.ended(Ended::Abort, self.started.elapsed());
            }
        }
    }
}

/// Where the engine leaves the events of one choice.
struct Feed {
    index: usize,
    sender: UnboundedSender<(usize, Event)>,
    unread: Arc<AtomicUsize>,
    full: bool,
}

impl Sink for Feed {
    fn hear(&mut self, event: Event) -> bool {
        if matches!(event, Event::Token(_)) {
            self.unread.fetch_add(1, Ordering::SeqCst);
        }
        self.sender.send((self.index, event)).is_ok()
    }

    fn has_room(&mut self) -> bool {
        let limit = if self.full { FEW_UNREAD + 1 } else { MOST_UNREAD };
        self.full = self.unread.load(Ordering::SeqCst) >= limit;
        !self.full
    }
}

impl Choice {
    /// The prompt, where it is to come first and has not come yet.
    fn begin(&mut self, index: usize, tokenizer: &Arc<Tokenizer>) -> Option<Piece> {
        let echo = self.echo.take()?;
        let text = tokenizer.decode(&echo.prompt);
        let mut tokens = Vec::new();
        if echo.logprobs {
            let mut offset = 0;
            let mut read = TextStream::new(tokenizer.clone());
            let mut judged = echo.judged.into_iter();
            for (position, token) in echo.prompt.iter().enumerate() {
                let opinion = if position == 0 { None } else { judged.next() };
                tokens.push(Judged {
                    name: tokenizer.name(*token).to_vec(),
                    logprob: opinion.as_ref().map(|opinion| opinion.logprob),
                    top: named(opinion.iter().flat_map(|opinion| &opinion.top), tokenizer),
                    offset,
                });
                offset += read.push_named(*token).chars().count();
            }
        }
        Some(Piece { choice: index, text, tokens, ..Piece::default() })
    }

    fn push(&mut self, index: usize, token: SampledToken, tokenizer: &Tokenizer) -> Vec<Piece> {
        self.tokens += 1;
        let text = self.text.push(token.token);
        self.pending.push_back((self.said, token));
        self.said += text.len();
        let heard = self.reply.push(text);
        self.thoughts += u64::from(heard.thought);
        self.done = heard.finish.is_some();
        self.pieces(index, heard, tokenizer)
    }

    fn finish(&mut self, index: usize, reason: FinishReason, tokenizer: &Tokenizer) -> Vec<Piece> {
        self.done = true;
        let rest = self.text.finish();
        self.said += rest.len();
        let reason = match reason {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        };
        let heard = self.reply.finish(rest, reason);
        self.pieces(index, heard, tokenizer)
    }

    /// What was heard, in pieces, with the tokens that it is made of.
    fn pieces(&mut self, index: usize, heard: Heard, tokenizer: &Tokenizer) -> Vec<Piece> {
        let Heard { parts, finish, .. } = heard;
        let said_nothing = parts.is_empty() && finish.is_none();
        if said_nothing {
            return Vec::new();
        }
        if self.reply.is_plain() {
            let content = |part| match part {
                Part::Content(text) => text,
                Part::Beside(_) => String::new(),
            };
            let text = parts.into_iter().map(content).collect();
            return vec![self.send(index, text, finish, tokenizer)];
        }
        let piece = |part| match part {
            Part::Content(text) => Piece { choice: index, text, ..Piece::default() },
            Part::Beside(event) => {
                Piece { choice: index, besides: vec![event], ..Piece::default() }
            }
        };
        let mut pieces: Vec<Piece> = parts.into_iter().map(piece).collect();
        if pieces.is_empty() {
            pieces.push(Piece { choice: index, ..Piece::default() });
        }
        // Which token made which part is not told: they come in their order, marks and thoughts too.
        pieces[0].tokens =
            self.pending.drain(..).map(|(_, token)| judged(&token, 0, tokenizer)).collect();
        if let Some(last) = pieces.last_mut() {
            last.finish = finish;
        }
        pieces
    }

    /// A piece with this text and the tokens that begin in it.
    fn send(
        &mut self,
        index: usize,
        text: String,
        finish: Option<Finish>,
        tokenizer: &Tokenizer,
    ) -> Piece {
        let start = self.sent;
        self.sent += text.len();
        let all = finish.is_some() && self.sent == self.said;
        let mut tokens = Vec::new();
        while let Some((at, token)) = self.pending.pop_front_if(|(at, _)| all || *at < self.sent) {
            // A token within a stop string that was cut off begins at its end.
            let offset = text[..at.saturating_sub(start).min(text.len())].chars().count();
            tokens.push(judged(&token, offset, tokenizer));
        }
        Piece { choice: index, text, tokens, finish, ..Piece::default() }
    }
}

fn judged(token: &SampledToken, offset: usize, tokenizer: &Tokenizer) -> Judged {
    Judged {
        name: tokenizer.name(token.token).to_vec(),
        logprob: token.logprob,
        top: named(token.top.iter(), tokenizer),
        offset,
    }
}

fn named<'a>(
    top: impl Iterator<Item = &'a (TokenId, f32)>,
    tokenizer: &Tokenizer,
) -> Vec<(Vec<u8>, f32)> {
    top.map(|(token, logprob)| (tokenizer.name(*token).to_vec(), *logprob)).collect()
}

/// `soon`: seconds after which a place is likely to be free.
pub(crate) fn refused(refusal: Refusal, soon: u32) -> ApiError {
    match refusal {
        Refusal::QueueFull { waiting } => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{waiting} requests are waiting, as many as may wait; try again in {soon} s."),
        )
        .code("queue_full")
        .retry_after(soon),
        Refusal::ShareFull { waiting } => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "{waiting} of your requests are waiting, as many as one member may have now; try \
                 again when some of them are answered."
            ),
        )
        .code("queue_full")
        .retry_after(soon),
        Refusal::TooLong { prompt, capacity } => too_long(prompt, capacity),
        Refusal::Stopping => stopped(),
        other => ApiError::bad_field("prompt", format!("{other}.")),
    }
}

/// The refusal of a prompt that leaves no room for an answer.
pub(crate) fn too_long(prompt: usize, capacity: u32) -> ApiError {
    ApiError::bad_request(format!(
        "The prompt has {prompt} tokens, but this model takes {capacity} in all, prompt and answer \
         together; send a shorter prompt."
    ))
    .code("context_length_exceeded")
}

/// As [`too_long`], where the tokens were not counted.
pub(crate) fn surely_too_long(least: usize, capacity: u32) -> ApiError {
    ApiError::bad_request(format!(
        "The prompt has at least {least} tokens, but this model takes {capacity} in all, prompt \
         and answer together; send a much shorter prompt."
    ))
    .code("context_length_exceeded")
}

pub(crate) fn unusable() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "The model computed numbers that are no probabilities, so this answer cannot go on; its \
         weights may be damaged, tell the steward.",
    )
    .code("model_output_unusable")
}

fn stuck(why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "The answer cannot go on in the form that was asked for: {why}; ask for a simpler form."
    ))
    .code("format_stuck")
}

pub(crate) fn stopped() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "The engine stopped while this request was in it; send it again in a few seconds.",
    )
    .code("engine_stopped")
    .retry_after(5)
}
