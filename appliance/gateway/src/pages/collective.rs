//! The collective: who looks after the box, what everybody is told, and the ways of coming and going.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{Announcement, Member, RecoveryAsked};
use polder_page::{Field, Page, Tone, badge, banner, empty, field, hidden, table, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

#[derive(Deserialize)]
pub(super) struct Told {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
pub(super) struct Read {
    #[serde(default)]
    up_to: i64,
    #[serde(default)]
    back: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said), "").await
}

/// A steward tells everybody something.
pub(super) async fn announce(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(told): Form<Told>,
) -> Result<Response, Trouble> {
    let (text, by) = (told.text.clone(), who.member.name.clone());
    match gateway.members.ask(move |m| m.announce(&text, &by)).await {
        Ok(_) => {
            who.record(&gateway, "announced", &told.text).await;
            Ok(Redirect::to("/collective?said=announced").into_response())
        }
        Err(error) => {
            let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
            let page = page(&gateway, &who, top, &told.text).await?;
            Ok(with_status(frame::members_status(&error), page))
        }
    }
}

/// A member has read what was announced.
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(read): Form<Read>,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    gateway.members.ask(move |m| m.has_read(id, read.up_to)).await?;
    let back = if read.back == "home" { "/" } else { "/collective" };
    Ok(Redirect::to(back).into_response())
}

/// What this member has not read yet, for their first page.
pub(super) async fn unread(gateway: &Gateway, member: &Member) -> Result<Markup, Trouble> {
    let reader = member.clone();
    let unread = gateway.members.ask(move |m| m.unread(&reader)).await?;
    Ok(to_be_read(&unread, "home"))
}

fn to_be_read(unread: &[Announcement], back: &str) -> Markup {
    let now = frame::now();
    html! {
        @if let Some(newest) = unread.first() {
            section.card {
                h2 { "Announced to everybody" }
                @for told in unread {
                    p { (told.text) " " span.soft.small { (told.by) ", " (when(told.at, now)) } }
                }
                form method="post" action="/collective/read" {
                    (hidden("up_to", &newest.id.to_string()))
                    (hidden("back", back))
                    button.quiet type="submit" { "I have read it" }
                }
            }
        }
    }
}

/// What two sheets of paper have asked for, wherever a steward looks.
pub(super) fn recovery_waits(asked: &RecoveryAsked, steward: bool) -> Markup {
    banner(
        Tone::Bad,
        html! {
            p { "Two recovery sheets were used, those of " (asked.holders) ". " strong { (asked.name) } " becomes a steward " (when(asked.due_at, frame::now())) ", unless a steward says no before." }
            @if steward {
                form method="post" action="/collective/recovery/refuse" { button.danger type="submit" { "Say no" } }
            }
        },
    )
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    text: &str,
) -> Result<Response, Trouble> {
    let reader = who.member.clone();
    let (members, unread, all, recovery, sheets) = gateway
        .members
        .ask(move |m| {
            Ok::<_, polder_members::MembersError>((
                m.members()?,
                m.unread(&reader)?,
                m.announcements()?,
                m.recovery()?,
                m.sheets()?,
            ))
        })
        .await?;
    let stewards: Vec<&Member> = members.iter().filter(|m| m.is_steward()).collect();
    let steward = who.member.is_steward();
    let body = html! {
        (top)
        @if let Some(asked) = &recovery { (recovery_waits(asked, steward)) }
        (to_be_read(&unread, "collective"))
        @if sheets.of(who.member.id).is_some() {
            (banner(Tone::Warn, html! { p { "You are asked to keep a recovery sheet. " a href="/collective/sheets" { "Write it down" } } }))
        }
        section.card {
            div.row.spread {
                h2 { "Who looks after the box" }
                @if stewards.len() < 2 { (badge(Tone::Warn, "only one")) }
            }
            ul { @for steward in &stewards { li { (steward.name) } } }
            @if stewards.len() < 2 { (press_for_a_second(steward)) }
            p {
                @if steward { a href="/collective/stewards" { "Replace a steward" } " · " }
                a href="/collective/sheets" { "Recovery sheets" }
                @if sheets.in_force.is_empty() { " (none yet)" }
            }
        }
        @if steward { (announce_form(text)) }
        section.card {
            h2 { "The life of the collective" }
            ul {
                li { a href="/account/leave" { "Leave" } ": take your data along, and be forgotten." }
                li { a href="/money" { "Money" } ": dues, payments and what the box costs." }
                @if steward { li { a href="/moving" { "Moving house" } ": another network, the same names." } }
                li { a href="/collective/end" { "The end" } ": when the collective ends, or the box is given away." }
            }
        }
        section.card {
            h2 { "What was announced" }
            @if all.is_empty() { (empty("Nothing yet.")) } @else { (announced(&all)) }
        }
    };
    let page = Page {
        title: "Collective",
        lead: Some("The people whose box this is."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/collective"), body))
}

/// Where one steward is alone.
pub(super) fn press_for_a_second(steward: bool) -> Markup {
    html! {
        p {
            "With one steward alone, nobody can help when they are ill, leave, or forget their password. "
            @if steward { a href="/members" { "Make somebody else a steward too" } "." }
            @else { "Ask them to make somebody else a steward too." }
        }
    }
}

fn announce_form(text: &str) -> Markup {
    html! {
        section.card {
            h2 { "Tell everybody something" }
            form.stack method="post" action="/collective/announce" {
                (field(&Field { name: "text", label: "One or two sentences", value: text,
                    hint: "Everybody sees it on their first page until they have read it.", required: true, ..Field::default() }))
                button type="submit" { "Announce it" }
            }
        }
    }
}

fn announced(all: &[Announcement]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = all
        .iter()
        .take(50)
        .map(|told| vec![html! { (told.text) }, html! { (told.by) }, when(told.at, now)])
        .collect();
    table("What was announced", &["What", "By", "When"], &rows)
}
