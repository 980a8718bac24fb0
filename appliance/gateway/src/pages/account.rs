//! A member's own account: password, signed-in browsers, what the box keeps about them.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{MembersError, Secret, SessionInfo};
use polder_page::{Field, Page, Tone, badge, banner, card, facts, field, table, tick, when};
use serde::Deserialize;

use crate::elsewhere::is_on_another_machine;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::people::share_in_words;
use crate::pages::who::SignedIn;
use crate::pages::{agree, arrive};
use crate::{Gateway, auth, forgetting};

/// Somebody who wants to be forgotten waits no longer than this to hear that it is done; done it is in any case.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
pub(super) struct NewPassword {
    #[serde(default)]
    present: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    again: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said)).await
}

pub(super) async fn password(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(form): Form<NewPassword>,
) -> Result<Response, Trouble> {
    let done = if form.password == form.again {
        let (id, keep) = (who.member.id, who.token.clone());
        let (present, new) = (Secret::new(form.present), Secret::new(form.password));
        gateway.members.ask(move |m| m.change_password(id, &present, &new, keep.expose())).await
    } else {
        Err(MembersError::Field("the two new passwords differ; write the same one twice".into()))
    };
    match done {
        Ok(()) => {
            who.record(&gateway, "changed password", "their own").await;
            Ok(Redirect::to("/account?said=password").into_response())
        }
        Err(error) => {
            let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
            Ok(with_status(frame::members_status(&error), page(&gateway, &who, top).await?))
        }
    }
}

pub(super) async fn forget(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    gateway.members.ask(move |m| m.want_forgotten(id)).await?;
    who.record(&gateway, "had the models forget", "their own conversations").await;
    let work = gateway.clone();
    // It goes on, also where nobody waits for it any more.
    let done = tokio::spawn(async move { forgetting::carry_out(&work).await });
    let said = match tokio::time::timeout(PATIENCE, done).await {
        Ok(Ok(Ok(0))) => "conversations",
        _ => "conversations-soon",
    };
    Ok(Redirect::to(&format!("/account?said={said}")).into_response())
}

#[derive(Deserialize)]
pub(super) struct Leaving {
    #[serde(default)]
    stays_here: String,
}

pub(super) async fn leaving(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(form): Form<Leaving>,
) -> Result<Response, Trouble> {
    let (id, stays_here) = (who.member.id, form.stays_here == "yes");
    gateway.members.ask(move |m| m.set_stays_here(id, stays_here)).await?;
    Ok(Redirect::to("/account?said=leaving").into_response())
}

pub(super) async fn out_everywhere(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    gateway.members.ask(move |m| m.sign_out_everywhere(id)).await?;
    let cookie = auth::no_session_cookie(who.peer.tls);
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to("/sign-in")).into_response())
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let (id, token) = (who.member.id, who.token.clone());
    let (sessions, linked, agreed) = gateway
        .members
        .ask(move |m| {
            let sessions = m.sessions(id, token.expose())?;
            Ok::<_, MembersError>((sessions, m.identities(id)?, m.agreements(id)?))
        })
        .await?;
    let status = gateway.status();
    let body = html! {
        (top)
        (card("You", facts(&[
            ("Name", html! { (who.member.name) }),
            ("E-mail", html! { (who.member.email.as_deref().unwrap_or("none")) }),
            ("Role", html! { (who.member.role.as_str()) }),
            ("Your share of the machine", html! { (share_in_words(who.member.share)) }),
            ("Member since", when(who.member.created_at, frame::now())),
        ])))
        (kept(gateway))
        (leaves(gateway, who.member.stays_here))
        section.card {
            h2 { "Where you are signed in" }
            (sessions_table(&sessions))
            form method="post" action="/account/sign-out-everywhere" {
                button.quiet type="submit" { "Sign out everywhere" }
            }
        }
        (agree::section(&agreed))
        @if let Some(sign_in) = &status.site.sign_in {
            (arrive::section(sign_in, &linked, who.member.has_password))
        }
        section.card {
            h2 { "Change your password" }
            form.stack method="post" action="/account/password" {
                (field(&Field { name: "present", label: "Present password", kind: "password", autocomplete: "current-password", required: true, ..Field::default() }))
                (field(&Field { name: "password", label: "New password", kind: "password", autocomplete: "new-password", hint: "At least 10 signs. Four words in a row are good.", required: true, ..Field::default() }))
                (field(&Field { name: "again", label: "The new password again", kind: "password", autocomplete: "new-password", required: true, ..Field::default() }))
                button type="submit" { "Change it" }
            }
        }
        section.card {
            h2 { "Your data, and leaving" }
            p { "Download everything that the box has about you, or leave it for good." }
            div.row {
                form method="post" action="/account/export" { button.quiet type="submit" { "Download my data" } }
                a.button.quiet href="/account/leave" { "Leave" }
            }
        }
    };
    let page = Page { title: "Your account", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/account"), body))
}

/// Everything there is, said plainly.
fn kept(gateway: &Gateway) -> Markup {
    card(
        "What the box keeps about you",
        html! {
            ul {
                li { "Your name, your role, the e-mail address if you gave one, and your password in a form that cannot be turned back." }
                @if gateway.status().site.sign_in.is_some() {
                    li { "If you sign in with what your collective has already: what you are called there, by number and name, and the address that was proven there." }
                }
                li { "Fingerprints of your keys, what you called them, their limits, and when each was last used." }
                li { "Which browsers are signed in: when, and last used when. And at which other apps you signed in with this box, as long as you are signed in; and what you agreed to for each, until you take it back." }
                li {
                    @if gateway.members.metering() {
                        "How many requests and tokens you used, per day, model and key, for 400 days. "
                        a href="/usage" { "See or delete it" } "."
                    } @else {
                        "No usage: this box does not count what its members use. (A key with a monthly quota has one number: its tokens this month.)"
                    }
                }
                li { "In the audit trail: when you joined, made or revoked a key, agreed to what an app may, or took that back, changed something about the box, or had your conversations forgotten." }
                li { (memory(gateway)) }
            }
            p { strong { "Never kept in words: " } "what you ask, and what the model answers; though whoever had the disk and the key could work words out of those numbers. When a member is removed, all of this goes with them, except the lines of the audit trail." }
            form method="post" action="/account/forget" data-confirm="Forget what the models remember of your conversations? Nothing else is lost: the next question of each is answered a little later." {
                button.quiet type="submit" { "Forget what the box remembers of my conversations" }
            }
        },
    )
}

/// Whether, and to whom, what is asked may leave the box.
fn leaves(gateway: &Gateway, stays_here: bool) -> Markup {
    let status = gateway.status();
    let site = &status.site;
    let passed_on: Vec<_> =
        site.engines.iter().filter(|(_, slot)| is_on_another_machine(slot)).collect();
    card(
        "What may leave the box",
        html! {
            @if site.upstreams.is_empty() && passed_on.is_empty() {
                p { "Nothing of what you ask leaves this box: it asks no other server." }
            }
            @if !passed_on.is_empty() {
                p { "These models are served by another machine, which reads each question to them:" }
                ul { @for (name, slot) in &passed_on {
                    li { strong { (name) } @if let Some(served) = &slot.served { " (" code { (served.url.authority()) } ")" } }
                } }
            }
            @if !site.upstreams.is_empty() {
                p { "Where the box cannot answer, it may put your question, with all of the conversation, to a server elsewhere. Whoever runs that reads it. It is not told who you are." }
                ul { @for (name, server) in &site.upstreams {
                    li { strong { (name) } " (" code { (server.url.authority()) } "): " (server.when()) }
                } }
            }
            form.stack method="post" action="/account/leaving" {
                (tick("stays_here", "My questions never leave this box", "What the box cannot answer itself, it then does not answer. A single key can be marked so too.", stays_here))
                button.quiet type="submit" { "Save" }
            }
        },
    )
}

/// What engines keep beside the model, and for how long.
fn memory(gateway: &Gateway) -> Markup {
    let site = &gateway.status().site;
    html! {
        "What the models made of your conversations, as numbers, so that the next question is answered at once: "
        @match site.keeping.days {
            0 => "in memory only, while they run.",
            days => {
                "in memory, and on disk encrypted with a key that the box keeps beside it and destroys when you say so, for "
                (days) @if days == 1 { " day" } @else { " days" } " after you last came back to it."
            }
        }
        @if site.sharing.trusting {
            " This box keeps it for all members together, under one key: whoever of you has it forgotten has all of it forgotten."
        }
    }
}

fn sessions_table(sessions: &[SessionInfo]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = sessions
        .iter()
        .map(|s| {
            vec![
                html! { "since " (when(s.created_at, now)) },
                html! { "last used " (when(s.seen_at, now)) },
                html! { @if s.this_one { (badge(Tone::Good, "this browser")) } },
            ]
        })
        .collect();
    table("Signed-in browsers", &["Signed in", "Used", ""], &rows)
}
