//! What is wrong with the box, what helps, and a button where the box can help itself; for stewards.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{
    Fix, HealthReply, HealthReport, HealthRequest, ImportSource, PartName, PartState, Past, Reply,
    Request, Severity, Standing, Unseen,
};
use polder_page::{Page, Tone, badge, banner, hidden, table, when};
use polder_site::SiteChange;
use serde::Deserialize;

use crate::Gateway;
use crate::health::{ask, report};
use crate::pages::alerts;
use crate::pages::frame::{self, Trouble, answer, nav, sentence};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Response {
    page(&gateway, &who, frame::said(&said.said), &alerts::Wish::default()).await
}

pub(super) async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    wish: &alerts::Wish,
) -> Response {
    let report = report(gateway).await;
    let body = html! {
        (top)
        @match &report {
            None => (away(gateway)),
            Some(report) => (issues(report)),
        }
        (alerts::section(gateway, report.as_ref(), wish).await)
        (support())
    };
    let page = Page {
        title: "Health",
        lead: Some("What is wrong with the box, since when, and what helps."),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/issues"), body)
}

/// Looks at everything now.
pub(super) async fn look(State(gateway): State<Arc<Gateway>>, Steward(who): Steward) -> Response {
    let top = match ask(&gateway, HealthRequest::LookNow).await {
        Ok(_) => banner(Tone::Good, html! { p { "Everything was looked at just now." } }),
        Err(why) => banner(Tone::Bad, html! { p { (sentence(&why)) } }),
    };
    page(&gateway, &who, top, &alerts::Wish::default()).await
}

#[derive(Deserialize)]
pub(super) struct Press {
    check: String,
    on: String,
}

/// Does what helps against an issue that still stands.
pub(super) async fn fix(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(press): Form<Press>,
) -> Result<Response, Trouble> {
    let standing = report(&gateway).await.map(|report| report.standing).unwrap_or_default();
    let pressed = standing.into_iter().find(|standing| {
        let id = &standing.issue.id;
        id.check.word() == press.check && id.on == press.on
    });
    let fix = pressed.and_then(|standing| standing.issue.fix);
    let fix = fix.ok_or_else(|| Trouble::not_found("that is not wrong any more"))?;
    let by = who.actor();
    let request = match fix {
        Fix::CheckUpdate => {
            gateway.ask(Request::CheckUpdate).await?;
            return Ok(Redirect::to("/versions").into_response());
        }
        Fix::StartPart(part) => {
            gateway.ask(Request::StartPart { part, by }).await?;
            let said = "It is started again; whether that helped shows within some minutes.";
            let top = banner(Tone::Good, html! { p { (said) } });
            return Ok(page(&gateway, &who, top, &alerts::Wish::default()).await);
        }
        Fix::BringModel(recipe) => Request::Import { recipe, from: ImportSource::Recipe, by },
        Fix::StartEngine(name) => {
            let slot = gateway.status().site.engines.get(&name).cloned();
            let gone = || Trouble::not_found("that model is not served any more");
            let change = SiteChange::Engine { slot: slot.ok_or_else(gone)?, name };
            Request::Apply { change, by }
        }
    };
    match gateway.ask(request).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

/// A text for whoever helps, as a file.
pub(super) async fn support_text(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    match ask(&gateway, HealthRequest::Support { by: who.actor() }).await {
        Ok(HealthReply::Support(text)) => {
            let name = gateway.status().site.name.clone();
            let file = format!("attachment; filename=\"polder-{name}.txt\"");
            let kind = "text/plain; charset=utf-8".to_owned();
            let head = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, file)];
            Ok((head, text).into_response())
        }
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => Err(Trouble::Say(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

/// Above other pages of stewards: what is wrong, in a line each.
pub(super) fn worst(report: Option<&HealthReport>) -> Markup {
    let standing = report.map(|report| &report.standing[..]).unwrap_or_default();
    let told = standing.iter().filter(|s| s.issue.severity >= Severity::Warning);
    let told: Vec<&Standing> = told.take(3).collect();
    let tone = match told.first().map(|s| s.issue.severity) {
        Some(Severity::Urgent) => Tone::Bad,
        _ => Tone::Warn,
    };
    html! {
        @if !told.is_empty() {
            (banner(tone, html! {
                @for standing in &told { p { (sentence(&standing.issue.what)) } }
                p { a href="/issues" { "What helps" } }
            }))
        }
    }
}

/// The part itself cannot tell that it is gone.
fn away(gateway: &Gateway) -> Markup {
    let status = gateway.status();
    let health = status.others.iter().find(|other| other.name == PartName::Health);
    let given_up = health.and_then(|other| match &other.part.state {
        PartState::GaveUp(why) => Some(why),
        _ => None,
    });
    banner(
        Tone::Bad,
        html! {
            @if let Some(why) = given_up {
                p { "Nobody looks after the box's health, and nobody is told when something is wrong: the part that does was given up. " (sentence(why)) }
                form method="post" action="/issues/again" { button type="submit" { "Start it again" } }
            } @else {
                p { "Nobody looks after the box's health just now: the part that does is away. It is started again by itself." }
            }
        },
    )
}

/// Starts the part that looks after the box's health once more.
pub(super) async fn again(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    gateway.ask(Request::StartPart { part: PartName::Health, by: who.actor() }).await?;
    Ok(Redirect::to("/issues").into_response())
}

fn issues(report: &HealthReport) -> Markup {
    html! {
        @if report.at == 0 {
            (banner(Tone::Plain, html! { p { "The box has just started; nobody has looked yet." } }))
        } @else if report.standing.is_empty() {
            (banner(Tone::Good, html! { p { "All is well." } }))
        }
        @for standing in &report.standing { (card(standing)) }
        section.card {
            div.row.spread {
                h2 { "Looked at" }
                form method="post" action="/issues/look" { button.quiet type="submit" { "Look at everything now" } }
            }
            @if report.at > 0 { p.soft { "The last time " (when(report.at, frame::now())) "." } }
            @if !report.unseen.is_empty() { (unseen(&report.unseen)) }
            @if !report.past.is_empty() { (past(&report.past)) }
        }
    }
}

fn card(standing: &Standing) -> Markup {
    let issue = &standing.issue;
    let tone = match issue.severity {
        Severity::Urgent => Tone::Bad,
        Severity::Warning => Tone::Warn,
        Severity::Notice => Tone::Plain,
    };
    html! {
        section.card {
            div.row.spread { h2 { (sentence(&issue.what)) } (badge(tone, issue.severity.word())) }
            p { (sentence(&issue.advice)) }
            p.soft.small {
                "Since " (when(standing.since, frame::now()))
                @if issue.unsafe_to_update { ". No update is taken until it is over" } "."
            }
            @if let Some(fix) = &issue.fix {
                form method="post" action="/issues/fix" {
                    (hidden("check", issue.id.check.word()))
                    (hidden("on", &issue.id.on))
                    button type="submit" { (fix.label()) }
                }
            }
        }
    }
}

fn unseen(unseen: &[Unseen]) -> Markup {
    html! {
        details {
            summary { "What nobody can tell" }
            @for unseen in unseen { p.small { code { (unseen.check) } " " (sentence(&unseen.why)) } }
        }
    }
}

fn past(past: &[Past]) -> Markup {
    let now = frame::now();
    let row = |past: &Past| {
        let lasted = past.until.saturating_sub(past.since).max(0).cast_unsigned();
        let lasted = polder_page::duration(lasted);
        vec![when(past.until, now), html! { (lasted) }, html! { (sentence(&past.what)) }]
    };
    let rows: Vec<Vec<Markup>> = past.iter().take(50).map(row).collect();
    html! {
        h2 { "Back to normal" }
        (table("Back to normal", &["When", "Lasted", "What was wrong"], &rows))
    }
}

fn support() -> Markup {
    html! {
        section.card {
            h2 { "Somebody helps" }
            p { "A text for somebody who helps you: how the box is, without passwords, keys, names of people, or a word of any conversation. Look through it before you send it; nothing is sent by itself." }
            form method="post" action="/support" { button.quiet type="submit" { "Make the text" } }
        }
    }
}
