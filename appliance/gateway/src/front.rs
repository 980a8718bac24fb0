//! What every request passes before a page or the API sees it, and every answer on its way out.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use polder_site::Site;
use tower::ServiceExt;

use crate::Gateway;
use crate::apps;
use crate::auth;
use crate::body::{BodyRefusal, Bounded};
use crate::errors::ApiError;
use crate::fence;
use crate::handed::PLAIN_PORT;
use crate::headers;
use crate::host::{RequestHost, request_host};
use crate::origin::check_origin;
use crate::peer::Peer;

/// Nothing from elsewhere, nothing inline, no frame around it. A page that needs more says so itself.
const NOTHING_FOREIGN: HeaderValue = HeaderValue::from_static(polder_page::CONTENT_SECURITY_POLICY);
/// `no-referrer` would make browsers send `Origin: null` with our own forms; other sites hear
/// nothing with this either.
const TELL_NOBODY: HeaderValue = HeaderValue::from_static("same-origin");
/// A day only: after the box got another certificate authority a browser that insists on HTTPS
/// keeps its owner out until they install it.
const HTTPS_FOR_A_DAY: HeaderValue = HeaderValue::from_static("max-age=86400");

/// Answers one request.
pub(crate) async fn answer(
    gateway: Arc<Gateway>,
    router: Router,
    peer: Peer,
    request: Request<Incoming>,
) -> Response {
    let api = is_api(request.uri().path());
    let http1 = request.version() < Version::HTTP_2;
    // One for the whole request: whose host name it is must not change on the way.
    let status = gateway.status();
    // Before anything that a request brings is looked at: a key that was revoked on the other box is good here.
    if let Some(closed) = &status.closed {
        let mut response = fence::answer(closed, api);
        close(&mut response, http1);
        finish(&mut response, peer, None);
        gateway.tally.answered(response.status());
        return response;
    }
    let (host, mut response) = match judge(&gateway, &status.site, &peer, &request) {
        Err(turned_away) => (None, turned_away.into_answer(api, http1)),
        Ok(host) => {
            let request = prepare(&gateway, peer, request);
            if let Some(app) = status.site.app_at(&host.name) {
                // What an app may do on its own pages is its own business.
                let response = apps::answer(&gateway, app, &host, peer, request).await;
                gateway.tally.answered(response.status());
                return response;
            }
            (Some(host), pass(router, request).await)
        }
    };
    finish(&mut response, peer, host.as_ref());
    gateway.tally.answered(response.status());
    response
}

/// For paths that nobody serves.
pub(crate) async fn not_found(request: axum::extract::Request) -> Response {
    let message = "there is nothing at this address";
    match is_api(request.uri().path()) {
        true => Refused(StatusCode::NOT_FOUND, message.to_owned()).into_answer(true, false),
        false => crate::pages::problem(StatusCode::NOT_FOUND, message),
    }
}

/// For paths that are served to another method.
pub(crate) async fn wrong_method(request: axum::extract::Request) -> Response {
    let message = format!("{} is not what this address takes", request.method());
    Refused(StatusCode::METHOD_NOT_ALLOWED, message)
        .into_answer(is_api(request.uri().path()), false)
}

async fn pass(router: Router, request: axum::extract::Request) -> Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Why a request goes no further.
enum TurnedAway {
    Refused(Refused),
    /// To the same page over TLS.
    ToTls(HeaderValue),
    /// Another method.
    Method,
    /// A certificate authority gets the proof that a name is ours.
    Proof(String),
}

struct Refused(StatusCode, String);

/// Everything that can be said about a request from its head alone.
fn judge(
    gateway: &Gateway,
    site: &Site,
    peer: &Peer,
    request: &Request<Incoming>,
) -> Result<RequestHost, TurnedAway> {
    let refuse = |status, message: String| Err(TurnedAway::Refused(Refused(status, message)));
    let (limits, headers) = (&gateway.limits, request.headers());
    // At whatever port and name it comes: the name is what it proves, and whoever may see this may see it everywhere.
    let proof = gateway.acme.as_ref().filter(|_| request.method() == Method::GET);
    if let Some(proof) = proof.and_then(|acme| acme.proofs().answer(request.uri().path())) {
        return Err(TurnedAway::Proof(proof));
    }
    let host = match request_host(request.uri(), headers) {
        Ok(host) => host,
        Err(refusal) => return refuse(StatusCode::BAD_REQUEST, refusal.to_string()),
    };
    let app = site.app_at(&host.name).is_some();
    if !app && let Err(refusal) = host.is_known(site, peer.local.ip()) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, refusal.to_string());
    }
    let usual = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    if !usual.contains(request.method()) {
        return Err(TurnedAway::Method);
    }
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    if path.len() > limits.uri_bytes {
        let message = format!("the address is longer than {} bytes", limits.uri_bytes);
        return refuse(StatusCode::URI_TOO_LONG, message);
    }
    if headers.len() > limits.headers {
        let message = format!("the request has more than {} headers", limits.headers);
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message);
    }
    if !headers::framing_is_plain(headers) {
        let message = "only \"Transfer-Encoding: chunked\" is understood here".to_owned();
        return refuse(StatusCode::NOT_IMPLEMENTED, message);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits.body_bytes) {
        let refusal = BodyRefusal::TooLarge { limit: limits.body_bytes };
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, refusal.to_string());
    }
    if let Some(door) = sent_on(peer, &host, site.door.port, path) {
        return Err(TurnedAway::ToTls(door));
    }
    let cookie = headers.contains_key(http::header::COOKIE);
    // Only programs' paths go by the key; a page goes by its cookie even if a key is sent along.
    let keyed = is_api(request.uri().path()) && auth::key_in(headers).ok().flatten().is_some();
    if !keyed && let Err(foreign) = check_origin(request.method(), headers, &host, peer.tls, cookie)
    {
        return refuse(StatusCode::FORBIDDEN, foreign.to_string());
    }
    Ok(host)
}

/// Where a request without TLS is sent to; `None` for what is answered as it comes.
fn sent_on(peer: &Peer, host: &RequestHost, door: u16, path: &str) -> Option<HeaderValue> {
    // The port that browsers take by themselves is beside the door: whoever knocks there is shown
    // to it, also somebody at this machine.
    let beside = peer.local.port() == PLAIN_PORT && door != PLAIN_PORT;
    if peer.tls || (!beside && peer.is_this_machine() && host.is_localhost()) {
        return None;
    }
    let port = host.port.filter(|_| !beside);
    Some(over_tls(&RequestHost { name: host.name.clone(), port }, door, path))
}

fn over_tls(host: &RequestHost, own_port: u16, path: &str) -> HeaderValue {
    // A port that people forward to us is the one that they know us by.
    let port = host.port.unwrap_or(own_port);
    let to = RequestHost { name: host.name.clone(), port: Some(port).filter(|port| *port != 443) };
    HeaderValue::try_from(format!("https://{to}{path}"))
        .unwrap_or_else(|_| HeaderValue::from_static("/"))
}

/// Takes out what the client may not say, bounds the body, tells the handlers whence it came.
fn prepare(gateway: &Gateway, peer: Peer, request: Request<Incoming>) -> axum::extract::Request {
    let (mut parts, body) = request.into_parts();
    headers::drop_asserted(&mut parts.headers);
    // Hyper has taken the body apart by them; from here on they are only a temptation.
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
    }
    parts.extensions.insert(peer);
    Request::from_parts(parts, Body::new(Bounded::new(body, gateway.limits.clone())))
}

fn finish(response: &mut Response, peer: Peer, host: Option<&RequestHost>) {
    let headers = response.headers_mut();
    let mut say = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    say(CONTENT_SECURITY_POLICY, NOTHING_FOREIGN);
    say(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    say(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    say(REFERRER_POLICY, TELL_NOBODY);
    say(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    if peer.tls && host.is_some_and(|host| host.is_name() && !host.is_localhost()) {
        say(STRICT_TRANSPORT_SECURITY, HTTPS_FOR_A_DAY);
    }
}

fn is_api(path: &str) -> bool {
    path.starts_with("/v1/")
        || matches!(path, "/v1" | "/tokenize" | "/detokenize" | "/metrics" | "/auth")
}

impl TurnedAway {
    fn into_answer(self, api: bool, http1: bool) -> Response {
        match self {
            Self::Refused(refused) => refused.into_answer(api, http1),
            Self::ToTls(to) => {
                let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
                response.headers_mut().insert(LOCATION, to);
                close(&mut response, http1);
                response
            }
            Self::Proof(proof) => {
                let kind = HeaderValue::from_static("application/octet-stream");
                let mut response = ([(http::header::CONTENT_TYPE, kind)], proof).into_response();
                close(&mut response, http1);
                response
            }
            Self::Method => {
                let message = "this method is not used here".to_owned();
                let mut response =
                    Refused(StatusCode::METHOD_NOT_ALLOWED, message).into_answer(api, http1);
                let usual = HeaderValue::from_static("GET, HEAD, POST");
                response.headers_mut().insert(ALLOW, usual);
                response
            }
        }
    }
}

impl Refused {
    fn into_answer(self, api: bool, http1: bool) -> Response {
        let Self(status, message) = self;
        let mut response = match api {
            true => {
                ApiError::new(status, "invalid_request_error", "refused", message).into_response()
            }
            false => (status, format!("{message}\n")).into_response(),
        };
        close(&mut response, http1);
        response
    }
}

/// After a refused head nothing else on the connection is believed.
fn close(response: &mut Response, http1: bool) {
    if http1 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::parse_host;

    #[test]
    fn who_knocks_beside_the_door_is_always_sent_to_it_and_this_machine_may_come_in_the_clear() {
        let to = |host: &str, remote: &str, local: &str, door| {
            let host = parse_host(host.as_bytes()).unwrap();
            let (remote, local) = (remote.parse().unwrap(), local.parse().unwrap());
            let sent = sent_on(&Peer { remote, local, tls: false }, &host, door, "/a");
            sent.map(|to| to.to_str().unwrap().to_owned())
        };
        let (guest, here) = ("192.168.1.9:5000", "127.0.0.1:5000");
        let beside = |host, from| to(host, from, "192.168.1.4:80", 443).unwrap();
        assert_eq!(beside("oak.local", guest), "https://oak.local/a");
        assert_eq!(beside("oak.local:80", guest), "https://oak.local/a");
        assert_eq!(beside("localhost", here), "https://localhost/a");
        assert_eq!(to("localhost:8443", here, "127.0.0.1:8443", 8443), None);
        // A box whose door is at port 80, behind a router that forwards another one.
        assert_eq!(to("localhost", here, "127.0.0.1:80", 80), None);
        let forwarded = to("oak.example:8080", guest, "192.168.1.4:80", 80).unwrap();
        assert_eq!(forwarded, "https://oak.example:8080/a");
    }

    #[test]
    fn a_visitor_over_plain_http_is_sent_to_the_same_page_over_tls() {
        let to = |host: &str| {
            let host = parse_host(host.as_bytes()).unwrap();
            over_tls(&host, 8443, "/a?b").to_str().unwrap().to_owned()
        };
        assert_eq!(to("oak.local:9000"), "https://oak.local:9000/a?b");
        assert_eq!(to("oak.local"), "https://oak.local:8443/a?b");
        assert_eq!(to("[::1]:443"), "https://[::1]/a?b");
    }
}
