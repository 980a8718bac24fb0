//! Who asks for a page.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use polder_control::Actor;
use polder_members::{Member, Secret};

use crate::pages::frame::{self, Trouble};
use crate::pages::samples::Samples;
use crate::{Gateway, Peer, auth, deeds};

/// A member who is signed in. Strangers are sent to sign in.
pub(super) struct SignedIn {
    pub(super) member: Member,
    /// The session's cookie.
    pub(super) token: Secret,
    pub(super) peer: Peer,
    /// How they call this box: `https://oak.local:8443`.
    pub(super) base: String,
}

/// A steward who is signed in.
pub(super) struct Steward(pub(super) SignedIn);

/// How somebody reached us, signed in or not.
pub(super) struct Caller {
    pub(super) peer: Peer,
    pub(super) token: Option<Secret>,
    pub(super) base: String,
}

impl SignedIn {
    /// For the audit trail.
    pub(super) fn actor(&self) -> Actor {
        Actor::Member(self.member.name.clone())
    }

    /// Writes into the audit trail what this person did. It is done already: a supervisor that is
    /// away is told later.
    pub(super) async fn record(&self, gateway: &Gateway, what: &str, on: &str) {
        record(gateway, self.actor(), what, on).await;
    }
}

pub(super) async fn record(gateway: &Gateway, by: Actor, what: &str, on: &str) {
    deeds::record(gateway, by, what, on).await;
}

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Gateway>) -> Result<Self, Response> {
        let Some(peer) = parts.extensions.get::<Peer>().copied() else {
            log::error!("a request reached the pages without saying where it came from");
            return Err(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        };
        let token = auth::session_token(&parts.headers, peer.tls);
        let token = token.map(|token| Secret::new(token.to_owned()));
        Ok(Self { peer, token, base: base(parts, &peer) })
    }
}

impl FromRequestParts<Arc<Gateway>> for SignedIn {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, Response> {
        let Caller { peer, token, base } = Caller::from_request_parts(parts, gateway).await?;
        let Some(token) = token else { return Err(stranger(parts)) };
        let asked = token.clone();
        let found = gateway.members.ask(move |members| members.session(asked.expose())).await;
        match found {
            Ok(Some(member)) => {
                // Somebody is there: by the time they look at the dashboard it has something to show.
                if let Some(samples) = parts.extensions.get::<Arc<Samples>>() {
                    samples.begin(gateway);
                }
                Ok(Self { member, token, peer, base })
            }
            Ok(None) => Err(stranger(parts)),
            Err(error) => Err(Trouble::from(error).into_response()),
        }
    }
}

impl FromRequestParts<Arc<Gateway>> for Steward {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, Response> {
        let signed_in = SignedIn::from_request_parts(parts, gateway).await?;
        if signed_in.member.is_steward() {
            gateway.favour(signed_in.peer.remote.ip());
            Ok(Self(signed_in))
        } else {
            Err(frame::problem(
                StatusCode::FORBIDDEN,
                "this is for stewards; ask one of them to do it, or to make you one",
            ))
        }
    }
}

/// To the sign-in page, and from there back to where they wanted to go.
fn stranger(parts: &Parts) -> Response {
    // A piece of a page that was signed out meanwhile: the page loads itself again.
    if parts.headers.contains_key("x-piece") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let wanted = if parts.method == axum::http::Method::GET { path } else { "/" };
    if wanted == "/" {
        return Redirect::to("/sign-in").into_response();
    }
    Redirect::to(&format!("/sign-in?next={}", percent(wanted))).into_response()
}

/// Bytes of a path that somebody goes on to: an app's question at `/oidc/authorize` is a long one.
pub(super) const LONGEST_PATH: usize = 2000;

/// A path of ours, and nothing that a browser could read as another site.
pub(crate) fn own_path(given: &str) -> &str {
    let ours = given.starts_with('/')
        && !given.starts_with("//")
        && given.len() <= LONGEST_PATH
        && given.chars().all(|c| c.is_ascii_graphic() && c != '\\');
    if ours { given } else { "/" }
}

/// Everything but letters, digits and `-._~/` as `%XX`.
pub(crate) fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The door has checked the host against the box's names.
fn base(parts: &Parts, peer: &Peer) -> String {
    let header = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let line = parts.uri.authority().map(|a| a.as_str());
    let scheme = if peer.tls { "https" } else { "http" };
    match header.or(line) {
        Some(host) => format!("{scheme}://{host}"),
        None => format!("{scheme}://{}", peer.local),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_signing_in_nobody_is_led_to_another_site() {
        assert_eq!(own_path("/audit?before=7"), "/audit?before=7");
        for evil in [
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "",
            "/a\r\nb",
            "javascript:alert(1)",
        ] {
            assert_eq!(own_path(evil), "/", "{evil}");
        }
    }

    #[test]
    fn a_path_becomes_one_parameter() {
        assert_eq!(percent("/audit?before=7&a"), "/audit%3Fbefore%3D7%26a");
    }
}
