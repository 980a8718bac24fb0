//! A remote shell for a while: who has it, opening and closing it; for stewards.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{OpenShell, Reply, Request};
use polder_page::{Choice, Field, Page, Tone, banner, field, select, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav};
use crate::pages::who::Steward;

#[derive(Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    key: String,
    #[serde(default)]
    hours: u64,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let open = of(gateway.ask(Request::Shell).await?)?;
    let name = gateway.status().site.name.clone();
    let body = html! {
        @if let Some(open) = &open { (now_open(open)) }
        section.card {
            h2 { @if open.is_some() { "Open it for another key instead" } @else { "Open a shell" } }
            p.soft { "Nobody needs this from day to day. It lets the holder of one SSH key log in as the box's own user, to read its log and run " code { "polder" } "; never as root. It closes by itself, and it is written down who opened it." }
            form.stack method="post" action="/shell" {
                div.fields {
                    (field(&Field { name: "key", label: "Public key", hint: "The line in a file like id_ed25519.pub", required: true, ..Field::default() }))
                    (select("hours", "For how long", "", &[
                        Choice { value: "1", label: "1 hour" },
                        Choice { value: "4", label: "4 hours" },
                        Choice { value: "24", label: "24 hours" },
                    ], "1"))
                }
                button type="submit" { "Open it" }
            }
            p.soft.small { "Then, on your own machine: " code { "ssh polder@" (name) ".local" } }
        }
    };
    let page = Page { title: "Remote shell", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(&gateway, &who.member, "/shell"), body))
}

pub(super) async fn open(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Wish { key, hours }): Form<Wish>,
) -> Result<Response, Trouble> {
    of(gateway.ask(Request::OpenShell { key, hours, by: who.actor() }).await?)?;
    Ok(Redirect::to("/shell").into_response())
}

pub(super) async fn close(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    of(gateway.ask(Request::CloseShell { by: who.actor() }).await?)?;
    Ok(Redirect::to("/shell").into_response())
}

fn of(reply: Reply) -> Result<Option<OpenShell>, Trouble> {
    match reply {
        Reply::Shell(open) => Ok(open),
        _ => Err(Trouble::odd_answer()),
    }
}

/// On every page where it matters that somebody can get in.
pub(super) fn now_open(open: &OpenShell) -> Markup {
    let until = i64::try_from(open.until).unwrap_or(i64::MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    banner(
        Tone::Warn,
        html! {
            p { "A remote shell is open. It closes by itself " (when(until, now)) ". It is for the key " code { (open.fingerprint) } "." }
            form method="post" action="/shell/close" { button.danger type="submit" { "Close it now" } }
        },
    )
}
