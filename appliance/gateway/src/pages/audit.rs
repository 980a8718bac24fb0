//! The audit trail: who did what, when; for stewards.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use polder_control::{AuditEntry, Reply, Request};
use polder_page::{Page, empty, table, when_rfc3339};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, nav};
use crate::pages::who::Steward;

const PER_PAGE: u32 = 50;

#[derive(Deserialize)]
pub(super) struct Place {
    #[serde(default)]
    before: Option<u64>,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(place): Query<Place>,
) -> Result<Response, Trouble> {
    let question = Request::Audit { before: place.before, limit: PER_PAGE };
    let Reply::Audit(entries) = gateway.ask(question).await? else {
        return Err(Trouble::odd_answer());
    };
    let last = entries.last().map(|e| e.number).filter(|n| *n > 1);
    let body = html! {
        section.card {
            @if entries.is_empty() { (empty("Nothing here.")) } @else { (audit_table(&entries)) }
            div.row.spread {
                @if place.before.is_some() { a href="/audit" { "Newest" } } @else { span {} }
                @if let Some(number) = last { a href=(format!("/audit?before={number}")) { "Older" } }
            }
        }
    };
    let page = Page {
        title: "Who did what",
        lead: Some(
            "Every change to the box, by whom and when. Each line carries a fingerprint of the one before, so that a changed or missing line shows.",
        ),
        ..Page::default()
    };
    Ok(answer(&page, &nav(&gateway, &who.member, "/audit"), body))
}

pub(super) fn audit_table(entries: &[AuditEntry]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = entries
        .iter()
        .map(|e| {
            vec![
                html! { span.soft { (e.number) } },
                when_rfc3339(&e.at, now),
                html! { (e.by) },
                html! { (e.what) },
                html! { (e.on) },
            ]
        })
        .collect();
    table("Audit trail", &["No.", "When", "Who", "Did", "To what"], &rows)
}
