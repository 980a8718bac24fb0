//! Answers at an engine's socket for a server that is not our own: one in a container, or one that somebody else runs. To the door and
//! the supervisor it is an engine like any other.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use polder_control::SecretText;
use polder_site::{Container, Served};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::container::{ContainerError, Podman, Running};
use crate::images::Image;
use crate::meter::{Meter, Metered};
use crate::price::{Price, prompt_estimate};
use crate::question::Asked;
use crate::wire::{Place, Wire, WireBody, WireError};

/// The door's own limit for a question.
const LONGEST: usize = 64 << 20;
/// A server that says nothing for so long in the middle of an answer has broken off.
const IDLE: Duration = Duration::from_secs(300);
/// Between two looks at a server that does not answer yet, and at one that does.
const LOOK_STARTING: Duration = Duration::from_millis(200);
const LOOK_READY: Duration = Duration::from_secs(2);
/// A connection that comes about, or is refused, does so within this time.
const SOON: Duration = Duration::from_secs(1);
/// One look takes no longer.
const LOOK: Duration = Duration::from_secs(5);
/// Answers that are going on have so long when the slot is stopped; the supervisor is as patient.
const DRAIN: Duration = Duration::from_secs(600);
/// What a server may say of its answer.
const FROM_SERVERS: [&str; 5] =
    ["content-type", "retry-after", "x-request-id", "request-id", "openai-processing-ms"];

/// To the door: nobody has begun to answer this, and the server of the slot is away, so that it is for whoever is asked when the engine is down.
pub const AWAY: HeaderName = HeaderName::from_static("x-polder-away");

/// Stands in for the engine of one slot.
pub struct StandIn {
    /// Where the door and the supervisor ask.
    pub socket: PathBuf,
    /// What its server calls the model.
    pub called: String,
}

/// It could not begin, or its server ended.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// The socket.
    #[error("could not listen at {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The server's address or key.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A container ended by itself.
    #[error("the container ended: {0}")]
    Ended(String),
}

struct Shared {
    called: String,
    /// Where the server says that it has its model, if that is known.
    health: Option<String>,
    wire: RwLock<Option<Wire>>,
    ready: AtomicBool,
    /// Something said that the server may be gone: it is looked at now.
    doubt: Notify,
    running: AtomicUsize,
    /// How much of its image is unpacked, in thousandths; more while nothing is.
    unpacked: AtomicUsize,
}

const PER_MILLE: f64 = 1000.0;

type Whole = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>>;

impl StandIn {
    /// Passes questions to a server that somebody else runs, until `told`.
    pub async fn serve(
        self,
        served: &Served,
        key: Option<&SecretText>,
        told: impl Future<Output = ()>,
    ) -> Result<(), StandInError> {
        let wire = Wire::to(&served.url, served.authority.as_deref(), key)?;
        let shared = self.shared(Some(wire), None);
        let look = async {
            look_after(&shared).await;
            unreachable!("it is looked after for ever")
        };
        self.answer(&shared, told, look).await
    }

    /// Unpacks an image unless it is, runs a container of it and passes questions to the server in it, until `told`; then the container is ended too. It has
    /// the network of this process, which must lead nowhere.
    pub async fn contain(
        self,
        podman: &Podman,
        container: &Container,
        image: &Image,
        model: &Path,
        told: impl Future<Output = ()>,
    ) -> Result<(), StandInError> {
        let shared = self.shared(None, container.health.clone());
        let mut running: Option<Running> = None;
        let server = async {
            let unpacking = |part: f64| {
                shared.unpacked.store((part * PER_MILLE) as usize, Ordering::SeqCst);
            };
            let known = podman.unpack(image, unpacking).await?;
            shared.unpacked.store(usize::MAX, Ordering::SeqCst);
            let started = running.insert(podman.start(container, &known, model)?);
            let wire = Wire::at(Place::Near(container.port), None)?;
            *shared.wire.write().unwrap_or_else(PoisonError::into_inner) = Some(wire);
            Err::<std::convert::Infallible, _>(StandInError::Ended(started.ended().await))
        };
        let broken = async {
            tokio::select! {
                ended = server => match ended {
                    Err(error) => error,
                    Ok(never) => match never {},
                },
                () = look_after(&shared) => unreachable!("it is looked after for ever"),
            }
        };
        let done = self.answer(&shared, told, broken).await;
        if let Some(running) = running {
            running.stop().await;
        }
        done
    }

    fn shared(&self, wire: Option<Wire>, health: Option<String>) -> Arc<Shared> {
        Arc::new(Shared {
            called: self.called.clone(),
            health,
            wire: RwLock::new(wire),
            ready: AtomicBool::new(false),
            doubt: Notify::new(),
            running: AtomicUsize::new(0),
            unpacked: AtomicUsize::new(usize::MAX),
        })
    }

    /// Answers at the socket until it is told to end, or `broken` comes back.
    async fn answer(
        &self,
        shared: &Arc<Shared>,
        told: impl Future<Output = ()>,
        broken: impl Future<Output = StandInError>,
    ) -> Result<(), StandInError> {
        let fail = |source| StandInError::Listen { path: self.socket.clone(), source };
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(fail)?;
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o600))
            .map_err(fail)?;
        let accept = async {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(LOOK_STARTING).await;
                    continue;
                };
                let shared = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| reply(shared.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        };
        let (mut broken, mut told) = (std::pin::pin!(broken), std::pin::pin!(told));
        tokio::select! {
            error = &mut broken => return Err(error),
            () = &mut told => {}
            () = accept => unreachable!("it takes connections for ever"),
        }
        let _ = std::fs::remove_file(&self.socket);
        let drained = async {
            while shared.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            error = broken => Err(error),
            _ = tokio::time::timeout(DRAIN, drained) => Ok(()),
        }
    }
}

/// Looks whether the server answers, for ever.
async fn look_after(shared: &Shared) {
    loop {
        let wire = shared.wire.read().unwrap_or_else(PoisonError::into_inner).clone();
        let well = match wire {
            Some(wire) => is_well(&wire.within(LOOK), shared.health.as_deref()).await,
            None => false,
        };
        shared.ready.store(well, Ordering::SeqCst);
        tokio::select! {
            () = tokio::time::sleep(if well { LOOK_READY } else { LOOK_STARTING }) => {}
            () = shared.doubt.notified(), if well => {}
        }
    }
}

/// Where it is known where a server says that it answers, only its word there counts: what stands before it may be well long before. Others have
/// `/health`; those that do not have a list of models.
async fn is_well(wire: &Wire, health: Option<&str>) -> bool {
    if let Some(path) = health {
        return wire.fetch(path).await.is_ok_and(|answer| answer.status().is_success());
    }
    match wire.fetch("/health").await.map(|answer| answer.status()) {
        Ok(StatusCode::NOT_FOUND) => {
            wire.fetch("/v1/models").await.is_ok_and(|answer| answer.status().is_success())
        }
        Ok(status) => status.is_success(),
        Err(_) => false,
    }
}

/// One that counts itself among those that are going on.
struct Going(Arc<Shared>);

impl Going {
    fn on(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn reply(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Whole, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match (request.method(), path.as_str()) {
        (&Method::GET, "/health") => match shared.ready.load(Ordering::SeqCst) {
            true => plain(StatusCode::OK, &json!({ "status": "ok" })),
            false => plain(StatusCode::SERVICE_UNAVAILABLE, &waiting(&shared)),
        },
        (&Method::GET, "/metrics") => figures(&shared).await,
        // Nothing is kept here, and nothing is common.
        (_, "/kv" | "/beginnings") => {
            refuse(StatusCode::NOT_FOUND, "not_here", "this server keeps nothing for members")
        }
        (&Method::POST, _) => ask(shared, request).await,
        _ => refuse(StatusCode::NOT_FOUND, "not_found", "there is nothing here"),
    })
}

/// What it waits for, as an engine says it that loads.
fn waiting(shared: &Shared) -> serde_json::Value {
    match shared.unpacked.load(Ordering::SeqCst) {
        usize::MAX => json!({ "status": "waiting for the server" }),
        part => json!({ "status": "unpacking the image", "progress": part as f64 / PER_MILLE }),
    }
}

async fn figures(shared: &Shared) -> Whole {
    let wire = shared.wire.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(wire) = wire else { return not_yet() };
    match wire.within(LOOK).fetch("/metrics").await {
        Ok(answer) => {
            let status = answer.status();
            let mut response = Response::new(whole(answer.into_body()));
            *response.status_mut() = status;
            response
        }
        Err(error) => refuse(StatusCode::BAD_GATEWAY, "server_away", &error.to_string()),
    }
}

async fn ask(shared: Arc<Shared>, request: Request<Incoming>) -> Whole {
    let going = Going::on(&shared);
    let wire = shared.wire.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(wire) = wire else { return not_yet() };
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LONGEST).collect().await else {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "the question is too long or broke off",
        );
    };
    let body = body.to_bytes();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let asked = match Asked::of(parts.uri.path(), &body, &shared.called) {
        Ok(asked) => asked,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "invalid_json", &error.to_string()),
    };
    let prompt = prompt_estimate(body.len());
    let sent = AtomicBool::new(false);
    let begun = Instant::now();
    let mut answer = wire.ask(Method::POST, path, &parts.headers, asked.body.clone(), &sent).await;
    // Nobody has seen it, and one connection that does not come about says little; where that took long, so would the next.
    if matches!(answer, Err(WireError::Unreachable { .. })) && begun.elapsed() < SOON {
        answer = wire.ask(Method::POST, path, &parts.headers, asked.body, &sent).await;
    }
    match answer {
        // What stands before a server says that it got no answer out of it: it is gone, or one of several is, or it broke over this question
        // alone. This question is for others; whether the slot is down, only a look at it says. A 504 is no such word: there the server is
        // at work and takes long, as where it is silent, and to have others asked would be paid for twice. Nor is a 503: that one is full.
        Ok(answer) if answer.status() == StatusCode::BAD_GATEWAY => {
            shared.doubt.notify_one();
            away(pass_on(answer, asked.hide_usage, prompt, going))
        }
        Ok(answer) => pass_on(answer, asked.hide_usage, prompt, going),
        // One that takes long is at work, on this question too: nobody else is asked it, and others may go on asking.
        Err(error @ WireError::Silent { .. }) => {
            refuse(StatusCode::GATEWAY_TIMEOUT, "server_silent", &error.to_string())
        }
        // Nobody is there, or the connection broke before a byte of an answer: to the door the same as a broken engine. One that broke may be
        // one of many: the slot is down where the next one does not come about, else only by a look.
        Err(error) => {
            let there = matches!(error, WireError::Broke { .. }) && wire.is_there(SOON).await;
            if !there {
                shared.ready.store(false, Ordering::SeqCst);
            }
            shared.doubt.notify_one();
            let (status, why) = (StatusCode::SERVICE_UNAVAILABLE, error.to_string());
            away(refuse(status, "server_away", &why))
        }
    }
}

/// The same, with the door told that the server is away.
fn away(mut response: Whole) -> Whole {
    response.headers_mut().insert(AWAY, HeaderValue::from_static("1"));
    response
}

fn pass_on(answer: Response<WireBody>, hide_usage: bool, prompt: u64, going: Going) -> Whole {
    let (parts, body) = answer.into_parts();
    let events = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let well = parts.status.is_success();
    let over = Box::new(move |_| drop(going));
    let price = Price::of_tokens();
    let meter = Meter { events, hide_usage, prompt, secret: None, price, idle: IDLE, over };
    let body = Metered::new(body, meter).map_err(io::Error::other);
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = parts.status;
    let headers = response.headers_mut();
    keep(&parts.headers, headers);
    if well {
        headers.insert("trailer", HeaderValue::from_static("x-polder-usage"));
        headers.insert("x-polder-prompt-tokens", HeaderValue::from(prompt));
    }
    response
}

fn keep(from: &HeaderMap, to: &mut HeaderMap) {
    for name in FROM_SERVERS {
        if let Some(value) = from.get(name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
}

fn whole(body: Bytes) -> http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error> {
    BodyExt::boxed_unsync(Full::new(body).map_err(|never: Infallible| match never {}))
}

fn plain(status: StatusCode, value: &serde_json::Value) -> Whole {
    let mut response = Response::new(whole(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Whole {
    let error = json!({ "error": { "message": message, "type": "server_error", "param": null, "code": code } });
    plain(status, &error)
}

fn not_yet() -> Whole {
    away(refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        "starting",
        "the server of this model is still starting; try again in a while",
    ))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixStream};

    use super::*;

    /// What stands before a server: well by its own word, and each question gets the status that it names; 0 is a connection that breaks.
    async fn proxy(listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut asked = Vec::new();
                let mut piece = [0; 4096];
                loop {
                    let n = stream.read(&mut piece).await.unwrap_or(0);
                    asked.extend_from_slice(&piece[..n]);
                    let text = String::from_utf8_lossy(&asked);
                    if n == 0 || text.starts_with("GET") || text.ends_with('}') {
                        break;
                    }
                }
                let text = String::from_utf8_lossy(&asked).into_owned();
                let status = match text.split("\"status\":").nth(1) {
                    None => "200",
                    Some(rest) => rest.get(..3).unwrap_or("0"),
                };
                if status.starts_with('0') {
                    return;
                }
                let answer = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    }

    async fn asked(socket: &Path, method: &str, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_word_about_one_question_takes_no_whole_slot_down() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
        let served = Served { url, authority: None, called: None };
        let there = tokio::spawn(proxy(listener));
        let stand_in = StandIn { socket: socket.clone(), called: "toy".to_owned() };
        let serving = tokio::spawn(async move {
            stand_in.serve(&served, None, std::future::pending()).await.unwrap();
        });
        let until = async |well: &str| {
            for _ in 0..1500 {
                if socket.exists() && asked(&socket, "GET", "/health", "").await.contains(well) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("the slot never said {well}");
        };
        until("HTTP/1.1 200").await;
        for (status, away) in [(504, false), (503, false), (500, false), (502, true)] {
            let question = format!("{{\"model\":\"m\",\"status\":{status}}}");
            let answer = asked(&socket, "POST", "/v1/chat/completions", &question).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert_eq!(answer.contains("x-polder-away"), away, "{answer}");
            // Others are asked at once whether the slot is well.
            let health = asked(&socket, "GET", "/health", "").await;
            assert!(health.starts_with("HTTP/1.1 200"), "{status}: {health}");
        }
        // One that breaks off is away for this question, and for no other where it takes the next connection.
        let answer = asked(&socket, "POST", "/v1/chat/completions", "{\"status\":0}").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-polder-away"), "{answer}");
        let health = asked(&socket, "GET", "/health", "").await;
        assert!(health.starts_with("HTTP/1.1 200"), "one reset took the slot down: {health}");
        // One that is gone stays so.
        there.abort();
        let _ = there.await;
        let answer = asked(&socket, "POST", "/v1/chat/completions", "{\"model\":\"m\"}").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-polder-away"), "{answer}");
        assert!(asked(&socket, "GET", "/health", "").await.starts_with("HTTP/1.1 503"));
        serving.abort();
    }
}
