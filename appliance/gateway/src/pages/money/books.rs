//! What stewards write down.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use jiff::civil::Date;
use maud::{Markup, html};
use polder_ledger::{
    Basis, Books, Cents, Entry, EntryId, Kind, LedgerError, Month, MonthError, NewEntry, shares,
};
use polder_members::{Member, Members};
use polder_page::{Choice, Field, Tone, badge, banner, card, empty, field, hidden, select, table};
use polder_site::Currency;
use sha2::{Digest as _, Sha256};

use super::{Fields, HEAD, SHOWN, Told, about_to, again, balance, row, told, value, wrong};
use crate::Gateway;
use crate::pages::frame::{Trouble, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// Today, as the box has it.
fn today() -> Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn day(fields: &Fields) -> Result<Date, String> {
    match value(fields, "day") {
        "" => Ok(today()),
        typed => typed
            .parse()
            .map_err(|_| LedgerError::Day(typed.chars().take(40).collect()).to_string()),
    }
}

fn amount(fields: &Fields) -> Result<Cents, String> {
    Cents::typed(value(fields, "amount")).map_err(|e| e.to_string())
}

fn month(fields: &Fields) -> Result<Option<Month>, String> {
    match value(fields, "month") {
        "" => Ok(None),
        typed => typed.parse().map(Some).map_err(|e: MonthError| e.to_string()),
    }
}

/// A payment or a cost.
fn one(fields: &Fields) -> Result<NewEntry, String> {
    let member = value(fields, "member").parse().ok();
    let kind = match value(fields, "kind") {
        "payment" if member.is_none() => return Err("choose whose payment it is".to_owned()),
        "payment" => Kind::Payment,
        "cost" => Kind::Cost,
        _ => return Err("the form says neither payment nor cost; open the page anew".to_owned()),
    };
    let month = month(fields)?.filter(|_| kind == Kind::Cost);
    let member = member.filter(|_| kind == Kind::Payment);
    let entry = NewEntry::of(kind, day(fields)?, member, amount(fields)?);
    let entry = NewEntry { month, note: value(fields, "note").to_owned(), ..entry };
    entry.check().map_err(|e| e.to_string())?;
    Ok(entry)
}

pub(crate) async fn enter(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    match one(&fields) {
        Ok(entry) => {
            let what = format!("a {}", entry.kind.word());
            let seen = value(&fields, "seen").to_owned();
            let planned = Planned {
                title: format!("The same {} once more?", entry.kind.word()),
                what: what.clone(),
                entries: vec![entry.clone()],
            };
            // A form that was sent twice, or two stewards with one receipt: looked for where nobody can write in between.
            let (me, seal) = (who.member.id, planned.seal());
            let done = gateway.members.ask(move |members| {
                members.enter_from(me, |entries| match seen != seal && is_there(entries, &entry) {
                    true => Err(TWICE.to_owned()),
                    false => Ok(vec![entry]),
                })
            });
            match done.await {
                Ok(_) => {
                    who.record(&gateway, "wrote into the books:", &what).await;
                    Ok(Redirect::to("/money?said=money").into_response())
                }
                Err(error) if error.to_string() == TWICE => {
                    let now = told(&gateway, &who).await?;
                    let action = "/money/enter";
                    let page =
                        preview(&gateway, &who, &now, &planned, action, &fields, Some(TWICE));
                    Ok(with_status(StatusCode::CONFLICT, page))
                }
                Err(error) => wrong(&gateway, &who, &error.to_string(), &fields).await,
            }
        }
        Err(why) => wrong(&gateway, &who, &why, &fields).await,
    }
}

const TWICE: &str = "the same is in the books already: the same day, the same amount, of the same member, so nothing was written; write it down once more only if it was paid twice";

/// Whether the books have one that nobody could tell from it by its day, its amount and whose it is, and that was not taken back.
fn is_there(entries: &[Entry], new: &NewEntry) -> bool {
    let books = Books::of(entries);
    entries.iter().any(|entry| {
        let what = &entry.what;
        let same = (what.kind, what.day, what.member, what.amount, what.month)
            == (new.kind, new.day, new.member, new.amount, new.month);
        same && what.corrects.is_none() && !books.corrected.contains(&entry.id)
    })
}

/// What would be written down, and what that is called.
struct Planned {
    title: String,
    /// For the audit trail.
    what: String,
    entries: Vec<NewEntry>,
}

impl Planned {
    /// By which it is known whether what is written is what was shown.
    fn seal(&self) -> String {
        let digest = Sha256::digest(format!("{:?}", self.entries));
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// First what would be written, then it is: as it was shown, or it is shown anew. The plan is made once more where nobody can write in between.
async fn planned(
    gateway: &Gateway,
    who: &SignedIn,
    action: &str,
    fields: &Fields,
    plan: impl Fn(&[Entry]) -> Result<Planned, String> + Send + Sync + 'static,
) -> Result<Response, Trouble> {
    let before = told(gateway, who).await?;
    let first = match plan(&before.entries) {
        Ok(planned) => planned,
        Err(why) => return wrong(gateway, who, &why, fields).await,
    };
    let seen = value(fields, "seen").to_owned();
    if seen.is_empty() {
        return Ok(preview(gateway, who, &before, &first, action, fields, None));
    }
    let (me, plan) = (who.member.id, Arc::new(plan));
    let again = plan.clone();
    let work = move |members: &Members| {
        members.enter_from(me, |entries| {
            let planned = again(entries)?;
            match planned.seal() == seen {
                true => Ok(planned.entries),
                false => Err(CHANGED.to_owned()),
            }
        })
    };
    match gateway.members.ask(work).await {
        Ok(_) => {
            who.record(gateway, "wrote into the books:", &first.what).await;
            Ok(Redirect::to("/money?said=money").into_response())
        }
        Err(error) if error.to_string() == CHANGED => {
            let now = told(gateway, who).await?;
            match plan(&now.entries) {
                Ok(planned) => {
                    let page = preview(gateway, who, &now, &planned, action, fields, Some(CHANGED));
                    Ok(with_status(StatusCode::CONFLICT, page))
                }
                Err(why) => wrong(gateway, who, &why, fields).await,
            }
        }
        Err(error) => wrong(gateway, who, &error.to_string(), fields).await,
    }
}

const CHANGED: &str = "the books, or the day, changed since this was shown, so nothing was written; look at it once more";

/// Dues of everybody for a month.
pub(crate) async fn dues(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let members = gateway.members.ask(|members| members.members()).await?;
    let asked = fields.clone();
    let plan = move |entries: &[Entry]| dues_of(entries, &members, &asked);
    planned(&gateway, &who, "/money/dues", &fields, plan).await
}

/// Whoever has dues for the month already has them once.
fn dues_of(entries: &[Entry], members: &[Member], fields: &Fields) -> Result<Planned, String> {
    let month = month(fields)?.ok_or("say for which month, such as 2026-11")?;
    let (amount, day) = (amount(fields)?, day(fields)?);
    let books = Books::of(entries);
    let has = |member: &Member| {
        entries.iter().any(|entry| {
            let what = &entry.what;
            what.kind == Kind::Dues
                && what.member == Some(member.id.0)
                && what.month == Some(month)
                && what.corrects.is_none()
                && !books.corrected.contains(&entry.id)
        })
    };
    let owe = members.iter().filter(|member| !member.disabled && !has(member));
    let entries: Vec<NewEntry> = owe
        .map(|member| {
            let entry = NewEntry::of(Kind::Dues, day, Some(member.id.0), amount);
            NewEntry { month: Some(month), ..entry }
        })
        .collect();
    let first = entries.first().ok_or_else(|| format!("everybody has dues for {month} already"))?;
    first.check().map_err(|error| error.to_string())?;
    let title = format!("Dues for {month}");
    Ok(Planned { title, what: format!("dues of everybody for {month}"), entries })
}

/// The fund is counted, and the difference is written down: to what the books say at that moment.
pub(crate) async fn fund(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let (me, asked) = (who.member.id, fields.clone());
    let done = gateway.members.ask(move |members| {
        members.enter_from(me, |entries| {
            let difference = amount(&asked)? - Books::of(entries).fund;
            let entry = NewEntry::of(Kind::Fund, day(&asked)?, None, difference);
            let entry = NewEntry { note: value(&asked, "note").to_owned(), ..entry };
            match entry.check() {
                Err(LedgerError::Nothing) => Err("the fund has that much already".to_owned()),
                Err(why) => Err(why.to_string()),
                Ok(()) => Ok(vec![entry]),
            }
        })
    });
    match done.await {
        Ok(_) => {
            who.record(&gateway, "wrote into the books:", "the fund's balance").await;
            Ok(Redirect::to("/money?said=money").into_response())
        }
        Err(why) => wrong(&gateway, &who, &why.to_string(), &fields).await,
    }
}

pub(crate) async fn correct(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let told = told(&gateway, &who).await?;
    let number = value(&fields, "entry").parse().ok().map(EntryId);
    let entry = told.entries.iter().find(|entry| Some(entry.id) == number);
    let Some(entry) = entry else {
        return wrong(&gateway, &who, "there is no such entry; open the page anew", &fields).await;
    };
    let back = entry.taken_back(today(), value(&fields, "note").to_owned());
    let what = format!("a correction of entry {}", entry.id.0);
    write(&gateway, &who, vec![back], &what, &fields).await
}

/// Splits what a month cost.
pub(crate) async fn split_month(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let month = match month(&fields) {
        Ok(Some(month)) => month,
        Ok(None) => {
            let why = "say which month, such as 2026-11";
            return wrong(&gateway, &who, why, &fields).await;
        }
        Err(why) => return wrong(&gateway, &who, &why, &fields).await,
    };
    let asked = gateway.members.ask(move |members| {
        Ok::<_, polder_members::MembersError>((
            members.usage_agreed(month)?,
            members.usage_in_month(month)?,
            members.members()?,
        ))
    });
    let (agreed, used, members) = asked.await?;
    let used = gateway.status().site.usage.per_member.then_some(used);
    let members: Vec<i64> = members.iter().filter(|m| !m.disabled).map(|m| m.id.0).collect();
    let plan = move |entries: &[Entry]| {
        let (basis, parts) = shares(entries, month, &members, &agreed, used.as_ref());
        if parts.is_empty() {
            return Err(format!(
                "nothing of {month} is left to be split: no cost is written down for it, or all of it was split"
            ));
        }
        let (note, how) = match basis {
            Basis::Equally => ("in equal parts", "in equal parts"),
            Basis::Usage(_) => ("by usage", "by usage: everybody agreed"),
        };
        let entry = |member, amount| {
            let entry = NewEntry::of(Kind::Share, today(), Some(member), amount);
            NewEntry { month: Some(month), note: note.to_owned(), ..entry }
        };
        Ok(Planned {
            title: format!("Costs of {month}, {how}"),
            what: format!("everybody's part of the costs of {month}"),
            entries: parts.into_iter().map(|share| entry(share.member, share.amount)).collect(),
        })
    };
    planned(&gateway, &who, "/money/split", &fields, plan).await
}

/// Somebody who left asks that their name goes.
pub(crate) async fn name_off(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(fields): Form<Fields>,
) -> Result<Response, Trouble> {
    let member: i64 = value(&fields, "member").parse().unwrap_or(0);
    gateway.members.ask(move |members| members.take_name_off(member)).await?;
    // Not who it was: the trail stays, too.
    who.record(&gateway, "took a name off the books:", &format!("former member {member}")).await;
    Ok(Redirect::to("/money?said=money-name").into_response())
}

pub(super) async fn write(
    gateway: &Gateway,
    who: &SignedIn,
    entries: Vec<NewEntry>,
    what: &str,
    fields: &Fields,
) -> Result<Response, Trouble> {
    let me = who.member.id;
    match gateway.members.ask(move |members| members.enter(me, &entries)).await {
        Ok(_) => {
            who.record(gateway, "wrote into the books:", what).await;
            Ok(Redirect::to("/money?said=money").into_response())
        }
        Err(why) => wrong(gateway, who, &why.to_string(), fields).await,
    }
}

fn preview(
    gateway: &Gateway,
    who: &SignedIn,
    told: &Told,
    planned: &Planned,
    action: &str,
    fields: &Fields,
    why: Option<&str>,
) -> Response {
    let entries = &planned.entries;
    let rows: Vec<Vec<Markup>> = entries
        .iter()
        .map(|entry| {
            let name = entry.member.map(|member| told.names.of(member)).unwrap_or_default();
            vec![html! { (name) }, html! { (entry.amount.to_string()) }]
        })
        .collect();
    let sum: Cents = entries.iter().map(|entry| entry.amount).sum();
    let body = html! {
        @if let Some(why) = why { (banner(Tone::Warn, html! { p { (sentence(why)) } })) }
        section.card {
            h2 { (planned.title) }
            (table("What would be written down", &["Member", "Amount"], &rows))
            p { "Together " strong { (sum.to_string()) } "." }
            (again(action, fields, &planned.seal()))
        }
    };
    about_to(gateway, who, &planned.title, body)
}

/// All of it, and the forms.
pub(super) fn section(told: &Told, books: &Books, currency: &Currency, fields: &Fields) -> Markup {
    html! {
        (balances(told, books, currency))
        (forms(told, fields))
        (entries(told, books, currency))
    }
}

fn balances(told: &Told, books: &Books, currency: &Currency) -> Markup {
    let member = |id: i64| told.members.iter().find(|member| member.id.0 == id);
    let mut all: Vec<i64> = told.members.iter().map(|m| m.id.0).collect();
    all.extend(books.members.keys().filter(|id| member(**id).is_none()));
    let rows: Vec<Vec<Markup>> = all
        .into_iter()
        .map(|id| {
            let gone = member(id).is_none();
            let named = told.names.0.contains_key(&id);
            vec![
                html! { (told.names.of(id)) @if gone { " " (badge(Tone::Plain, "left")) } },
                html! { (balance(books.of_member(id), currency)) },
                html! {
                    @if gone && named {
                        form method="post" action="/money/name-off" data-confirm="Take the name off? Their entries stay under a number." {
                            (hidden("member", &id.to_string()))
                            button.quiet type="submit" { "They ask that their name goes" }
                        }
                    }
                },
            ]
        })
        .collect();
    html! {
        section.card {
            h2 { "Everybody" }
            (table("Balances", &["Member", "Balance", ""], &rows))
        }
    }
}

fn forms(told: &Told, fields: &Fields) -> Markup {
    let day = today().to_string();
    let month = Month::of(today()).to_string();
    let members: Vec<(String, &str)> =
        told.members.iter().map(|m| (m.id.0.to_string(), m.name.as_str())).collect();
    let members: Vec<Choice<'_>> =
        members.iter().map(|(value, label)| Choice { value, label }).collect();
    let or = |name: &str, usual: &str| match value(fields, name) {
        "" => usual.to_owned(),
        typed => typed.to_owned(),
    };
    // Several forms ask for an amount: each label leads to its own.
    let text = |form: &str, name, label, value: &str| {
        let id = format!("{form}-{name}");
        field(&Field {
            name,
            id: &id,
            label,
            value,
            required: name == "amount",
            ..Field::default()
        })
    };
    html! {
        div.grid {
            (card("A payment", html! {
                form.stack method="post" action="/money/enter" {
                    (hidden("kind", "payment"))
                    (select("member", "Of", "", &members, &or("member", "")))
                    (text("payment", "amount", "Amount", &or("amount", "")))
                    (text("payment", "day", "Day", &or("day", &day)))
                    (text("payment", "note", "Note", &or("note", "")))
                    button type="submit" { "Write it down" }
                }
            }))
            (card("A cost", html! {
                form.stack method="post" action="/money/enter" {
                    (hidden("kind", "cost"))
                    (text("cost", "amount", "Amount", ""))
                    (text("cost", "day", "Day", &day))
                    (text("cost", "month", "For the month", &month))
                    (text("cost", "note", "What for", ""))
                    button type="submit" { "Write it down" }
                }
            }))
            (card("Dues for everybody", html! {
                form.stack method="post" action="/money/dues" {
                    (text("dues", "month", "For the month", &month))
                    (text("dues", "amount", "Amount for each", ""))
                    button.quiet type="submit" { "Show what would be written" }
                }
            }))
            (card("A month's costs on everybody", html! {
                form.stack method="post" action="/money/split" {
                    (text("split", "month", "The month", &month))
                    button.quiet type="submit" { "Show everybody's part" }
                }
            }))
            (card("The fund was counted", html! {
                form.stack method="post" action="/money/fund" {
                    (text("fund", "amount", "It has", ""))
                    (text("fund", "note", "Why it differs", ""))
                    button.quiet type="submit" { "Write the difference down" }
                }
            }))
        }
    }
}

fn entries(told: &Told, books: &Books, currency: &Currency) -> Markup {
    let rows: Vec<Vec<Markup>> = told
        .entries
        .iter()
        .rev()
        .take(SHOWN)
        .map(|entry| {
            let mut cells = row(entry, told, books, currency);
            let name = entry.what.member.map(|member| told.names.of(member)).unwrap_or_default();
            cells.insert(2, html! { (name) });
            let open = entry.what.corrects.is_none() && !books.corrected.contains(&entry.id);
            cells.push(html! {
                @if open {
                    form method="post" action="/money/correct" data-confirm="Take this entry back with another one?" {
                        (hidden("entry", &entry.id.0.to_string()))
                        button.quiet type="submit" aria-label=(format!("Take entry {} back", entry.id.0)) { "Take back" }
                    }
                }
            });
            cells
        })
        .collect();
    let mut head = HEAD.to_vec();
    head.insert(2, "Member");
    head.push("");
    html! {
        section.card {
            h2 { "What was written down" }
            @if rows.is_empty() { (empty("Nothing yet.")) } @else {
                (table("Entries", &head, &rows))
                @if told.entries.len() > SHOWN { p.soft { "These are the last " (SHOWN) "; the table has all." } }
            }
        }
    }
}
