//! Nobody can get in: two people with their sheets name somebody who becomes a steward. In the box's own network only.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use polder_control::{Actor, Request};
use polder_members::{NewMember, RecoveryAsked, RecoveryRefused, Secret, WhoRecovers};
use polder_page::{Field, Page, Tone, banner, field, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, plain_nav, sentence, with_status};
use crate::pages::who::{Caller, record};

/// How often it is looked whether a recovery's time has come.
const LOOK: Duration = Duration::from_secs(30);

#[derive(Deserialize, Default)]
pub(super) struct Asked {
    #[serde(default)]
    first: String,
    #[serde(default)]
    second: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    again: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
) -> Result<Response, Trouble> {
    near(&caller)?;
    page(&gateway, "", None).await
}

pub(super) async fn ask(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Form(asked): Form<Asked>,
) -> Result<Response, Trouble> {
    near(&caller)?;
    let from = caller.peer.remote.ip();
    let name = asked.name.clone();
    if asked.password != asked.again {
        let why = "the two passwords differ; write the same one twice, or leave both empty for somebody who is a member";
        return Ok(with_status(StatusCode::BAD_REQUEST, page(&gateway, &name, Some(why)).await?));
    }
    let (first, second) = (Secret::new(asked.first), Secret::new(asked.second));
    let who = match asked.password.is_empty() {
        true => WhoRecovers::Member(asked.name),
        false => {
            let password = Secret::new(asked.password);
            WhoRecovers::New(NewMember { name: asked.name, email: None, password })
        }
    };
    let done = gateway.members.ask(move |m| m.ask_recovery([&first, &second], &who, from)).await;
    let refused = match done {
        Ok(asked) => {
            let on = format!("{} (sheets of {})", asked.name, asked.holders);
            log::warn!("recovery sheets were used for {on}");
            record(
                &gateway,
                Actor::Member(asked.holders.clone()),
                "asked with recovery sheets for",
                &on,
            )
            .await;
            return page(&gateway, "", None).await;
        }
        Err(refused) => refused,
    };
    log::warn!(from:% = from; "recovery sheets were refused: {refused}");
    let (status, wait) = match &refused {
        RecoveryRefused::Sheets(_) => (StatusCode::FORBIDDEN, None),
        RecoveryRefused::TooMany { seconds } => (StatusCode::TOO_MANY_REQUESTS, Some(*seconds)),
        RecoveryRefused::Failed(error) => (frame::members_status(error), None),
    };
    let page = page(&gateway, &name, Some(&refused.to_string())).await?;
    let mut response = with_status(status, page);
    if let Some(seconds) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    Ok(response)
}

/// Does what sheets have asked for when its time has come, for as long as the door is open: also what came due while the machine was off.
pub(crate) async fn follow(gateway: Arc<Gateway>) {
    loop {
        match gateway.members.ask(|m| m.settle_recovery()).await {
            Ok(None) => {}
            Ok(Some(done)) => {
                log::warn!("{}", done.told);
                let what = match &done.name {
                    Some(_) => "made a steward by recovery sheets",
                    None => "could make nobody a steward by recovery sheets",
                };
                let on = done.name.unwrap_or_default();
                let noticed = Request::Noticed { what: what.to_owned(), on };
                if let Err(error) = gateway.ask(noticed).await {
                    log::error!("not written to the audit trail: {}: {error}", done.told);
                }
            }
            Err(error) => log::error!("what recovery sheets asked for could not be done: {error}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Sheets are typed where the box is.
fn near(caller: &Caller) -> Result<(), Trouble> {
    match caller.peer.is_local_network() {
        true => Ok(()),
        false => Err(Trouble::Say(
            StatusCode::FORBIDDEN,
            "recovery sheets are taken in the box's own network only; go there with them".into(),
        )),
    }
}

async fn page(gateway: &Gateway, name: &str, wrong: Option<&str>) -> Result<Response, Trouble> {
    let (recovery, sheets) = gateway
        .members
        .ask(|m| Ok::<_, polder_members::MembersError>((m.recovery()?, m.sheets()?)))
        .await?;
    let body = html! {
        @if let Some(why) = wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
        @match &recovery {
            Some(asked) => (waits(asked)),
            None if sheets.in_force.is_empty() => (no_sheets()),
            None => (form(name)),
        }
    };
    let page = Page { title: "Nobody can get in", narrow: true, ..Page::default() };
    Ok(answer(&page, &plain_nav(gateway), body).into_response())
}

fn waits(asked: &RecoveryAsked) -> Markup {
    html! {
        section.card {
            h2 { "It was asked for" }
            p { strong { (asked.name) } " becomes a steward " (when(asked.due_at, frame::now())) ", by the sheets of " (asked.holders) ". Every member is told. A steward who can get in after all can say no until then." }
            p { "The box need not stay on for it. Afterwards "
                @if asked.new { "they sign in with the name and password that were typed here." } @else { "they sign in as they always did." }
            }
            p { a href="/sign-in" { "Sign in" } }
        }
    }
}

fn no_sheets() -> Markup {
    html! {
        section.card {
            p { "This box has no recovery sheets in force. A steward who can get in makes them, on the page Collective." }
            p { "Without a steward and without sheets: the box can be restored from its backups with the emergency kit, or be made new, at its own screen." }
            p { a href="/sign-in" { "Sign in" } }
        }
    }
}

fn form(name: &str) -> Markup {
    html! {
        section.card {
            p { "Two of the three people who keep a recovery sheet, together: type both sheets, and name who is to look after the box. It happens after 24 hours, so that a steward who is there after all can say no. Every member is told at once." }
            form.stack method="post" action="/locked-out" autocomplete="off" {
                (field(&Field { name: "first", label: "One sheet", hint: "ten groups of four letters", required: true, ..Field::default() }))
                (field(&Field { name: "second", label: "Another sheet", hint: "ten groups of four letters", required: true, ..Field::default() }))
                (field(&Field { name: "name", label: "Who becomes a steward", value: name, hint: "the name of a member, or a new name", required: true, ..Field::default() }))
                (field(&Field { name: "password", label: "Password, for a new name only", kind: "password", autocomplete: "new-password", hint: "at least 10 signs; empty for a member, who signs in as before", ..Field::default() }))
                (field(&Field { name: "again", label: "The password again", kind: "password", autocomplete: "new-password", ..Field::default() }))
                button type="submit" { "Ask for it" }
            }
        }
        p.soft.small { "A password forgotten, and a steward is there? They set a new one, on the page Members. " a href="/sign-in" { "Sign in" } }
    }
}
