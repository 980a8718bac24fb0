//! What was used: one's own, everyone's where the site allows it, and the rule itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::civil::Date;
use maud::{Markup, html};
use polder_members::{Member, UsageRow};
use polder_page::{Bar, Choice, Page, bars, card, count, empty, select, table, tick};
use polder_site::{Metering, SiteChange, UsageVisibility};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

const DAYS: u32 = 30;

#[derive(Deserialize)]
pub(super) struct Policy {
    #[serde(default)]
    per_member: String,
    #[serde(default)]
    visible_to: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    let rule = gateway.status().site.usage.clone();
    let id = who.member.id;
    let own = gateway.members.ask(move |m| m.usage_of(id, DAYS)).await?;
    let all = if may_see_all(&rule, &who.member) {
        Some(gateway.members.ask(|m| m.usage_of_all(DAYS)).await?)
    } else {
        None
    };
    let body = html! {
        (frame::said(&said.said))
        (card("The rule", html! {
            p { (in_words(&rule)) }
            @if who.member.is_steward() { (policy_form(&rule)) }
        }))
        section.card {
            h2 { "Yours, in the last " (DAYS) " days" }
            @if own.is_empty() {
                (empty(if rule.per_member { "Nothing yet." } else { "Nothing is counted, so there is nothing to show." }))
            } @else {
                (chart(&own))
                (rows_table(&own))
                form method="post" action="/usage/forget" data-confirm="Delete everything that was counted about you?" {
                    button.quiet type="submit" { "Delete what was counted about me" }
                }
            }
        }
        @if let Some(all) = all {
            section.card {
                h2 { "Everyone's, in the last " (DAYS) " days" }
                @if all.is_empty() { (empty("Nothing yet.")) } @else {
                    (chart(&all))
                    (by_member(&all))
                }
            }
        }
    };
    let body = html! {
        (body)
        p { a href="/money" { "Money: dues, payments and the fund" } }
    };
    let page = Page {
        title: "Usage",
        lead: Some("How much of the box was used. Never what was asked or answered."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(&gateway, &who.member, "/usage"), body))
}

pub(super) async fn decide(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(policy): Form<Policy>,
) -> Result<Response, Trouble> {
    let metering = Metering {
        per_member: policy.per_member == "yes",
        visible_to: match policy.visible_to.as_str() {
            "stewards" => UsageVisibility::Stewards,
            "everyone" => UsageVisibility::Everyone,
            _ => UsageVisibility::Nobody,
        },
    };
    change_site(&gateway, &who, SiteChange::Usage(metering)).await?;
    Ok(Redirect::to("/usage?said=policy").into_response())
}

pub(super) async fn forget(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    gateway.members.ask(move |m| m.forget_usage(id)).await?;
    who.record(&gateway, "deleted usage", "their own").await;
    Ok(Redirect::to("/usage?said=forgotten").into_response())
}

fn may_see_all(rule: &Metering, member: &Member) -> bool {
    match rule.visible_to {
        UsageVisibility::Nobody => false,
        UsageVisibility::Stewards => member.is_steward(),
        UsageVisibility::Everyone => true,
    }
}

fn in_words(rule: &Metering) -> &'static str {
    match (rule.per_member, rule.visible_to) {
        (false, _) => {
            "This box does not count what its members use. Only a key with a monthly quota has its tokens counted, for the month."
        }
        (true, UsageVisibility::Nobody) => {
            "This box counts requests and tokens per member, day, model and key. Each member sees their own, nobody sees anybody else's."
        }
        (true, UsageVisibility::Stewards) => {
            "This box counts requests and tokens per member, day, model and key. Each member sees their own; stewards see everyone's."
        }
        (true, UsageVisibility::Everyone) => {
            "This box counts requests and tokens per member, day, model and key. Everyone sees everyone's."
        }
    }
}

fn policy_form(rule: &Metering) -> Markup {
    let chosen = match rule.visible_to {
        UsageVisibility::Nobody => "nobody",
        UsageVisibility::Stewards => "stewards",
        UsageVisibility::Everyone => "everyone",
    };
    html! {
        details {
            summary { "Change the rule" }
            form.stack method="post" action="/usage" {
                (tick("per_member", "Count usage per member", "All members see on their account page whether this is on.", rule.per_member))
                (select("visible_to", "Who sees it, besides each member their own", "", &[
                    Choice { value: "nobody", label: "nobody" },
                    Choice { value: "stewards", label: "stewards" },
                    Choice { value: "everyone", label: "everyone" },
                ], chosen))
                button type="submit" { "Set the rule" }
            }
        }
    }
}

fn chart(rows: &[UsageRow]) -> Markup {
    let mut per_day: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        let sum = per_day.entry(&row.day).or_default();
        *sum = sum.saturating_add(row.prompt).saturating_add(row.completion);
    }
    let total: u64 = per_day.values().fold(0, |a, b| a.saturating_add(*b));
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let columns: Vec<Bar> = last_days(today)
        .into_iter()
        .map(|day| {
            let tokens = per_day.get(day.to_string().as_str()).copied().unwrap_or(0);
            Bar {
                title: format!("{}: {} tokens", day.strftime("%-d %b"), count(tokens)),
                value: tokens as f64,
            }
        })
        .collect();
    html! {
        (bars(&format!("Tokens per day in the last {DAYS} days, {} in all", count(total)), &columns))
        p.soft.small { (count(total)) " tokens, read and written together" }
    }
}

fn last_days(today: Date) -> Vec<Date> {
    let mut days = Vec::with_capacity(DAYS as usize);
    let mut day = today;
    for _ in 0..DAYS {
        days.push(day);
        let Ok(before) = day.yesterday() else { break };
        day = before;
    }
    days.reverse();
    days
}

fn rows_table(rows: &[UsageRow]) -> Markup {
    let cells: Vec<Vec<Markup>> = rows
        .iter()
        .map(|r| {
            vec![
                html! { (r.day) },
                html! { (r.key_label.as_deref().unwrap_or("chat, or a revoked key")) },
                html! { (r.model) },
                html! { (count(r.requests)) },
                html! { (count(r.prompt)) },
                html! { (count(r.completion)) },
            ]
        })
        .collect();
    table(
        "Your usage",
        &["Day", "Key", "Model", "Requests", "Tokens read", "Tokens written"],
        &cells,
    )
}

fn by_member(rows: &[UsageRow]) -> Markup {
    let mut sums: BTreeMap<(&str, &str), UsageRow> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry((&row.member_name, &row.model)).or_insert_with(|| UsageRow {
            requests: 0,
            prompt: 0,
            completion: 0,
            ..row.clone()
        });
        sum.requests = sum.requests.saturating_add(row.requests);
        sum.prompt = sum.prompt.saturating_add(row.prompt);
        sum.completion = sum.completion.saturating_add(row.completion);
    }
    let cells: Vec<Vec<Markup>> = sums
        .values()
        .map(|r| {
            vec![
                html! { (r.member_name) },
                html! { (r.model) },
                html! { (count(r.requests)) },
                html! { (count(r.prompt)) },
                html! { (count(r.completion)) },
            ]
        })
        .collect();
    table(
        "Usage by member",
        &["Member", "Model", "Requests", "Tokens read", "Tokens written"],
        &cells,
    )
}
