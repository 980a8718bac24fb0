//! Recovery sheets: three people keep one each, and two of them together make somebody a steward when nobody can get in.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{Member, MemberId, MembersError, Secret, Sheet, SheetInfo};
use polder_page::{Choice, Field, Page, Tone, badge, banner, facts, field, select, table, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

#[derive(Deserialize)]
pub(super) struct Holders {
    #[serde(default)]
    first: String,
    #[serde(default)]
    second: String,
    #[serde(default)]
    third: String,
}

#[derive(Deserialize)]
pub(super) struct Typed {
    #[serde(default)]
    sheet: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said)).await
}

pub(super) async fn make(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(holders): Form<Holders>,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    let ids = [&holders.first, &holders.second, &holders.third]
        .map(|text| text.trim().parse().map(MemberId).unwrap_or(MemberId(0)));
    match gateway.members.ask(move |m| m.make_sheets(by, ids)).await {
        Ok(()) => {
            who.record(&gateway, "began to make", "three recovery sheets").await;
            Ok(Redirect::to("/collective/sheets?said=sheets").into_response())
        }
        Err(error) => wrong(&gateway, &who, &error).await,
    }
}

/// A sheet, to be printed by the one who keeps it. A POST, so that no address and no history leads to it.
pub(super) async fn write_down(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    match gateway.members.ask(move |m| m.show_sheet(id)).await {
        Ok(made) => {
            who.record(&gateway, "looked at", &format!("recovery sheet {}", made.number())).await;
            let name = gateway.status().site.name.to_string();
            let page = Page { title: "Recovery sheet", narrow: true, ..Page::default() };
            let body = sheet(&made, &name, &who.member.name, &who.base);
            Ok(answer(&page, &nav(&gateway, &who.member, "/collective/sheets"), body))
        }
        Err(error) => wrong(&gateway, &who, &error).await,
    }
}

/// It was typed back from the paper.
pub(super) async fn confirm(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(typed): Form<Typed>,
) -> Result<Response, Trouble> {
    let (id, typed) = (who.member.id, Secret::new(typed.sheet));
    match gateway.members.ask(move |m| m.confirm_sheet(id, &typed)).await {
        Ok(whole) => {
            who.record(&gateway, "has on paper", "a recovery sheet").await;
            let said = if whole { "sheets-whole" } else { "sheet" };
            Ok(Redirect::to(&format!("/collective/sheets?said={said}")).into_response())
        }
        Err(error) => wrong(&gateway, &who, &error).await,
    }
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    error: &MembersError,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
    Ok(with_status(frame::members_status(error), page(gateway, who, top).await?))
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let (sheets, members) =
        gateway.members.ask(|m| Ok::<_, MembersError>((m.sheets()?, m.members()?))).await?;
    let mine = sheets.of(who.member.id);
    let body = html! {
        (top)
        @if let Some(mine) = mine { (to_keep(mine)) }
        section.card {
            div.row.spread {
                h2 { "In force" }
                @if sheets.in_force.is_empty() { (badge(Tone::Warn, "none")) } @else { (badge(Tone::Good, "two of three are enough")) }
            }
            @if sheets.in_force.is_empty() {
                p { "If no steward can get in any more, nobody can: no member is let in by anybody else, and the box itself knows no password." }
            } @else {
                (listed(&sheets.in_force))
                p.soft { "Two of these people together, at the page " a href="/locked-out" { "Nobody can get in" } " in the box's own network, name somebody who becomes a steward after 24 hours. Until then any steward can say no. One sheet alone is nothing, and the box keeps none of them, only their fingerprints." }
            }
        }
        @if !sheets.in_making.is_empty() {
            section.card { h2 { "Being made" } (listed(&sheets.in_making)) }
        }
        @if who.member.is_steward() { (make_form(&members)) }
    };
    let page = Page {
        title: "Recovery sheets",
        lead: Some("For the day on which no steward can get in."),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/collective/sheets"), body))
}

fn to_keep(mine: &SheetInfo) -> Markup {
    html! {
        section.card {
            h2 { "Your sheet: number " (mine.number) " of 3" }
            p { "Have it on paper, keep it where the box is not, and show it to nobody but the second one of you, on the day it is needed." }
            form method="post" action="/collective/sheets/show" {
                button.quiet[mine.shown] type="submit" { @if mine.shown { "Show another one in its place" } @else { "Show my sheet" } }
            }
            @if mine.shown {
                form.stack method="post" action="/collective/sheets/confirm" autocomplete="off" {
                    (field(&Field { name: "sheet", label: "Type it back from the paper", hint: "ten groups of four letters", required: true, ..Field::default() }))
                    button type="submit" { "It is on paper" }
                }
            }
        }
    }
}

fn listed(sheets: &[SheetInfo]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = sheets
        .iter()
        .map(|sheet| {
            vec![
                html! { (sheet.number) },
                html! { (sheet.holder) @if sheet.member.is_none() { " " (badge(Tone::Warn, "has left")) } },
                html! { @match sheet.confirmed_at {
                    Some(at) => { "on paper, " (when(at, now)) },
                    None => span.soft { "not on paper yet" },
                } },
            ]
        })
        .collect();
    table("Sheets", &["Sheet", "With", ""], &rows)
}

fn make_form(members: &[Member]) -> Markup {
    let ids: Vec<String> = members.iter().map(|m| m.id.to_string()).collect();
    let all = members.iter().zip(&ids).filter(|(m, _)| !m.disabled);
    let choices: Vec<Choice<'_>> =
        all.map(|(m, id)| Choice { value: id, label: &m.name }).collect();
    let one = |name, label, at: usize| {
        let chosen = choices.get(at).map_or("", |choice| choice.value);
        select(name, label, "", &choices, chosen)
    };
    html! {
        section.card {
            h2 { "Make three sheets" }
            @if choices.len() < 3 {
                p.soft { "Three different people keep one each; there are not yet three of you." }
            } @else {
                p { "Each of the three is shown their own sheet on this page, and nobody else's. Sheets in force stay so until the last of the new ones was typed back. Choose people who do not live in one house; they need not be stewards." }
                form.stack method="post" action="/collective/sheets/make" {
                    div.fields {
                        (one("first", "First", 0))
                        (one("second", "Second", 1))
                        (one("third", "Third", 2))
                    }
                    button type="submit" { "Ask them to keep one" }
                }
            }
        }
    }
}

/// The sheet itself. What a browser prints is the page, so that the words that are not needed there are few.
fn sheet(sheet: &Sheet, box_name: &str, holder: &str, base: &str) -> Markup {
    let (path, width) = sheet.svg_path();
    let groups: Vec<&str> = sheet.groups().collect();
    html! {
        section.card {
            h2 { "The box " (box_name) ": recovery sheet " (sheet.number()) " of 3" }
            @for line in groups.chunks(4) { p { strong { code { (line.join("  ")) } } } }
            svg role="img" aria-label="The sheet, to be photographed" width="180" height="180"
                viewBox=(format!("0 0 {width} {width}")) {
                rect width=(width) height=(width) fill="#fff" {}
                path d=(path) fill="#000" {}
            }
            (facts(&[
                ("Kept by", html! { (holder) }),
                ("Page, in the box's own network", html! { code { (base) "/locked-out" } }),
            ]))
            p { "When no steward can get in any more: go to that page with a second one of the three, and type both sheets. Whoever you name becomes a steward after 24 hours, unless a steward says no. One sheet alone is good for nothing." }
        }
        p.soft { "Print this page, then " a href="/collective/sheets" { "type the sheet back" } ". It is shown this once." }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sheet_shows_its_letters_its_number_and_where_to_go_and_as_a_square() {
        let made = Sheet::make(2).unwrap();
        let text = sheet(&made, "oak", "Ada", "https://oak.local:8443").into_string();
        assert!(made.groups().all(|group| text.contains(group)));
        for part in ["sheet 2 of 3", "<svg", "Ada", "https://oak.local:8443/locked-out"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
