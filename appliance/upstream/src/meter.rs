//! An answer on its way through, which counts what it used and says so at its end, once, however it ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use crate::price::Price;
use crate::usage::{Listener, Usage};

/// The trailer in which an answer says what it used, as our own engine's do.
const USAGE: &str = "x-polder-usage";

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What it used.
    pub usage: Usage,
    /// The server said so; otherwise it is an estimate.
    pub told: bool,
    /// The server said what it read, at least.
    pub told_prompt: bool,
    /// It came to its end.
    pub complete: bool,
}

/// What becomes of an answer on its way.
pub struct Meter {
    /// It comes in events.
    pub events: bool,
    /// Leave out the event that only says what was used.
    pub hide_usage: bool,
    /// What the question had, by the look of it.
    pub prompt: u64,
    /// What must not reach a client.
    pub secret: Option<String>,
    /// What it costs: of figures that differ the dearer count.
    pub price: Price,
    /// Nothing for so long is an end.
    pub idle: Duration,
    /// Hears how it ended, once.
    pub over: Box<dyn FnOnce(Ended) + Send>,
}

/// An answer that is counted. Dropped before its end it is counted by what was seen.
pub struct Metered<B> {
    body: Option<B>,
    listener: Listener,
    prompt: u64,
    idle: Duration,
    until: Pin<Box<Sleep>>,
    over: Option<Box<dyn FnOnce(Ended) + Send>>,
    /// To be said when the body has said everything.
    last: Option<HeaderMap>,
}

/// An answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum Broke<E> {
    /// Its connection did.
    #[error(transparent)]
    Body(E),
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Idle(Duration),
}

impl<B> Metered<B> {
    /// Counts this body.
    pub fn new(body: B, meter: Meter) -> Self {
        let Meter { events, hide_usage, prompt, secret, price, idle, over } = meter;
        Self {
            body: Some(body),
            listener: Listener::new(events, hide_usage, secret, price),
            prompt,
            idle,
            until: Box::pin(tokio::time::sleep(idle)),
            over: Some(over),
            last: None,
        }
    }

    /// The first call counts.
    fn end(&mut self, complete: bool) -> Usage {
        // What was told at the beginning of an answer may be less than what was seen of it.
        let told = self.listener.told().filter(|_| complete);
        let usage = told.unwrap_or_else(|| self.listener.estimate(self.prompt));
        if let Some(over) = self.over.take() {
            let told_prompt = self.listener.told_prompt();
            over(Ended { usage, told: told.is_some(), told_prompt, complete });
        }
        usage
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Broke<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            let Some(body) = &mut this.body else {
                return Poll::Ready(this.last.take().map(|last| Ok(Frame::trailers(last))));
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.until.as_mut().reset(Instant::now() + this.idle);
                    // Their trailers are their own affair.
                    let Ok(data) = frame.into_data() else { continue };
                    let on = this.listener.push(&data);
                    if !on.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(on))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.body = None;
                    this.end(false);
                    return Poll::Ready(Some(Err(Broke::Body(error))));
                }
                Poll::Ready(None) => {
                    this.body = None;
                    let rest = this.listener.end();
                    let usage = this.end(true);
                    this.last = Some(trailer(&usage));
                    if !rest.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                }
                Poll::Pending => {
                    if this.until.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.body = None;
                    this.end(false);
                    return Poll::Ready(Some(Err(Broke::Idle(this.idle))));
                }
            }
        }
    }
}

impl<B> Drop for Metered<B> {
    fn drop(&mut self) {
        self.end(false);
    }
}

fn trailer(usage: &Usage) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let text = format!("prompt={},completion={}", usage.prompt, usage.completion);
    if let Ok(value) = HeaderValue::try_from(text) {
        trailers.insert(USAGE, value);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt;

    use super::*;

    /// Pieces, then an end of this kind.
    struct Played(Vec<&'static str>, End);

    #[derive(Clone, Copy)]
    enum End {
        Whole,
        Breaks,
        Hangs,
    }

    impl Body for Played {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            match (self.0.is_empty(), self.1) {
                (false, _) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(self.0.remove(0)))))),
                (true, End::Whole) => Poll::Ready(None),
                (true, End::Breaks) => {
                    Poll::Ready(Some(Err(std::io::ErrorKind::BrokenPipe.into())))
                }
                (true, End::Hangs) => Poll::Pending,
            }
        }
    }

    fn metered(end: End) -> (Metered<Played>, Arc<Mutex<Vec<Ended>>>) {
        let seen: Arc<Mutex<Vec<Ended>>> = Arc::default();
        let told = seen.clone();
        let meter = Meter {
            events: true,
            hide_usage: true,
            prompt: 40,
            secret: None,
            price: Price::of_tokens(),
            idle: Duration::from_millis(30),
            over: Box::new(move |ended| told.lock().unwrap().push(ended)),
        };
        let pieces = vec!["data: {\"choices\":[1]}\n\nda", "ta: {\"choices\":[2]}\n\n"];
        let mut pieces = pieces;
        if matches!(end, End::Whole) {
            pieces.push("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n");
        }
        (Metered::new(Played(pieces, end), meter), seen)
    }

    #[tokio::test]
    async fn a_whole_answer_is_counted_once_by_what_it_says_and_says_so_in_its_trailer() {
        let (body, seen) = metered(End::Whole);
        let collected = body.collect().await.ok().unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers[USAGE], "prompt=9,completion=2");
        assert!(!collected.to_bytes().windows(5).any(|w| w == b"usage"));
        let usage = Usage { prompt: 9, completion: 2, ..Usage::default() };
        assert_eq!(
            *seen.lock().unwrap(),
            [Ended { usage, told: true, told_prompt: true, complete: true }]
        );
    }

    #[tokio::test]
    async fn one_that_breaks_hangs_or_is_left_is_counted_once_by_what_was_seen() {
        let usage = Usage { prompt: 40, completion: 2, ..Usage::default() };
        for end in [End::Breaks, End::Hangs] {
            let (body, seen) = metered(end);
            assert!(body.collect().await.is_err());
            assert_eq!(
                *seen.lock().unwrap(),
                [Ended { usage, told: false, told_prompt: false, complete: false }]
            );
        }
        let (mut body, seen) = metered(End::Hangs);
        let _ = body.frame().await;
        let _ = body.frame().await;
        drop(body);
        assert_eq!(
            *seen.lock().unwrap(),
            [Ended { usage, told: false, told_prompt: false, complete: false }]
        );
    }
}
