//! Other web apps on this machine, behind the box's sign-in.
//!
//! An app has a host name of its own, `APP.BOX`: under the box's name its pages could act as the
//! member who looks at them. Cookies do not reach from one to the other, so whoever comes without
//! being known is sent to the box's own page and back with a ticket that is good once, for this
//! app and this browser. What they get there ends with their session on the box.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, HOST, HeaderName, LOCATION,
    SET_COOKIE, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use polder_members::{Role, Secret};
use polder_site::{App, AppName, Audience, Upstream};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_util::either::Either;

use crate::errors::ApiError;
use crate::host::RequestHost;
use crate::leash::BrokenOff;
use crate::pages::{own_path, percent, problem_elsewhere};
use crate::subrequest::{Visitor, visitor};
use crate::tickets::TICKET_SECONDS;
use crate::{Gateway, Peer, auth, headers};

/// On an app's host: who is known there.
const KNOWN: &str = "__Host-polder-app";
/// On an app's host: which browser was sent to sign in.
const SENT: &str = "__Host-polder-way";
/// Where a browser comes back with its ticket.
const ENTER: &str = "/.polder/enter";
/// An app has this long to begin its answer, counted from the last of the request that it took: how
/// long a visitor may take to send it is for the body's own bound.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// While its answer goes on, whoever gets it is looked up again so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Answers a request for an app's host name.
pub(crate) async fn answer(
    gateway: &Arc<Gateway>,
    (name, app): (&AppName, &App),
    host: &RequestHost,
    peer: Peer,
    request: Request,
) -> Response {
    if request.uri().path() == ENTER {
        return enter(gateway, name, &request);
    }
    let sent = request.headers().clone();
    let refuse = |error: ApiError| refusal(error, host, &sent);
    if gateway.status().safe {
        let why = "the box is in safe mode, in which no app runs; it leaves it when the machine starts again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return refuse(ApiError::new(status, "server_error", "safe_mode", why));
    }
    let visitor = match who(gateway, name, peer, request.headers()).await {
        Ok(Some(visitor)) => visitor,
        Ok(None) => return stranger(name, host, &request),
        Err(error) => return refuse(error),
    };
    if !may_go(app, &visitor) {
        let why = "this app is for stewards of the box; ask one of them";
        return refuse(ApiError::not_yours(why));
    }
    if request.headers().contains_key(UPGRADE) {
        let why = "the box passes no WebSocket on to apps; the app has to do without";
        return ApiError::new(StatusCode::NOT_IMPLEMENTED, "invalid_request_error", "upgrade", why)
            .into_response();
    }
    let visitor = match visitor.with_email(gateway).await {
        Ok(visitor) => visitor,
        Err(error) => return refuse(error),
    };
    let told = match visitor.headers(gateway.status().site.name.as_str()) {
        Ok(told) => told,
        Err(error) => return refuse(error),
    };
    match pass(&app.upstream, towards_app(request, host, peer, told), ANSWER_WITHIN).await {
        Ok(response) => {
            let sent_away = sent_away(gateway.clone(), name.clone(), peer, sent);
            towards_visitor(response, sent_away)
        }
        Err(why) => {
            log::warn!(app:% = name; "an app did not answer: {why}");
            let why = format!("the app {name} does not answer just now; try again in a moment");
            refuse(ApiError::new(StatusCode::BAD_GATEWAY, "server_error", "app_unavailable", why))
        }
    }
}

/// A key of ours that was sent counts even if a browser's cookie is there too.
async fn who(
    gateway: &Gateway,
    app: &AppName,
    peer: Peer,
    headers: &HeaderMap,
) -> Result<Option<Visitor>, ApiError> {
    if auth::has_our_key(headers) {
        return visitor(gateway, headers, peer.tls).await.map(Some);
    }
    let Some(known) = auth::cookie(headers, KNOWN) else { return Ok(None) };
    let Some(session) = gateway.tickets.session_behind(known, app) else { return Ok(None) };
    let found = gateway.members.ask(move |members| members.session(session.expose())).await;
    match found {
        Ok(member) => Ok(member.map(Visitor::from)),
        Err(error) => {
            log::error!("a session could not be looked up: {error}");
            Ok(None)
        }
    }
}

/// To the box's own page, where they sign in if need be, and back. A program is told.
fn stranger(app: &AppName, host: &RequestHost, request: &Request) -> Response {
    let page = request.method() == Method::GET && takes_a_page(request.headers());
    let Some(own) = box_of(host).filter(|_| page) else {
        let error = ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "not_signed_in",
            "nobody is signed in; open this app in a browser, or send a key that opens apps",
        );
        return refusal(error, host, request.headers());
    };
    let Ok(way) = Secret::random() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let back = own_path(request.uri().path_and_query().map_or("/", |path| path.as_str()));
    let to = format!("https://{own}/apps/{app}/enter?way={}&back={}", way.expose(), percent(back));
    redirect(&to, [set_cookie(SENT, &way, i64::from(TICKET_SECONDS) * 10)])
}

/// The box's own host, as somebody calls it who calls an app so.
fn box_of(app: &RequestHost) -> Option<RequestHost> {
    let (_, name) = app.name.split_once('.')?;
    Some(RequestHost { name: name.to_owned(), port: app.port })
}

fn takes_a_page(headers: &HeaderMap) -> bool {
    let kinds = headers.get(ACCEPT).and_then(|kinds| kinds.to_str().ok());
    kinds.is_some_and(|kinds| kinds.contains("text/html"))
}

/// As whoever asked can read it: a person gets a page.
fn refusal(error: ApiError, host: &RequestHost, sent: &HeaderMap) -> Response {
    match box_of(host).filter(|_| takes_a_page(sent)) {
        Some(own) => {
            let page = problem_elsewhere(&format!("https://{own}/"), &error.message);
            let (mut parts, _) = error.into_response().into_parts();
            parts
                .headers
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            Response::from_parts(parts, Body::from(page))
        }
        None => error.into_response(),
    }
}

fn may_go(app: &App, visitor: &Visitor) -> bool {
    app.open_to == Audience::Members || visitor.role == Role::Steward
}

/// Comes back when whoever sent these headers may have no more of an app.
async fn sent_away(gateway: Arc<Gateway>, name: AppName, peer: Peer, sent: HeaderMap) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let status = gateway.status();
        let Some(app) = status.site.apps.get(&name) else { return };
        match who(&gateway, &name, peer, &sent).await {
            Ok(Some(visitor)) if may_go(app, &visitor) => {}
            _ => return,
        }
    }
}

/// They come back with a ticket.
fn enter(gateway: &Gateway, app: &AppName, request: &Request) -> Response {
    let value = |name: &str| {
        let mut pairs = request.uri().query().unwrap_or_default().split('&');
        pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let way = auth::cookie(request.headers(), SENT);
    let known = match (value("ticket"), way) {
        (Some(ticket), Some(way)) => gateway.tickets.redeem(ticket, app, way),
        _ => None,
    };
    // Once more from the beginning: a stale link, or somebody else's ticket.
    let Some(known) = known else { return redirect("/", []) };
    let back = value("back").map(unpercent).unwrap_or_default();
    let lasting = set_cookie(KNOWN, &known, polder_members::SESSION_SECONDS);
    redirect(own_path(&back), [lasting, set_cookie(SENT, &Secret::new(String::new()), 0)])
}

fn redirect<const N: usize>(to: &str, cookies: [HeaderValue; N]) -> Response {
    let Ok(to) = HeaderValue::try_from(to) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(LOCATION, to);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
    response
}

fn set_cookie(name: &str, value: &Secret, seconds: i64) -> HeaderValue {
    let value = value.expose();
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax; Secure");
    let mut value =
        HeaderValue::from_str(&text).expect("a token is letters and digits, the rest is ours");
    value.set_sensitive(true);
    value
}

/// `%XX` as it was before; what is none stays.
fn unpercent(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// The request as the app gets it: who sends it, and nothing with which the app could act for them.
fn towards_app(
    request: Request,
    host: &RequestHost,
    peer: Peer,
    told: [(HeaderName, HeaderValue); 4],
) -> Request {
    let (parts, body) = request.into_parts();
    let mut kept = headers::towards_app(&parts.headers);
    if auth::has_our_key(&parts.headers) {
        kept.remove(AUTHORIZATION);
        kept.remove("x-api-key");
    }
    kept.remove(COOKIE);
    if let Some(cookies) = auth::others_cookies(&parts.headers) {
        kept.insert(COOKIE, cookies);
    }
    if let Ok(name) = HeaderValue::try_from(host.to_string()) {
        kept.insert(HOST, name.clone());
        kept.insert("x-forwarded-host", name);
    }
    if let Ok(from) = HeaderValue::try_from(peer.remote.ip().to_string()) {
        kept.insert("x-forwarded-for", from);
    }
    kept.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    for (name, value) in told {
        kept.insert(name, value);
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() =
        parts.uri.path_and_query().cloned().map(http::Uri::from).unwrap_or_default();
    *request.headers_mut() = kept;
    request
}

/// Sends a request over a connection of its own. Dropping the answer's body closes it.
async fn pass(
    upstream: &Upstream,
    request: Request,
    within: Duration,
) -> Result<http::Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let took = Arc::new(Mutex::new(Instant::now()));
    let request = request.map(|body| Noted { body, took: took.clone() });
    let last = || *took.lock().unwrap_or_else(PoisonError::into_inner);
    let mut asked = std::pin::pin!(async {
        let stream = TokioIo::new(connect(upstream).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("a connection to an app ended: {error}");
            }
        });
        Ok(sender.send_request(request).await?)
    });
    loop {
        let since = last();
        match tokio::time::timeout_at(since + within, &mut asked).await {
            Ok(answered) => return answered,
            Err(late) if last() == since => return Err(late.into()),
            Err(_) => {}
        }
    }
}

/// A request's body of which is noted when the app took a piece.
struct Noted {
    body: Body,
    took: Arc<Mutex<Instant>>,
}

impl http_body::Body for Noted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        *self.took.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// To a program on this machine.
pub(crate) async fn connect(upstream: &Upstream) -> std::io::Result<Either<TcpStream, UnixStream>> {
    Ok(match upstream {
        Upstream::Loopback(address) => Either::Left(TcpStream::connect(address).await?),
        Upstream::Unix(path) => Either::Right(UnixStream::connect(path).await?),
    })
}

fn towards_visitor(
    response: http::Response<Incoming>,
    sent_away: impl Future<Output = ()> + Send + 'static,
) -> Response {
    let (parts, body) = response.into_parts();
    let mut kept = headers::from_app(&parts.headers);
    kept.remove(SET_COOKIE);
    for cookie in parts.headers.get_all(SET_COOKIE) {
        if !auth::is_our_cookie(cookie.as_bytes()) {
            kept.append(SET_COOKIE, cookie.clone());
        }
    }
    let mut response = Response::new(until(sent_away, body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = kept;
    response
}

/// An answer that breaks off when its visitor is sent away.
fn until(sent_away: impl Future<Output = ()> + Send + 'static, body: Incoming) -> Body {
    if body.is_end_stream() {
        return Body::new(body);
    }
    let frames = try_unfold((body, Box::pin(sent_away)), |(mut body, mut sent_away)| async move {
        tokio::select! {
            biased;
            () = &mut sent_away => Err(axum::Error::new(BrokenOff)),
            frame = body.frame() => match frame {
                Some(frame) => Ok(Some((frame.map_err(axum::Error::new)?, (body, sent_away)))),
                None => Ok(None),
            },
        }
    });
    Body::new(StreamBody::new(frames))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_app_has_its_time_after_a_request_that_is_long_in_coming() {
        let within = Duration::from_millis(300);
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream::Loopback(app.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut taken, mut seen) = (app.accept().await.unwrap().0, Vec::new());
            while !seen.ends_with(b"0\r\n\r\n") {
                taken.read_buf(&mut seen).await.unwrap();
            }
            taken.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            // Another one is never answered.
            let _kept = (taken, app.accept().await.unwrap());
            std::future::pending::<()>().await;
        });
        let pieces = futures_util::stream::iter(0..6).then(|_| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>("piece")
        });
        let mut upload = Request::new(Body::from_stream(pieces));
        *upload.method_mut() = Method::POST;
        let answer = pass(&upstream, upload, within).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        let begun = Instant::now();
        assert!(pass(&upstream, Request::new(Body::empty()), within).await.is_err());
        assert!(begun.elapsed() < within * 4);
    }

    #[test]
    fn a_path_survives_the_way_there_and_back() {
        for path in ["/a?b=c&d=%20", "/", "/%", "/ü"] {
            assert_eq!(unpercent(&percent(path)), path);
        }
        assert_eq!(unpercent("%FF%2"), "");
    }
}
