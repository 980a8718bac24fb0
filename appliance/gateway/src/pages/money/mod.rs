//! The collective's money: what each member owes or has, and the fund. Nothing here moves money; it is written down.

mod books;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_ledger::{Books, Cents, Entry, Kind, write_own};
use polder_members::Member;
use polder_page::{Field, Page, Tone, badge, banner, empty, field, hidden, stat, tick};
use polder_site::{Currency, Money, SiteChange};

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

pub(super) use books::{correct, dues, enter, fund, name_off, split_month};
pub(super) use table::bring_in;

/// A form, in the order of its fields.
pub(super) type Fields = Vec<(String, String)>;

/// Entries on one page; the table has all.
const SHOWN: usize = 200;

fn value<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.trim())
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said), &Fields::new()).await
}

/// What everybody in the books is called.
#[derive(Clone)]
struct Names(BTreeMap<i64, String>);

impl Names {
    fn of(&self, member: i64) -> String {
        self.0.get(&member).cloned().unwrap_or_else(|| format!("former member {member}"))
    }
}

/// Everything that the page needs from the database.
struct Told {
    entries: Vec<Entry>,
    names: Names,
    members: Vec<Member>,
    agrees: bool,
}

async fn told(gateway: &Gateway, who: &SignedIn) -> Result<Told, Trouble> {
    let me = who.member.id;
    let told = gateway.members.ask(move |members| {
        Ok::<_, polder_members::MembersError>(Told {
            entries: members.ledger()?,
            names: Names(members.names_in_books()?),
            members: members.members()?,
            agrees: members.agrees_to_usage_shares(me)?,
        })
    });
    Ok(told.await?)
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    fields: &Fields,
) -> Result<Response, Trouble> {
    let currency = gateway.status().site.money.as_ref().map(|money| money.currency.clone());
    let steward = who.member.is_steward();
    let body = match &currency {
        None => html! { (top) (no_books(steward)) },
        Some(currency) => {
            let told = told(gateway, who).await?;
            let books = Books::of(&told.entries);
            html! {
                (top)
                (figures(&books, who, currency))
                (own(&told, who, currency))
                (agreement(gateway, &told))
                @if steward { (books::section(&told, &books, currency, fields)) (table::section()) (currency_form(currency)) }
                @else { (costs(&told, currency)) }
            }
        }
    };
    let page = Page {
        title: "Money",
        lead: Some("What was written down of dues, payments and costs. The box moves no money."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/money"), body))
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    why: &str,
    fields: &Fields,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, fields).await?))
}

fn no_books(steward: bool) -> Markup {
    html! {
        section.card {
            p { "No books are kept on this box." }
            @if steward {
                p.soft { "If your collective shares the cost of the machine, it can write down here who paid what. One currency, whole cents, and what was written down stays." }
                form.row method="post" action="/money/currency" {
                    (field(&Field { name: "currency", label: "Currency, by its three letters", value: "EUR", required: true, ..Field::default() }))
                    button type="submit" { "Keep books" }
                }
            }
        }
    }
}

fn shown(amount: Cents, currency: &Currency) -> String {
    format!("{amount}\u{a0}{currency}")
}

/// A balance in words: nobody has to know what a minus means.
fn balance(amount: Cents, currency: &Currency) -> Markup {
    html! {
        @match amount.0 {
            0 => (badge(Tone::Good, "even")),
            1.. => { (shown(amount, currency)) " ahead" },
            _ => { (shown(amount.size(), currency)) " owed" },
        }
    }
}

fn figures(books: &Books, who: &SignedIn, currency: &Currency) -> Markup {
    let own = books.of_member(who.member.id.0);
    let note = match own.0 {
        0 => "You are even.",
        1.. => "You paid more than you owe.",
        _ => "You owe this.",
    };
    html! {
        div.grid {
            (stat("You", &shown(own.size(), currency), html! { (note) }))
            (stat("The fund", &shown(books.fund, currency), html! { "payments less costs" }))
        }
    }
}

/// Cells of an entry that everybody may see of their own.
fn row(entry: &Entry, told: &Told, books: &Books, currency: &Currency) -> Vec<Markup> {
    let what = &entry.what;
    let word = match what.kind {
        Kind::Dues => "dues",
        Kind::Share => "part of the costs",
        Kind::Payment => "payment",
        Kind::Cost => "cost",
        Kind::Fund => "fund",
    };
    vec![
        html! { (entry.id.0) },
        html! { (what.day.to_string()) },
        html! {
            (word)
            @if let Some(month) = what.month { " for " (month) }
            @if let Some(of) = what.corrects { ", takes back " (of.0) }
            @if books.corrected.contains(&entry.id) { " " (badge(Tone::Plain, "taken back")) }
        },
        html! { (shown(what.amount, currency)) },
        html! { (what.note) },
        html! { (told.names.of(entry.by)) },
    ]
}

const HEAD: [&str; 6] = ["Number", "Day", "What", "Amount", "Note", "Entered by"];

fn own(told: &Told, who: &SignedIn, currency: &Currency) -> Markup {
    let me = who.member.id.0;
    let books = Books::of(&told.entries);
    let mine: Vec<&Entry> = told.entries.iter().filter(|e| e.what.member == Some(me)).collect();
    let rows: Vec<Vec<Markup>> =
        mine.iter().rev().take(SHOWN).map(|entry| row(entry, told, &books, currency)).collect();
    html! {
        section.card {
            h2 { "Yours" }
            @if rows.is_empty() { (empty("Nothing was written down about you.")) }
            @else {
                (polder_page::table("Your entries", &HEAD, &rows))
                p { a href="/money/mine.csv" { "All of yours as a table" } }
            }
        }
    }
}

/// What the fund paid, for everybody.
fn costs(told: &Told, currency: &Currency) -> Markup {
    let books = Books::of(&told.entries);
    let fund = told.entries.iter().filter(|e| matches!(e.what.kind, Kind::Cost | Kind::Fund));
    let rows: Vec<Vec<Markup>> =
        fund.rev().take(SHOWN).map(|entry| row(entry, told, &books, currency)).collect();
    html! {
        section.card {
            h2 { "What the fund paid" }
            @if rows.is_empty() { (empty("Nothing yet.")) } @else { (polder_page::table("The fund", &HEAD, &rows)) }
        }
    }
}

fn agreement(gateway: &Gateway, told: &Told) -> Markup {
    let counted = gateway.status().site.usage.per_member;
    html! {
        section.card {
            h2 { "How costs are split" }
            p { "Everybody has the same part of a month's costs. Only where every member agreed for the whole month, and the box counts usage, is it split by what each of you used: others can then tell from the amounts how much you used." }
            @if !counted { p.soft { "The box does not count usage now, so it is split equally in any case." } }
            form.stack method="post" action="/money/agree" {
                (tick("agree", "I agree to costs being split by usage, from this month on", "You can take it back; it then counts for nothing that is not split yet.", told.agrees))
                button.quiet type="submit" { "Save" }
            }
        }
    }
}

fn currency_form(currency: &Currency) -> Markup {
    html! {
        details {
            summary { "Currency, or no books" }
            form.row method="post" action="/money/currency" {
                (field(&Field { name: "currency", label: "Currency, by its three letters", hint: "It changes no amount. Empty: no books are kept, and what was written down stays.", value: currency.as_str(), ..Field::default() }))
                button.quiet type="submit" { "Save" }
            }
        }
    }
}

pub(super) async fn agree(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let (me, agree) = (who.member.id, value(&fields, "agree") == "yes");
    gateway.members.ask(move |members| members.agree_to_usage_shares(me, agree)).await?;
    Ok(Redirect::to("/money").into_response())
}

pub(super) async fn currency(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let change = match value(&fields, "currency") {
        "" => SiteChange::RemoveMoney,
        typed => match typed.parse() {
            Ok(currency) => SiteChange::Money(Money { currency }),
            Err(why) => {
                let why: polder_site::CurrencyError = why;
                return wrong(&gateway, &who, &why.to_string(), &fields).await;
            }
        },
    };
    change_site(&gateway, &who, change).await?;
    Ok(Redirect::to("/money").into_response())
}

/// One's own entries as a table.
pub(super) async fn mine(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let told = told(&gateway, &who).await?;
    let me = who.member.id.0;
    let mine: Vec<Entry> =
        told.entries.iter().filter(|entry| entry.what.member == Some(me)).cloned().collect();
    Ok(as_table("my-money.csv", write_own(&mine, &|member| told.names.of(member))))
}

/// Everything as a table.
pub(super) async fn all(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let told = told(&gateway, &who).await?;
    who.record(&gateway, "took a copy of", "the books").await;
    Ok(as_table("money.csv", write_own(&told.entries, &|member| told.names.of(member))))
}

fn as_table(name: &str, text: String) -> Response {
    let kind = (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned());
    let saved = (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\""));
    ([kind, saved], text).into_response()
}

/// A form that does what was shown: everything that was typed, once more.
fn again(action: &str, fields: &Fields) -> Markup {
    html! {
        form.row method="post" action=(action) {
            @for (name, value) in fields.iter().filter(|(name, _)| name != "seen") { (hidden(name, value)) }
            (hidden("seen", "yes"))
            button type="submit" { "Write it down" }
            a.button.quiet href="/money" { "Back" }
        }
    }
}

/// A page that shows what would be written down.
fn about_to(gateway: &Gateway, who: &SignedIn, title: &str, body: Markup) -> Response {
    let page = Page { title, narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/money"), body)
}
