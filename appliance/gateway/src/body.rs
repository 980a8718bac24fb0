//! Request bodies: bounded in size, in time, and all together in memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::limits::Limits;

/// Why a body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyRefusal {
    /// Longer than we take.
    #[error("the request's body is larger than {limit} bytes; send less")]
    TooLarge {
        /// What we take.
        limit: u64,
    },
    /// It trickles.
    #[error("the request's body came too slowly; try again on a better line")]
    TooSlow,
    /// The client broke off, or mis-framed it.
    #[error("the request's body ended before it was complete; send it again")]
    Broken,
    /// Too many large bodies at once, of all members together.
    #[error("the box holds too many large requests at this moment; try again in a few seconds")]
    Busy,
}

/// Reads what a refused client is still sending, within reason, and forgets it. Over HTTP/2 an
/// answer that comes before the body has ended makes some clients, curl among them, report a broken
/// stream instead of the answer.
pub(crate) async fn swallow(mut body: Body) {
    const MOST: usize = 256 << 10;
    const PATIENCE: Duration = Duration::from_secs(2);
    let read = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MOST {
                break;
            }
        }
    };
    // Whoever takes longer may see the broken stream.
    let _ = tokio::time::timeout(PATIENCE, read).await;
}

/// A body that fails when it grows too long or comes too slowly.
pub(crate) struct Bounded<B> {
    inner: B,
    limits: Arc<Limits>,
    received: u64,
    begun: Instant,
    /// There is none until the body is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Bounded<B> {
    /// The clock starts now.
    pub(crate) fn new(inner: B, limits: Arc<Limits>) -> Self {
        Self { inner, limits, received: 0, begun: Instant::now(), timer: None }
    }
}

impl<B> http_body::Body for Bounded<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = BodyRefusal;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyRefusal>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let deadline = this.begun + this.limits.body_deadline(this.received);
                let sleep = || Box::pin(tokio::time::sleep_until(deadline));
                let timer = this.timer.get_or_insert_with(sleep);
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Some(Err(BodyRefusal::TooSlow)));
            }
        };
        let Some(frame) = frame else { return Poll::Ready(None) };
        let Ok(frame) = frame else { return Poll::Ready(Some(Err(BodyRefusal::Broken))) };
        this.received += frame.data_ref().map_or(0, |data| data.len() as u64);
        let limit = this.limits.body_bytes;
        if this.received > limit {
            return Poll::Ready(Some(Err(BodyRefusal::TooLarge { limit })));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How much of all API bodies together is in memory.
#[derive(Clone)]
pub(crate) struct Buffers {
    /// One permit is a KiB.
    room: Arc<Semaphore>,
}

/// A whole body; its room is free again when it is dropped.
pub(crate) struct Buffered {
    /// The bytes.
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Buffers {
    /// Room for this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let permits = (bytes >> 10).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(permits)) }
    }

    /// Reads a body to its end.
    pub(crate) async fn read(&self, mut body: Body) -> Result<Buffered, BodyRefusal> {
        let mut bytes = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| refusal_in(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            let have = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let need = ((bytes.len() + data.len()) >> 10).saturating_sub(have);
            if let Ok(need @ 1..) = u32::try_from(need) {
                // Never waits: two that each hold half and wait for the other's would wait for ever.
                let more = self
                    .room
                    .clone()
                    .try_acquire_many_owned(need)
                    .map_err(|_| BodyRefusal::Busy)?;
                match &mut room {
                    Some(room) => room.merge(more),
                    none => *none = Some(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Buffered { bytes: bytes.freeze(), _room: room })
    }
}

/// Our own refusal inside an error of a library, or else that the body broke off.
fn refusal_in(error: &(dyn std::error::Error + 'static)) -> BodyRefusal {
    let mut error = Some(error);
    while let Some(one) = error {
        if let Some(refusal) = one.downcast_ref::<BodyRefusal>() {
            return *refusal;
        }
        error = one.source();
    }
    BodyRefusal::Broken
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn quick() -> Arc<Limits> {
        Arc::new(Limits {
            body_bytes: 100_000,
            body_grace: Duration::from_millis(50),
            body_rate: 1 << 20,
            ..Limits::default()
        })
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_by_size() {
        let body = Bounded::new(Full::new(Bytes::from(vec![0; 100_001])), quick());
        let refused = Buffers::new(1 << 20).read(Body::new(body)).await.err();
        assert_eq!(refused, Some(BodyRefusal::TooLarge { limit: 100_000 }));
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_is_too_slow() {
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let body = Bounded::new(body, quick());
        let refused = Buffers::new(1 << 20).read(Body::new(body)).await.err();
        assert_eq!(refused, Some(BodyRefusal::TooSlow));
    }

    #[tokio::test]
    async fn bodies_together_are_bounded_and_give_their_room_back() {
        let buffers = Buffers::new(64 << 10);
        let body = || Body::from(vec![0; 40 << 10]);
        let first = buffers.read(body()).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(first.bytes.len(), 40 << 10);
        assert_eq!(buffers.read(body()).await.err(), Some(BodyRefusal::Busy));
        drop(first);
        assert!(buffers.read(body()).await.is_ok());
    }
}
