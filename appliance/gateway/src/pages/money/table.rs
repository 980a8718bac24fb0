//! Tables in and out: a bank's, or one of our own.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use polder_ledger::{Found, Kind, NewEntry, read_bank, read_own};
use polder_page::{Tone, badge, table};

use super::books::write;
use super::{Fields, Told, about_to, again, told, value, wrong};
use crate::Gateway;
use crate::pages::frame::Trouble;
use crate::pages::who::Steward;

/// What a table would bring.
struct Brought {
    entries: Vec<NewEntry>,
    rows: Vec<Vec<Markup>>,
    known: usize,
    whose: usize,
}

/// Brings a table in: first what it would bring, then it is written down.
pub(crate) async fn bring_in(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let told = told(&gateway, &who).await?;
    let known = gateway.members.ask(|members| members.known_entries()).await?;
    let brought = match read(value(&fields, "table"), &told, &known) {
        Ok(brought) => brought,
        Err(why) => return wrong(&gateway, &who, &why, &fields).await,
    };
    if !value(&fields, "seen").is_empty() {
        let what = format!("{} lines of a table", brought.entries.len());
        return write(&gateway, &who, brought.entries, &what, &fields).await;
    }
    let body = html! {
        section.card {
            h2 { "What the table would bring" }
            p {
                (brought.entries.len()) " new, " (brought.known) " known already, "
                (brought.whose) " that came in without the name of one member."
            }
            (table("Lines", &["Day", "Amount", "Text", "What comes of it"], &brought.rows))
            @if brought.entries.is_empty() { p { a.button.quiet href="/money" { "Back" } } }
            @else { (again("/money/bring-in", &fields, "yes")) }
        }
    };
    Ok(about_to(&gateway, &who, "Bring a table in", body))
}

fn read(
    text: &str,
    told: &Told,
    known: &std::collections::BTreeSet<String>,
) -> Result<Brought, String> {
    if text.is_empty() {
        return Err("the table is empty; copy the whole file into the field".to_owned());
    }
    let find = |name: &str| {
        let all = told.names.0.iter();
        let by_name = all.filter(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(id, _)| *id);
        let former = name.strip_prefix("former member ").and_then(|number| number.parse().ok());
        by_name.chain(former).next()
    };
    if let Some(all) = read_own(text, &find).map_err(|e| e.to_string())? {
        return Ok(own(all, told, known));
    }
    let members: Vec<(i64, String)> =
        told.members.iter().map(|member| (member.id.0, member.name.clone())).collect();
    let mut brought = Brought { entries: Vec::new(), rows: Vec::new(), known: 0, whose: 0 };
    for row in read_bank(text, &members, known).map_err(|e| e.to_string())? {
        let comes = match row.found {
            Found::New(entry) => {
                let comes = said(&entry, told);
                brought.entries.push(entry);
                comes
            }
            Found::Known => {
                brought.known += 1;
                html! { (badge(Tone::Plain, "known already")) }
            }
            Found::Whose => {
                brought.whose += 1;
                html! { (badge(Tone::Warn, "whose is it? enter it by hand")) }
            }
            Found::Empty => html! { "nothing" },
        };
        let (day, amount) = (row.day.to_string(), row.amount.to_string());
        brought.rows.push(vec![html! { (day) }, html! { (amount) }, html! { (row.text) }, comes]);
    }
    Ok(brought)
}

fn own(all: Vec<NewEntry>, told: &Told, known: &std::collections::BTreeSet<String>) -> Brought {
    let mut brought = Brought { entries: Vec::new(), rows: Vec::new(), known: 0, whose: 0 };
    for entry in all {
        let here = entry.known_by.as_ref().is_some_and(|key| known.contains(key));
        let comes = match here {
            true => {
                brought.known += 1;
                html! { (badge(Tone::Plain, "known already")) }
            }
            false => said(&entry, told),
        };
        let (day, amount) = (entry.day.to_string(), entry.amount.to_string());
        brought.rows.push(vec![html! { (day) }, html! { (amount) }, html! { (entry.note) }, comes]);
        if !here {
            brought.entries.push(entry);
        }
    }
    brought
}

fn said(entry: &NewEntry, told: &Told) -> Markup {
    let member = entry.member.map(|member| told.names.of(member)).unwrap_or_default();
    html! {
        @match entry.kind {
            Kind::Payment => { "a payment of " (member) },
            Kind::Cost => "a cost",
            Kind::Dues => { "dues of " (member) },
            Kind::Share => { "part of the costs of " (member) },
            Kind::Fund => "the fund's balance",
        }
    }
}

pub(super) fn section() -> Markup {
    html! {
        section.card {
            h2 { "Tables" }
            form method="post" action="/money.csv" { button.quiet type="submit" { "Everything as a table" } }
            form.stack method="post" action="/money/bring-in" {
                div.field {
                    label for="table" { "A bank's table, or one of ours" }
                    p.hint id="table-hint" { "Open the CSV file in a text editor and copy all of it here, up to 60 KB at a time. Nothing is written before you have seen it, and a line that was brought in before is recognised." }
                    textarea #table name="table" rows="6" required aria-describedby="table-hint" {}
                }
                button.quiet type="submit" { "Show what it would bring" }
            }
        }
    }
}
