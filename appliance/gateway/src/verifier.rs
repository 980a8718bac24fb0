//! Asks an external service who somebody is, where the site names one: for requests of programs that
//! bring no credential of ours but another one.
//!
//! It is asked as nginx `auth_request`, or Caddy and Traefik, ask: a GET that has of the client's
//! own headers only Authorization and Cookie. It says yes or no, and a name; whose name that is and
//! whether they may use the box is looked up here, each time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use http::header::{AUTHORIZATION, COOKIE, HOST, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, response};
use hyper_util::rt::TokioIo;
use polder_members::Member;
use polder_site::{Upstream, Verifier, VerifierMode, VerifierUrl};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::apps::connect;
use crate::errors::ApiError;
use crate::host::request_host;
use crate::leash::Ending;
use crate::{Gateway, Peer, auth};

/// It has this long to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of its answer's head.
const LONGEST_HEAD: usize = 16 << 10;
/// What it said is good for so long,
const FRESH: Duration = Duration::from_secs(10);
/// and so much of it is kept.
const MOST_KEPT: usize = 256;
/// Questions to it at once; further ones wait within their time.
const AT_ONCE: usize = 32;
/// How it says who it is.
const NAMES: [&str; 2] = ["x-auth-request-user", "remote-user"];

/// What the verifier said of late, and how many questions to it are under way.
pub(crate) struct Verified {
    /// By the digest of the question. Only who was let in: a stranger cannot push them out.
    kept: Mutex<HashMap<[u8; 32], Kept>>,
    places: Semaphore,
}

struct Kept {
    name: String,
    at: Instant,
}

/// Who the verifier says sends this request; `None` if there is none, or nothing to ask it about. To
/// be called once for a request.
pub(crate) async fn member(gateway: &Gateway, parts: &Parts) -> Result<Option<Member>, ApiError> {
    let status = gateway.status();
    let Some(verifier) = &status.site.verifier else { return Ok(None) };
    let Some(asked) = question(verifier.mode, parts)? else { return Ok(None) };
    let (digest, at) = (digest(verifier, &asked), Instant::now());
    let name = match gateway.verified.of(&digest) {
        Some(name) => name,
        None => {
            let name = ask(&gateway.verified, verifier, asked).await?;
            gateway.verified.keep(digest, Kept { name: name.clone(), at });
            name
        }
    };
    enabled(gateway, &verifier.url, name).await.map(Some)
}

async fn enabled(gateway: &Gateway, url: &VerifierUrl, name: String) -> Result<Member, ApiError> {
    let members = gateway.members.ask(|members| members.members()).await.map_err(|error| {
        log::error!("a member whom the verifier named could not be looked up: {error}");
        ApiError::members_unreadable()
    })?;
    match members.into_iter().find(|member| member.name == name) {
        Some(member) if member.disabled => Err(Ending::SentAway.to_error()),
        Some(member) => Ok(member),
        None => {
            let name: String = name.chars().take(80).collect();
            let why = format!(
                "the verifier at {url} says that you are {name:?}, and nobody on this box is called \
                 exactly so; ask a steward to invite you under that name"
            );
            Err(forbidden("unknown_member", why))
        }
    }
}

/// The headers of a question: nothing else reaches the verifier. None for a request with a key or a
/// session of ours, which counts alone even if it is no good, and for one with no credential at all.
fn question(mode: VerifierMode, parts: &Parts) -> Result<Option<HeaderMap>, ApiError> {
    let Some(peer) = parts.extensions.get::<Peer>() else { return Ok(None) };
    let headers = &parts.headers;
    let ours = headers.contains_key("x-api-key")
        || auth::has_our_key(headers)
        || auth::session_token(headers, peer.tls).is_some();
    if ours {
        return Ok(None);
    }
    let mut asked = HeaderMap::new();
    let mut credentials = headers.get_all(AUTHORIZATION).iter();
    if let Some(credential) = credentials.next() {
        asked.insert(AUTHORIZATION, credential.clone());
    }
    if credentials.next().is_some() {
        let why = "the request has more than one Authorization header; send one";
        return Err(ApiError::bad_request("two_credentials", why));
    }
    if let Some(cookies) = auth::others_cookies(headers) {
        asked.insert(COOKIE, cookies);
    }
    if asked.is_empty() {
        return Ok(None);
    }
    let unreadable = || ApiError::bad_request("bad_request", "the request's head cannot be read");
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let host = request_host(&parts.uri, headers).map_err(|_| unreadable())?.to_string();
    let from = peer.remote.ip().to_string();
    let told: &[(&'static str, &str)] = match mode {
        VerifierMode::Nginx => {
            &[("x-original-uri", path), ("x-original-method", parts.method.as_str())]
        }
        VerifierMode::Forward => &[
            ("x-forwarded-method", parts.method.as_str()),
            ("x-forwarded-proto", if peer.tls { "https" } else { "http" }),
            ("x-forwarded-host", &host),
            ("x-forwarded-uri", path),
            ("x-forwarded-for", &from),
        ],
    };
    for (name, value) in told {
        let value = HeaderValue::from_str(value).map_err(|_| unreadable())?;
        asked.insert(HeaderName::from_static(name), value);
    }
    Ok(Some(asked))
}

/// Of the whole question and not of the credential alone: a verifier may let somebody go here and
/// not there. And of whom it was put to, so that a new verifier begins with nothing.
fn digest(verifier: &Verifier, asked: &HeaderMap) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut take = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    take(verifier.url.to_string().as_bytes());
    for (name, value) in asked {
        take(name.as_str().as_bytes());
        take(value.as_bytes());
    }
    hash.finalize().into()
}

/// The name that the verifier gives.
async fn ask(
    verified: &Verified,
    verifier: &Verifier,
    asked: HeaderMap,
) -> Result<String, ApiError> {
    let url = &verifier.url;
    let answered = async {
        let _place = verified.places.acquire().await?;
        put(url, asked).await
    };
    let why = match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(answer)) => return verdict(verifier, answer.status, &answer.headers),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    };
    log::warn!(verifier:% = url; "the verifier did not answer: {why}");
    let why = format!(
        "the verifier at {url} does not answer, so that nobody can come in by it; send a key of this \
         box, or ask a steward to look after the verifier"
    );
    let error =
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "verifier_unavailable", why);
    Err(error.after(5))
}

/// One question over a connection of its own, which is closed when the head of the answer is there or
/// nobody waits for it any more.
async fn put(
    url: &VerifierUrl,
    asked: HeaderMap,
) -> Result<response::Parts, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = url.path().parse::<Uri>()?;
    *request.headers_mut() = asked;
    let host = match url.upstream() {
        Upstream::Loopback(address) => HeaderValue::try_from(address.to_string())?,
        Upstream::Unix(_) => HeaderValue::from_static("localhost"),
    };
    request.headers_mut().insert(HOST, host);
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(LONGEST_HEAD);
    let stream = TokioIo::new(connect(url.upstream()).await?);
    let (mut sender, connection) = client.handshake(stream).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok(sender.send_request(request).await?.into_parts().0)
}

/// What its answer means: the name of whom it lets in, or the refusal.
fn verdict(
    verifier: &Verifier,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<String, ApiError> {
    let url = &verifier.url;
    let odd = |what: &str| {
        let why = format!("the verifier at {url} {what}; a steward must look after it");
        log::warn!("{why}");
        Err(ApiError::new(StatusCode::BAD_GATEWAY, "server_error", "verifier_answer", why))
    };
    let denied = || {
        let why = format!("the verifier at {url} does not know your credential; sign in there");
        let mut error = ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "verifier_denied",
            why,
        );
        error.challenges = headers.get_all(WWW_AUTHENTICATE).iter().cloned().collect();
        error
    };
    match (status, verifier.mode) {
        (StatusCode::UNAUTHORIZED, _) => Err(denied()),
        (StatusCode::FORBIDDEN, _) => {
            let why = format!("the verifier at {url} says that you may not do this");
            Err(forbidden("verifier_denied", why))
        }
        // The way to its sign-in page, which is of no use to a program.
        (status, VerifierMode::Forward) if status.is_redirection() => Err(denied()),
        (status, _) if !status.is_success() => {
            odd(&format!("answered {}, which says neither yes nor no", status.as_u16()))
        }
        _ => match named(headers) {
            Named::One(name) => Ok(name.to_owned()),
            Named::Nobody => odd("let you in and did not say in X-Auth-Request-User who you are"),
            Named::Several => odd("let you in under more than one name"),
        },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    One(&'a str),
    Nobody,
    Several,
}

fn named(headers: &HeaderMap) -> Named<'_> {
    let mut values = NAMES.iter().flat_map(|name| headers.get_all(*name));
    let first = values.next();
    if values.any(|value| Some(value) != first) {
        return Named::Several;
    }
    let name = first.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    name.filter(|name| !name.is_empty()).map_or(Named::Nobody, Named::One)
}

fn forbidden(code: &'static str, why: String) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", code, why)
}

impl Default for Verified {
    fn default() -> Self {
        Self { kept: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

impl Verified {
    fn of(&self, digest: &[u8; 32]) -> Option<String> {
        self.kept().get(digest).filter(|kept| kept.is_fresh()).map(|kept| kept.name.clone())
    }

    fn keep(&self, digest: [u8; 32], said: Kept) {
        let mut kept = self.kept();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, kept| kept.is_fresh());
        }
        if kept.len() >= MOST_KEPT
            && let Some(oldest) = kept.iter().min_by_key(|(_, k)| k.at).map(|(digest, _)| *digest)
        {
            kept.remove(&oldest);
        }
        kept.insert(digest, said);
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIC: (&str, &str) = ("authorization", "Basic YTpi");

    fn request(headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::new(());
        *request.uri_mut() = "/v1/models?x=1".parse().unwrap();
        request.headers_mut().insert(HOST, "oak.local:8443".parse().unwrap());
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let address = |text: &str| text.parse().unwrap();
        let (remote, local) = (address("192.168.1.9:5"), address("192.168.1.2:8443"));
        request.extensions_mut().insert(Peer { remote, local, tls: true });
        request.into_parts().0
    }

    fn asked(mode: VerifierMode, headers: &[(&'static str, &str)]) -> Option<Vec<String>> {
        let asked = question(mode, &request(headers)).unwrap()?;
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        Some(asked.iter().map(line).collect())
    }

    fn verifier(mode: VerifierMode) -> Verifier {
        Verifier { url: "http://127.0.0.1:4180/auth".parse().unwrap(), mode }
    }

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        request(headers).headers
    }

    #[test]
    fn a_question_has_the_clients_credentials_and_what_the_mode_says_and_nothing_else() {
        let sent = [
            BASIC,
            ("cookie", "__Host-polder-app=k; sso=1; polder=x"),
            ("x-auth-request-user", "mallory"),
            ("x-original-uri", "/elsewhere"),
            ("accept", "*/*"),
        ];
        let own = ["authorization: Basic YTpi", "cookie: sso=1"];
        let nginx = ["x-original-uri: /v1/models?x=1", "x-original-method: GET"];
        assert_eq!(asked(VerifierMode::Nginx, &sent).unwrap(), [own, nginx].concat());
        let forward = [
            "x-forwarded-method: GET",
            "x-forwarded-proto: https",
            "x-forwarded-host: oak.local:8443",
            "x-forwarded-uri: /v1/models?x=1",
            "x-forwarded-for: 192.168.1.9",
        ];
        assert_eq!(asked(VerifierMode::Forward, &sent).unwrap(), [&own[..], &forward].concat());
    }

    #[test]
    fn nothing_is_asked_about_our_own_credentials_or_none() {
        for sent in [
            &[][..],
            &[("authorization", "Bearer plk_a_b")],
            &[BASIC, ("x-api-key", "plk_a_b")],
            &[BASIC, ("x-api-key", "somebody else's")],
            &[BASIC, ("cookie", "__Host-polder=s")],
            &[("cookie", "__Host-polder-app=k; polder=x")],
        ] {
            assert_eq!(asked(VerifierMode::Nginx, sent), None, "{sent:?}");
        }
        let two = question(VerifierMode::Nginx, &request(&[BASIC, ("authorization", "Bearer x")]));
        assert_eq!(two.unwrap_err().code, "two_credentials");
    }

    #[test]
    fn only_a_success_with_one_name_lets_somebody_in() {
        let said = |mode, status: u16, headers: &[(&'static str, &str)]| {
            let status = StatusCode::from_u16(status).unwrap();
            let said = verdict(&verifier(mode), status, &map(headers));
            said.map_err(|error| (error.status.as_u16(), error.code))
        };
        use VerifierMode::{Forward, Nginx};
        let (ada, bob) = (("x-auth-request-user", "ada"), ("remote-user", "bob"));
        for mode in [Nginx, Forward] {
            for status in [200, 202, 204] {
                assert_eq!(said(mode, status, &[ada]).unwrap(), "ada");
            }
            assert_eq!(said(mode, 200, &[bob]).unwrap(), "bob");
            assert_eq!(said(mode, 401, &[ada]), Err((401, "verifier_denied")));
            assert_eq!(said(mode, 403, &[ada]), Err((403, "verifier_denied")));
            let odd = Err((502, "verifier_answer"));
            assert_eq!(said(mode, 200, &[]), odd);
            assert_eq!(said(mode, 200, &[("x-auth-request-user", "")]), odd);
            assert_eq!(said(mode, 200, &[ada, bob]), odd);
            assert_eq!(said(mode, 200, &[ada, ("x-auth-request-user", "eve")]), odd);
            for status in [101, 400, 404, 407, 429, 500, 503] {
                assert_eq!(said(mode, status, &[ada]), odd, "{status}");
            }
        }
        assert_eq!(said(Nginx, 302, &[ada]), Err((502, "verifier_answer")));
        assert_eq!(said(Forward, 302, &[ada]), Err((401, "verifier_denied")));
    }

    #[test]
    fn another_path_another_credential_or_another_verifier_is_another_question() {
        let of = |url: &str, path: &str, credential: &str| {
            let mut parts = request(&[("authorization", credential)]);
            parts.uri = path.parse().unwrap();
            let mut verifier = verifier(VerifierMode::Nginx);
            verifier.url = url.parse().unwrap();
            digest(&verifier, &question(verifier.mode, &parts).unwrap().unwrap())
        };
        let (url, other) = ("http://127.0.0.1:1/a", "http://127.0.0.1:2/a");
        let first = of(url, "/v1/models", "Basic YTpi");
        assert_eq!(first, of(url, "/v1/models", "Basic YTpi"));
        assert_ne!(first, of(url, "/v1/models", "Basic YTpj"));
        assert_ne!(first, of(url, "/metrics", "Basic YTpi"));
        assert_ne!(first, of(other, "/v1/models", "Basic YTpi"));
    }

    #[test]
    fn what_was_said_is_kept_ten_seconds_and_not_without_bound() {
        let (verified, begun) = (Verified::default(), Instant::now());
        let digest =
            |n: usize| digest(&verifier(VerifierMode::Nginx), &map(&[("x", &n.to_string())]));
        let keep = |n: usize, at| verified.keep(digest(n), Kept { name: n.to_string(), at });
        for n in 0..MOST_KEPT + 3 {
            keep(n, begun + Duration::from_millis(n as u64));
        }
        assert_eq!(verified.kept().len(), MOST_KEPT);
        assert_eq!(verified.of(&digest(2)), None, "the oldest go first");
        assert_eq!(verified.of(&digest(3)).as_deref(), Some("3"));
        keep(3, begun - FRESH);
        assert_eq!(verified.of(&digest(3)), None);
    }
}
