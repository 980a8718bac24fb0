//! In by the collective's own identity: to the service, back from it, and linking it to a member.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Form;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::Actor;
use polder_members::{Identity, IdentityRefused, Linked, MembersError, Ruling, Secret};
use polder_oidc::{Answer, Known, OidcError, Standing};
use polder_page::{Field, Page, Tone, badge, field, when};
use polder_site::SignIn;
use serde::Deserialize;

use crate::identity::{IdentityTrouble, Purpose};
use crate::pages::frame::{self, Trouble, answer, nav, with_status};
use crate::pages::sign_in;
use crate::pages::who::{self, Caller, SignedIn, own_path};
use crate::{Gateway, auth};

/// The cookie of a browser that is on the way, over TLS and on plain localhost.
const COOKIE: [&str; 2] = ["polder-way", "__Host-polder-way"];
/// As long as anybody may be on the way.
const COOKIE_SECONDS: u32 = 600;

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    next: String,
    /// Anything: as somebody else than the service takes them for.
    #[serde(default)]
    another: String,
}

#[derive(Deserialize)]
pub(super) struct Proof {
    /// Their password.
    #[serde(default)]
    proof: String,
}

/// To the service.
pub(super) async fn with(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Response {
    let next = own_path(&wanted.next).to_owned();
    let purpose = Purpose { next: next.clone(), link: None };
    match begin(&gateway, &caller, &headers, !wanted.another.is_empty(), purpose).await {
        Ok((to, cookie)) => {
            (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(&to)).into_response()
        }
        Err(error) => refused(&gateway, &next, &error),
    }
}

/// Back from the service.
pub(super) async fn back(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    said: Result<Query<Answer>, QueryRejection>,
) -> Response {
    match came_back(&gateway, &caller, &headers, said).await {
        Ok(response) => response,
        Err(error) => refused(&gateway, "/", &error),
    }
}

async fn came_back(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    headers: &HeaderMap,
    said: Result<Query<Answer>, QueryRejection>,
) -> Result<Response, Refusal> {
    let sign_in = sign_in(gateway)?;
    let Query(said) = said.map_err(|_| IdentityTrouble::from(OidcError::Lost))?;
    let browser = auth::cookie(headers, cookie_name(caller)).unwrap_or_default();
    let (known, purpose) = gateway.identities.end(&sign_in, said, browser).await?;
    let Some((id, session)) = purpose.link else {
        return arrive(gateway, caller, &sign_in, known, &purpose.next).await;
    };
    // Whoever began it must still be the one who sits there.
    let mine = caller.token.as_ref().filter(|token| token.expose() == session.expose());
    let mine = mine.cloned().ok_or_else(|| IdentityTrouble::from(OidcError::Lost))?;
    let identity = identity(&known);
    let done = gateway.members.ask(move |m| {
        let member = m.session(mine.expose())?.filter(|member| member.id == id);
        let member = member.ok_or(MembersError::NoMember)?;
        m.link_identity(id, &identity)?;
        Ok::<_, IdentityRefused>(member)
    });
    let member = done.await?;
    let by = Actor::Member(member.name);
    who::record(gateway, by, "linked themselves to", &sign_in.name).await;
    Ok(Redirect::to("/account?said=linked").into_response())
}

async fn arrive(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    sign_in: &SignIn,
    known: Known,
    next: &str,
) -> Result<Response, Refusal> {
    let Standing { admitted, steward } = Standing::of(sign_in, known.groups.as_deref());
    let ruling = Ruling { admitted, steward, new_people: sign_in.new_people };
    let (identity, before) = (identity(&known), caller.token.clone());
    let service = sign_in.name.clone();
    let arrived = gateway
        .members
        .ask(move |m| {
            let arrived = m.arrive(&identity, ruling, &service)?;
            // Whoever was signed in here before is not any more, also for apps that they went to.
            if let Some(before) = before {
                m.sign_out(before.expose())?;
            }
            Ok::<_, IdentityRefused>(arrived)
        })
        .await;
    let by_groups = format!("changed the role by the groups at {}", sign_in.name);
    if let Err(IdentityRefused::NotAdmitted { unmade: Some(name) }) = &arrived {
        let on = format!("{name} as member");
        who::record(gateway, Actor::Itself, &by_groups, &on).await;
    }
    let arrived = arrived?;
    let role = format!("as {}", arrived.member.role.as_str());
    let by = Actor::Member(arrived.member.name.clone());
    if arrived.joined {
        let what = format!("joined through {}", sign_in.name);
        who::record(gateway, by, &what, &role).await;
    }
    if arrived.changed {
        let on = format!("{} {role}", arrived.member.name);
        who::record(gateway, Actor::Itself, &by_groups, &on).await;
    }
    let to = if arrived.joined { "/?said=welcome" } else { own_path(next) };
    let cookies = [
        (header::SET_COOKIE, auth::session_cookie(&arrived.session, caller.peer.tls)),
        (header::SET_COOKIE, set_cookie(caller, "", 0)),
    ];
    Ok((AppendHeaders(cookies), Redirect::to(to)).into_response())
}

/// A member who is signed in links their identity. The password is asked for: an open browser would be enough to put
/// somebody else's identity there for ever.
pub(super) async fn link(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    headers: HeaderMap,
    Form(proof): Form<Proof>,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    let password = Secret::new(proof.proof);
    if !gateway.members.ask(move |m| m.is_password(id, &password)).await? {
        return Err(MembersError::WrongPassword.into());
    }
    let purpose = Purpose { next: "/account".to_owned(), link: Some((id, who.token.clone())) };
    let caller = Caller { peer: who.peer, token: Some(who.token.clone()), base: who.base.clone() };
    let begun = begin(&gateway, &caller, &headers, false, purpose).await;
    let (to, cookie) =
        begun.map_err(|refusal| Trouble::Say(refusal.status(), refusal.to_string()))?;
    // A redirect would be stopped by browsers after a form, which may lead to no other site.
    let body = html! { p { a href=(to) { "Go on to " (sign_in(&gateway).map_or(String::new(), |s| s.name)) } } };
    let page = Page { title: "On the way", narrow: true, ..Page::default() };
    let mut response = answer(&page, &nav(&gateway, &who.member, ""), body);
    if let Ok(refresh) = HeaderValue::try_from(format!("0; url={to}")) {
        response.headers_mut().insert(HeaderName::from_static("refresh"), refresh);
    }
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

pub(super) async fn unlink(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let site = &gateway.status().site;
    let Some(sign_in) = site.sign_in.clone() else {
        return Err(Trouble::not_found("people sign in on this box with its own passwords only"));
    };
    let (id, issuer) = (who.member.id, sign_in.issuer.to_string());
    let service = sign_in.name.clone();
    let unmade = gateway.members.ask(move |m| m.unlink_identity(id, &issuer, &service)).await?;
    who.record(&gateway, "unlinked themselves from", &sign_in.name).await;
    if unmade {
        let on = format!("{} as member", who.member.name);
        let what = format!("changed the role, which was by the groups at {},", sign_in.name);
        who::record(&gateway, Actor::Itself, &what, &on).await;
    }
    Ok(Redirect::to("/account?said=unlinked").into_response())
}

/// On the account page, where the site names a service.
pub(super) fn section(sign_in: &SignIn, linked: &[Linked], has_password: bool) -> Markup {
    let linked = linked.iter().find(|linked| linked.issuer == sign_in.issuer.as_str());
    html! {
        section.card {
            h2 { "Sign in with " (sign_in.name) }
            @match linked {
                Some(linked) => {
                    p { "You can sign in with " (sign_in.name) ", where you are " strong { (linked.shown) } ". Last done " (when(linked.seen_at, frame::now())) ". "
                        @if linked.made_steward { (badge(Tone::Plain, "steward by its groups")) } }
                    @if has_password {
                        form method="post" action="/account/unlink" data-confirm="Sign in with your password only?" {
                            button.quiet type="submit" { "Unlink it" }
                        }
                    } @else {
                        p.soft { "You have no password on this box. A steward can set you one, for days when " (sign_in.name) " is away." }
                    }
                }
                None => {
                    p { "Link yourself once, and sign in there from then on. Your password goes on working." }
                    form.stack method="post" action="/account/link" {
                        (field(&Field { name: "proof", label: "Your password here", kind: "password", autocomplete: "current-password", required: true, ..Field::default() }))
                        button type="submit" { "Go to " (sign_in.name) }
                    }
                }
            }
        }
    }
}

/// Why nobody came in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Way(#[from] IdentityTrouble),
    #[error(transparent)]
    Person(#[from] IdentityRefused),
    #[error(transparent)]
    Members(#[from] MembersError),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Way(IdentityTrouble::Oidc(error)) => match error {
                OidcError::Away { .. } => StatusCode::SERVICE_UNAVAILABLE,
                OidcError::NoService { .. } | OidcError::Elsewhere { .. } | OidcError::Root => {
                    StatusCode::BAD_GATEWAY
                }
                OidcError::Files(_) | OidcError::Key { .. } => StatusCode::INTERNAL_SERVER_ERROR,
                OidcError::Lost => StatusCode::BAD_REQUEST,
                OidcError::MixedUp { .. }
                | OidcError::Denied { .. }
                | OidcError::NotRedeemed { .. }
                | OidcError::NotProven { .. } => StatusCode::FORBIDDEN,
            },
            Self::Way(IdentityTrouble::Again(_) | IdentityTrouble::Busy) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Way(IdentityTrouble::Nowhere) => StatusCode::NOT_FOUND,
            Self::Way(IdentityTrouble::Files(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Person(IdentityRefused::Failed(error)) | Self::Members(error) => {
                frame::members_status(error)
            }
            Self::Person(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// The sign-in page with the reason: the password is the other way in.
fn refused(gateway: &Gateway, next: &str, why: &Refusal) -> Response {
    let status = why.status();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        log::error!("a sign-in failed: {why}");
    }
    let mut response =
        with_status(status, sign_in::page(gateway, "", next, Some(&why.to_string())));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

async fn begin(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    headers: &HeaderMap,
    another: bool,
    purpose: Purpose,
) -> Result<(String, HeaderValue), Refusal> {
    let sign_in = sign_in(gateway)?;
    // One for all its tabs; somebody who began twice may end either.
    let had = auth::cookie(headers, cookie_name(caller));
    let had = had.filter(|c| c.len() == 52 && c.bytes().all(|b| b.is_ascii_alphanumeric()));
    let browser = match had {
        Some(had) => Secret::new(had.to_owned()),
        None => Secret::random()?,
    };
    let (redirect, from) =
        (format!("{}/sign-in/back", caller.base), network(caller.peer.remote.ip()));
    let on = (browser.expose(), from.as_str());
    let to = gateway.identities.begin(&sign_in, redirect, another, on, purpose).await?;
    Ok((to, set_cookie(caller, browser.expose(), COOKIE_SECONDS)))
}

fn sign_in(gateway: &Gateway) -> Result<SignIn, IdentityTrouble> {
    gateway.status().site.sign_in.clone().ok_or(IdentityTrouble::Nowhere)
}

fn identity(known: &Known) -> Identity {
    let Known { issuer, subject, names, email, groups: _ } = known.clone();
    Identity { issuer, subject, names, email }
}

/// Whoever has one IPv6 address has a /64 of them.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:x?}", &address.segments()[..4]),
    }
}

fn cookie_name(caller: &Caller) -> &'static str {
    COOKIE[usize::from(caller.peer.tls)]
}

fn set_cookie(caller: &Caller, value: &str, seconds: u32) -> HeaderValue {
    let (name, secure) = (cookie_name(caller), if caller.peer.tls { "; Secure" } else { "" });
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    let mut value =
        HeaderValue::from_str(&text).expect("a token is letters and digits, the rest is ours");
    value.set_sensitive(true);
    value
}
