//! Becoming a member with an invite's link.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use maud::html;
use polder_control::Actor;
use polder_members::{Invite, NewMember, Role, Secret};
use polder_page::{Field, Page, Tone, banner, field, when};
use serde::Deserialize;

use crate::pages::frame::{self, Trouble, answer, plain_nav, sentence, with_status};
use crate::pages::who::{self, Caller};
use crate::{Gateway, auth};

#[derive(Deserialize)]
pub(super) struct Newcomer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    again: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Path(token): Path<String>,
) -> Result<Response, Trouble> {
    let asked = token.clone();
    let invite = gateway.members.ask(move |m| m.look_at_invite(&asked)).await?;
    Ok(page(&gateway, &token, &invite, &Newcomer::empty(), None))
}

pub(super) async fn accept(
    State(gateway): State<Arc<Gateway>>,
    Path(token): Path<String>,
    caller: Caller,
    Form(newcomer): Form<Newcomer>,
) -> Result<Response, Trouble> {
    let asked = token.clone();
    let invite = gateway.members.ask(move |m| m.look_at_invite(&asked)).await?;
    if newcomer.password != newcomer.again {
        let why = "the two passwords differ; write the same one twice";
        let page = page(&gateway, &token, &invite, &newcomer, Some(why));
        return Ok(with_status(axum::http::StatusCode::BAD_REQUEST, page));
    }
    let new = NewMember {
        name: newcomer.name.clone(),
        email: Some(newcomer.email.clone()),
        password: Secret::new(newcomer.password.clone()),
    };
    let asked = token.clone();
    let done = gateway
        .members
        .ask(move |m| {
            let member = m.accept_invite(&asked, &new)?;
            m.begin_session(member.id)
        })
        .await;
    match done {
        Ok((member, session)) => {
            let on = format!("as {}", member.role.as_str());
            who::record(&gateway, Actor::Member(member.name.clone()), "joined", &on).await;
            let cookie = auth::session_cookie(&session, caller.peer.tls);
            Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to("/?said=welcome"))
                .into_response())
        }
        Err(error) => {
            let status = frame::members_status(&error);
            let page = page(&gateway, &token, &invite, &newcomer, Some(&error.to_string()));
            Ok(with_status(status, page))
        }
    }
}

impl Newcomer {
    fn empty() -> Self {
        let nothing = String::new;
        Self { name: nothing(), email: nothing(), password: nothing(), again: nothing() }
    }
}

fn page(
    gateway: &Gateway,
    token: &str,
    invite: &Invite,
    newcomer: &Newcomer,
    wrong: Option<&str>,
) -> Response {
    let from = invite.made_by.as_deref().unwrap_or("a steward");
    let role = match invite.role {
        Role::Steward => "a steward: you will help to look after the box",
        Role::Member => "a member",
    };
    let body = html! {
        @if let Some(why) = wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
        section.card {
            p { strong { (from) } " invites you to be " (role) ". The invite ends " (when(invite.expires_at, frame::now())) "." }
            form.stack method="post" action=(format!("/invite/{}", who::percent(token))) {
                (field(&Field { name: "name", label: "Your name", value: &newcomer.name, autocomplete: "username",
                    hint: "What the others call you. You sign in with it.", required: true, autofocus: true, ..Field::default() }))
                (field(&Field { name: "email", label: "E-mail (if you like)", kind: "email", value: &newcomer.email, autocomplete: "email",
                    hint: "The box sends no mail. Other members see this; other web apps are not told it.", ..Field::default() }))
                (field(&Field { name: "password", label: "Password", kind: "password", autocomplete: "new-password",
                    hint: "At least 10 signs. Four words in a row are good.", required: true, ..Field::default() }))
                (field(&Field { name: "again", label: "The same password again", kind: "password", autocomplete: "new-password",
                    required: true, ..Field::default() }))
                button type="submit" { "Join" }
            }
        }
    };
    let page = Page { title: "You are invited", narrow: true, ..Page::default() };
    answer(&page, &plain_nav(gateway), body)
}
