//! Connections to an engine: kept for the next request, and worked by whoever waits for the answer.
//!
//! There is no task between an engine and its client: the answer's own poll reads the socket. That
//! saves two wake-ups for every token, and dropping an answer drops its connection there and then.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderValue;
use http::header::HOST;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Unused connections are kept this long,
const IDLE: Duration = Duration::from_secs(30);
/// and so many of them.
const MOST_IDLE: usize = 64;

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// It takes no connections: it has not seen the request.
    #[error("it takes no connections: {0}")]
    Connect(#[source] io::Error),
    /// It may have seen the request.
    #[error("its connection broke: {0}")]
    Broke(#[source] hyper::Error),
}

/// The connections to one engine.
pub(crate) struct Lines {
    socket: Box<Path>,
    idle: Mutex<Vec<(Instant, Box<Line>)>>,
}

impl Lines {
    pub(crate) fn new(socket: &Path) -> Arc<Self> {
        Arc::new(Self { socket: socket.into(), idle: Mutex::default() })
    }

    /// Sends a request. Only its method, path, headers and body matter. Sets `sent` once the engine
    /// may have seen it.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        request: &http::Request<Bytes>,
        sent: &AtomicBool,
    ) -> Result<http::Response<EngineBody>, LineError> {
        loop {
            let (mut line, kept) = match self.take() {
                Some(line) => (line, true),
                None => (Line::open(&self.socket).await?, false),
            };
            sent.store(true, Ordering::Relaxed);
            match line.ask(copy(request)).await {
                Ok(response) => {
                    let lines = self.clone();
                    return Ok(response.map(|body| EngineBody { body, line: Some((line, lines)) }));
                }
                // It was closed while it lay here, and took nothing any more.
                Err(error) if kept && error.is_canceled() => {}
                Err(error) => return Err(LineError::Broke(error)),
            }
        }
    }

    fn take(&self) -> Option<Box<Line>> {
        loop {
            let (since, mut line) = self.idle().pop()?;
            if since.elapsed() < IDLE && line.is_free() {
                return Some(line);
            }
        }
    }

    fn keep(&self, mut line: Box<Line>) {
        if !line.is_free() {
            return;
        }
        let mut idle = self.idle();
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        if idle.len() < MOST_IDLE {
            idle.push((Instant::now(), line));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Box<Line>)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy(request: &http::Request<Bytes>) -> http::Request<Full<Bytes>> {
    let mut copy = http::Request::new(Full::new(request.body().clone()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy.headers_mut().insert(HOST, HeaderValue::from_static("engine"));
    copy
}

/// One connection; large, and handed on often, so always in a box.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// None when it is over.
    connection: Option<Connection<TokioIo<UnixStream>, Full<Bytes>>>,
    ears: Arc<Ears>,
    waker: Waker,
}

impl Line {
    async fn open(socket: &Path) -> Result<Box<Self>, LineError> {
        let stream = UnixStream::connect(socket).await.map_err(LineError::Connect)?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(LineError::Broke)?;
        let ears = Arc::new(Ears::default());
        let waker = Waker::from(ears.clone());
        Ok(Box::new(Self { sender, connection: Some(connection), ears, waker }))
    }

    async fn ask(
        &mut self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, hyper::Error> {
        let mut answer = std::pin::pin!(self.sender.send_request(request));
        let (connection, ears, waker) = (&mut self.connection, &self.ears, &self.waker);
        std::future::poll_fn(|cx| {
            ears.listen(cx, waker, |cx| {
                // What it says of its end, the answer says too; but of a request that it took no
                // more, only when it is gone.
                let _ = work(connection, cx);
                answer.as_mut().poll(cx)
            })
        })
        .await
    }

    /// Reads on. Ready when the connection is over.
    fn work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        work(&mut self.connection, cx)
    }

    /// Is it open, and through with everything? While it lies unused it wakes nobody.
    fn is_free(&mut self) -> bool {
        self.ears.rest();
        let waker = self.waker.clone();
        self.work(&mut Context::from_waker(&waker)).is_pending() && self.sender.is_ready()
    }
}

fn work(
    connection: &mut Option<Connection<TokioIo<UnixStream>, Full<Bytes>>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if let Some(open) = connection {
        std::task::ready!(Pin::new(open).poll(cx)).ok();
        *connection = None;
    }
    Poll::Ready(())
}

/// Hears when there is something to read, but not what the two ends of hyper's own channels tell
/// each other while one poll works both of them.
#[derive(Default)]
struct Ears {
    task: AtomicWaker,
    state: AtomicU8,
}

/// Being polled, or unused: a wake-up is only noted.
const POLLED: u8 = 0;
/// The same, and there was one.
const NOTED: u8 = 1;
/// Nobody is at it: the task has to come.
const WAITING: u8 = 2;
/// How often one poll goes round because of what it told itself.
const ROUNDS: usize = 4;

impl Ears {
    /// Polls until nothing is told any more; then the task of `cx` is woken by what comes.
    fn listen<T>(
        &self,
        cx: &mut Context<'_>,
        waker: &Waker,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.store(POLLED, Ordering::SeqCst);
        self.task.register(cx.waker());
        for _ in 0..ROUNDS {
            if let Poll::Ready(ready) = poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(ready);
            }
            if self.wait() {
                return Poll::Pending;
            }
        }
        // The runtime wants others to have a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From now on the task is woken; false, and it is not, if there was something meanwhile.
    fn wait(&self) -> bool {
        let waits =
            self.state.compare_exchange(POLLED, WAITING, Ordering::SeqCst, Ordering::SeqCst);
        if waits.is_err() {
            self.state.store(POLLED, Ordering::SeqCst);
        }
        waits.is_ok()
    }

    fn rest(&self) {
        self.state.store(POLLED, Ordering::SeqCst);
        self.task.take();
    }
}

impl Wake for Ears {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.state.compare_exchange(POLLED, NOTED, Ordering::SeqCst, Ordering::SeqCst);
        if before == Err(WAITING) {
            self.task.wake();
        }
    }
}

/// An engine's answer, as it writes it. Dropping it before its end closes the connection, and the
/// engine stops working on it.
#[derive(Debug)]
pub struct EngineBody {
    body: Incoming,
    line: Option<(Box<Line>, Arc<Lines>)>,
}

impl EngineBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some((line, _)) = &mut self.line else {
            return Pin::new(&mut self.body).poll_frame(cx);
        };
        let (ears, waker) = (line.ears.clone(), line.waker.clone());
        let body = &mut self.body;
        let frame = ears.listen(cx, &waker, |cx| {
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                return Poll::Ready(Some(frame));
            }
            match line.work(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => Pin::new(&mut *body).poll_frame(cx).map(Some),
            }
        });
        match frame {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(frame)) => Poll::Ready(frame),
            // Without its connection it says what it still has, or that it broke off.
            Poll::Ready(None) => {
                self.line = None;
                Pin::new(&mut self.body).poll_frame(cx)
            }
        }
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(this.poll(cx));
        let over = !matches!(frame, Some(Ok(_))) || this.body.is_end_stream();
        if over && let Some((line, lines)) = this.line.take() {
            lines.keep(line);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_request_over_a_connection_that_was_just_closed_is_refused_and_not_left_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).unwrap();
        let mut line = Line::open(&socket).await.unwrap();
        let (mut accepted, _) = engine.accept().await.unwrap();
        let request = || http::Request::new(Full::default());
        let first = async {
            assert_ne!(accepted.read(&mut [0; 1024]).await.unwrap(), 0);
            accepted.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        };
        assert!(tokio::join!(line.ask(request()), first).0.is_ok());
        assert!(line.is_free());
        drop(accepted);
        // Until this end knows of it, too.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = tokio::time::timeout(Duration::from_secs(5), line.ask(request())).await;
        assert!(answer.expect("it waits for ever").unwrap_err().is_canceled());
        assert!(!line.is_free());
    }
}
