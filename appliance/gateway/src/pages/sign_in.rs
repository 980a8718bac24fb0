//! Sign in, sign out.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::Actor;
use polder_members::{Secret, SignInRefused};
use polder_page::{Field, Page, Tone, banner, field, hidden};
use polder_site::SignIn;
use serde::Deserialize;

use crate::pages::frame::{self, Trouble, answer, plain_nav, sentence, with_status};
use crate::pages::who::{Caller, own_path, percent, record};
use crate::{Gateway, auth};

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    next: String,
    /// Anything: also whoever is signed in signs in anew.
    #[serde(default)]
    again: String,
}

#[derive(Deserialize)]
pub(super) struct Attempt {
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    next: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Trouble> {
    if !gateway.members.ask(|members| members.is_claimed()).await? {
        return Ok(Redirect::to("/setup").into_response());
    }
    if wanted.again.is_empty()
        && let Some(token) = caller.token
        && gateway.members.ask(move |m| m.session(token.expose())).await?.is_some()
    {
        return Ok(Redirect::to(own_path(&wanted.next)).into_response());
    }
    Ok(page(&gateway, "", own_path(&wanted.next), None))
}

pub(super) async fn take(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Form(attempt): Form<Attempt>,
) -> Response {
    let Attempt { name, password, next } = attempt;
    let (password, from) = (Secret::new(password), caller.peer.remote.ip());
    let asked = name.clone();
    let done = gateway.members.ask(move |m| m.sign_in(&asked, &password, from)).await;
    let refused = match done {
        Ok((member, token)) => {
            // What a steward can do to the box, somebody with their password can.
            if member.is_steward() {
                let by = Actor::Member(member.name.clone());
                record(&gateway, by, "signed in from", &from.to_string()).await;
            }
            let cookie = auth::session_cookie(&token, caller.peer.tls);
            return (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(own_path(&next)))
                .into_response();
        }
        Err(refused) => refused,
    };
    let (status, wait) = match &refused {
        SignInRefused::Wrong => (StatusCode::FORBIDDEN, None),
        SignInRefused::TooMany { seconds } => (StatusCode::TOO_MANY_REQUESTS, Some(*seconds)),
        SignInRefused::Failed(error) => {
            let status = frame::members_status(error);
            (status, (status == StatusCode::TOO_MANY_REQUESTS).then_some(5))
        }
    };
    let why = refused.to_string();
    let mut response =
        with_status(status, page(&gateway, &name, own_path(&next), Some(why.as_str())));
    if let Some(seconds) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

pub(super) async fn out(State(gateway): State<Arc<Gateway>>, caller: Caller) -> Response {
    if let Some(token) = caller.token
        && let Err(error) = gateway.members.ask(move |m| m.sign_out(token.expose())).await
    {
        return Trouble::from(error).into_response();
    }
    let cookie = auth::no_session_cookie(caller.peer.tls);
    (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to("/sign-in")).into_response()
}

pub(super) fn page(gateway: &Gateway, name: &str, next: &str, wrong: Option<&str>) -> Response {
    let page = Page { title: "Sign in", narrow: true, ..Page::default() };
    let status = gateway.status();
    answer(&page, &plain_nav(gateway), form(name, next, wrong, status.site.sign_in.as_ref()))
}

fn form(name: &str, next: &str, wrong: Option<&str>, other: Option<&SignIn>) -> Markup {
    html! {
        @if let Some(why) = wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
        @if let Some(other) = other {
            @let to = format!("/sign-in/with?next={}", percent(next));
            section.card {
                p { a.button href=(to) { "Sign in with " (other.name) } }
                p.soft.small { a href=(format!("{to}&another=yes")) { "As somebody else there" } }
            }
        }
        section.card {
            form.stack method="post" action="/sign-in" {
                (hidden("next", next))
                (field(&Field { name: "name", label: "Your name", value: name, autocomplete: "username",
                    required: true, autofocus: name.is_empty(), ..Field::default() }))
                (field(&Field { name: "password", label: "Password", kind: "password", autocomplete: "current-password",
                    required: true, autofocus: !name.is_empty(), ..Field::default() }))
                button type="submit" { "Sign in" }
            }
        }
        p.soft.small { "No account yet? A steward can send you an invite. Password forgotten? A steward can set a new one. No steward can get in any more? " a href="/locked-out" { "Nobody can get in" } }
        p.soft.small { "A warning about the certificate? " a href="/ca" { "Trust this box" } " once, and it is gone." }
    }
}
