//! An engine's answer on its way to a client, which we can end at any moment.
//!
//! The answer is pulled only as fast as the client takes it, so nothing piles up here. Because a
//! client that takes nothing also polls nothing, ending the work cannot be left to it: the engine's
//! half sits behind a lock that the watchman can empty too.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use polder_upstream::{Metered, WireBody};
use tokio::time::Instant;

use crate::errors::{ApiError, Dialect};
use crate::line::EngineBody;
use crate::metrics::StreamGuard;
use crate::relay::Caller;

/// The trailer in which an engine says what an answer used: `prompt=N,completion=M`.
const USAGE: &str = "x-polder-usage";

/// No question and no answer has more tokens: an engine that says so is wrong, or was taken over, and its figures must
/// not break the books.
pub(crate) const MOST_TOKENS: u64 = 1 << 30;

/// What somebody answers, as they say it. Dropping it stops their work.
pub(crate) enum AnswerBody {
    /// An engine of this box.
    Engine(EngineBody),
    /// A server elsewhere.
    Elsewhere(Box<Metered<WireBody>>),
}

impl AnswerBody {
    /// The error says nothing but that it broke off.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        match self {
            Self::Engine(body) => Pin::new(body).poll_frame(cx).map_err(drop),
            Self::Elsewhere(body) => Pin::new(&mut **body).poll_frame(cx).map_err(|error| {
                log::warn!("an answer from elsewhere broke off: {error}");
            }),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Engine(body) => body.size_hint(),
            // What passes is not always what came.
            Self::Elsewhere(_) => SizeHint::default(),
        }
    }

    fn broke(&self) -> Ending {
        match self {
            Self::Engine(_) => Ending::Broke,
            Self::Elsewhere(_) => Ending::BrokeElsewhere,
        }
    }
}

/// How often the watchman looks at every answer that is under way.
const ROUND: Duration = Duration::from_millis(100);

/// Why an answer ended before the engine was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The key was revoked, or its owner disabled.
    Revoked,
    /// The key's time ran out.
    Expired,
    /// The member, who has no key, may not use the box any more.
    SentAway,
    /// The member took back that the app, which asks in their name, may.
    TakenBack,
    /// The client took nothing for too long.
    Stalled,
    /// The engine broke off.
    Broke,
    /// A server elsewhere did.
    BrokeElsewhere,
}

impl Ending {
    /// As the client hears it.
    pub(crate) fn to_error(self) -> ApiError {
        match self {
            Self::Revoked => ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_request_error",
                "key_revoked",
                "this API key was revoked while it was in use; make a new one on your page of the box",
            ),
            Self::Expired => ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_request_error",
                "key_expired",
                "this API key expired while it was in use; make a new one on your page of the box",
            ),
            Self::SentAway => ApiError::new(
                StatusCode::FORBIDDEN,
                "invalid_request_error",
                "member_sent_away",
                "you may not use this box any more, so the answer was ended; ask a steward",
            ),
            Self::TakenBack => ApiError::new(
                StatusCode::FORBIDDEN,
                "invalid_request_error",
                "app_taken_back",
                "this app may not ask in your name any more, so the answer was ended; sign in to the box at the app again",
            ),
            Self::Stalled => ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request_error",
                "client_too_slow",
                "nobody took the answer for too long, so it was ended; ask again",
            ),
            Self::Broke => ApiError::new(
                StatusCode::BAD_GATEWAY,
                "server_error",
                "engine_stopped",
                "the engine stopped in the middle of this answer; ask again in a few seconds",
            ),
            Self::BrokeElsewhere => ApiError::new(
                StatusCode::BAD_GATEWAY,
                "server_error",
                "elsewhere_stopped",
                "the server elsewhere that was answering stopped in the middle; ask again in a few seconds",
            ),
        }
    }
}

/// The engine's half of an answer.
pub(crate) struct Leash {
    held: Mutex<Held>,
}

struct Held {
    upstream: Option<AnswerBody>,
    ending: Option<Ending>,
    waker: Option<Waker>,
    /// When a piece was handed out that has not been followed by a wish for another.
    handed: Option<Instant>,
    /// On whose account, and of which model, until it is counted.
    account: Option<(Caller, String)>,
    seen: EventCounter,
    used: Used,
}

impl Held {
    /// The answer is over, however: stops the engine, counts what was used and gives back the
    /// caller's place among the requests at once. The second time nothing is left to do.
    fn settle(&mut self) {
        // Dropping the engine's half closes its connection: it stops working on this.
        self.upstream = None;
        if let Some((caller, model)) = self.account.take() {
            let completion = self.used.completion.unwrap_or(self.seen.events);
            caller.count(&model, self.used.prompt, completion);
        }
    }
}

impl Leash {
    /// An answer of `model` to `caller`, whose prompt has this many tokens.
    pub(crate) fn new(
        upstream: AnswerBody,
        caller: Caller,
        model: String,
        prompt: u64,
    ) -> Arc<Self> {
        let held = Held {
            upstream: Some(upstream),
            ending: None,
            waker: None,
            // Its head, of which nobody says that anybody takes it.
            handed: Some(Instant::now()),
            account: Some((caller, model)),
            seen: EventCounter::default(),
            used: Used { prompt, completion: None },
        };
        Arc::new(Self { held: Mutex::new(held) })
    }

    /// Ends the answer if its caller may not have it any more, or takes nothing for `stall`. False
    /// when it is over.
    fn inspect(&self, stall: Duration) -> bool {
        let mut held = self.held();
        let Some((caller, _)) = &held.account else { return false };
        let stalled = || held.handed.is_some_and(|at| at.elapsed() >= stall);
        let Some(ending) = caller.ending().or_else(|| stalled().then_some(Ending::Stalled)) else {
            return true;
        };
        // Now, not when the client's half goes: a client that takes nothing may keep that for long.
        held.settle();
        held.ending = Some(ending);
        if let Some(waker) = held.waker.take() {
            waker.wake();
        }
        false
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece: of the engine's answer, or how it ended.
    fn poll(&self, cx: &mut Context<'_>, events: bool) -> Poll<Option<Result<Bytes, Ending>>> {
        let mut held = self.held();
        let held = &mut *held;
        held.handed = None;
        if let Some((caller, _)) = &held.account
            && let Some(ending) = caller.ending()
        {
            held.settle();
            held.ending = Some(ending);
        }
        if let Some(ending) = held.ending {
            return Poll::Ready(Some(Err(ending)));
        }
        let Some(upstream) = &mut held.upstream else { return Poll::Ready(None) };
        let next = loop {
            match upstream.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => break Poll::Ready(Some(Ok(data))),
                    Err(frame) => {
                        let told = frame.trailers_ref().and_then(used_in);
                        held.used = told.unwrap_or(held.used);
                    }
                },
                Poll::Ready(Some(Err(()))) => break Poll::Ready(Some(Err(()))),
                Poll::Ready(None) => break Poll::Ready(None),
                Poll::Pending => break Poll::Pending,
            }
        };
        match next {
            Poll::Pending => {
                held.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Poll::Ready(Some(Ok(data))) => {
                held.handed = Some(Instant::now());
                if events {
                    held.seen.take(&data);
                }
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Some(Err(()))) => {
                let ending = upstream.broke();
                held.upstream = None;
                Poll::Ready(Some(Err(ending)))
            }
            Poll::Ready(None) => {
                held.upstream = None;
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.held().upstream.as_ref().map(AnswerBody::size_hint).unwrap_or_default()
    }
}

/// Goes round the answers that are under way. One task for all of them, and none while there are
/// none: a task and a timer for each cost more than a short answer itself.
pub(crate) struct Watchman {
    stall: Duration,
    beat: Mutex<Beat>,
}

#[derive(Default)]
struct Beat {
    leashes: Vec<Weak<Leash>>,
    walking: bool,
}

impl Watchman {
    /// Ends answers of which a client takes nothing for `stall`.
    pub(crate) fn new(stall: Duration) -> Arc<Self> {
        Arc::new(Self { stall, beat: Mutex::default() })
    }

    /// From now on, looks at this answer too.
    pub(crate) fn watch(self: &Arc<Self>, leash: &Arc<Leash>) {
        let mut beat = self.beat();
        beat.leashes.push(Arc::downgrade(leash));
        if !beat.walking {
            beat.walking = true;
            tokio::spawn(self.clone().walk());
        }
    }

    async fn walk(self: Arc<Self>) {
        let pause = ROUND.min(self.stall / 4);
        loop {
            tokio::time::sleep(pause).await;
            let mut leashes = std::mem::take(&mut self.beat().leashes);
            leashes.retain(|leash| leash.upgrade().is_some_and(|l| l.inspect(self.stall)));
            let mut beat = self.beat();
            beat.leashes.append(&mut leashes);
            if beat.leashes.is_empty() {
                beat.walking = false;
                return;
            }
        }
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's half of an answer: an HTTP body.
pub(crate) struct Relayed {
    leash: Arc<Leash>,
    /// For server-sent events, which can say at their end that something went wrong: whose.
    events: Option<Dialect>,
    done: bool,
    _stream: StreamGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    prompt: u64,
    completion: Option<u64>,
}

impl Relayed {
    pub(crate) fn new(leash: Arc<Leash>, events: Option<Dialect>, stream: StreamGuard) -> Self {
        Self { leash, events, done: false, _stream: stream }
    }
}

impl http_body::Body for Relayed {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let ending = match this.leash.poll(cx, this.events.is_some()) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Poll::Ready(None) => {
                this.done = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(ending))) => ending,
        };
        this.done = true;
        let Some(dialect) = this.events else { return Poll::Ready(Some(Err(BrokenOff))) };
        // A blank line first, because the engine may have stopped inside an event.
        let gap = if this.leash.held().seen.between_events() { "" } else { "\n\n" };
        let last = format!("{gap}{}", ending.to_error().to_event(dialect));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(last)))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> http_body::SizeHint {
        // Events may grow an error at their end.
        if self.events.is_some() { http_body::SizeHint::default() } else { self.leash.size_hint() }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.leash.held().settle();
    }
}

/// The answer ended before it was complete; the connection has to say so by breaking.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct BrokenOff;

fn used_in(trailers: &HeaderMap) -> Option<Used> {
    let text = trailers.get(USAGE)?.to_str().ok()?;
    let field = |name: &str| {
        let parts = text.split(',').map(str::trim);
        let said = |part: &str| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok();
        parts.filter_map(said).next().map(|tokens| tokens.min(MOST_TOKENS))
    };
    Some(Used { prompt: field("prompt")?, completion: Some(field("completion")?) })
}

/// Counts the events that went through, of which each carries one token, for an answer that ends
/// before the engine could say what it used.
#[derive(Debug, Default)]
struct EventCounter {
    events: u64,
    /// Bytes of `data:` matched at the beginning of this line; `None` elsewhere in a line.
    matched: MatchState,
    /// Line ends seen in a row.
    newlines: u8,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum MatchState {
    #[default]
    LineStart,
    Matched(u8),
    Elsewhere,
}

impl EventCounter {
    fn take(&mut self, data: &[u8]) {
        const FIELD: &[u8] = b"data: {";
        for &byte in data {
            if byte == b'\n' {
                self.newlines = (self.newlines + 1).min(2);
                self.matched = MatchState::LineStart;
                continue;
            }
            if byte == b'\r' {
                continue;
            }
            self.newlines = 0;
            let at = match self.matched {
                MatchState::LineStart => 0,
                MatchState::Matched(n) => usize::from(n),
                MatchState::Elsewhere => continue,
            };
            self.matched = match FIELD[at] == byte {
                true if at + 1 == FIELD.len() => {
                    self.events += 1;
                    MatchState::Elsewhere
                }
                true => MatchState::Matched(at as u8 + 1),
                false => MatchState::Elsewhere,
            };
        }
    }

    fn between_events(&self) -> bool {
        self.newlines >= 2 || (self.events == 0 && self.matched == MatchState::LineStart)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_trailer_says_what_was_used() {
        let told = |text: &str| {
            let mut trailers = HeaderMap::new();
            trailers.insert(USAGE, text.parse().unwrap());
            used_in(&trailers).map(|used| (used.prompt, used.completion.unwrap()))
        };
        assert_eq!(told("prompt=12,completion=34"), Some((12, 34)));
        assert_eq!(told("completion=34, prompt=12"), Some((12, 34)));
        let most = format!("prompt={},completion={}", u64::MAX, i64::MAX);
        assert_eq!(told(&most), Some((MOST_TOKENS, MOST_TOKENS)));
        for bad in ["", "prompt=12", "prompt=-1,completion=2", "prompt=1;completion=2", "x"] {
            assert_eq!(told(bad), None, "{bad}");
        }
    }

    #[test]
    fn events_are_counted_and_the_end_mark_is_not() {
        let mut seen = EventCounter::default();
        assert!(seen.between_events());
        seen.take(b"data: {\"a\":\"data: {\"}\n\nda");
        assert!(!seen.between_events());
        seen.take(b"ta: {}\r\n\r\n: ping\n\ndata: [DONE]\n\n");
        assert_eq!(seen.events, 2);
        assert!(seen.between_events());
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(text in "(data: \\{x\\}\n\n|: c\n|data|\r|\n){0,20}", cut in 0usize..200) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let (mut whole, mut parts) = (EventCounter::default(), EventCounter::default());
            whole.take(bytes);
            parts.take(&bytes[..cut]);
            parts.take(&bytes[cut..]);
            prop_assert_eq!(whole.events, parts.events);
            prop_assert_eq!(whole.between_events(), parts.between_events());
        }
    }
}
