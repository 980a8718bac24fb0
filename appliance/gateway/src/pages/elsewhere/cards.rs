//! What the page Elsewhere shows of each server, its forms, and what was spent.

use maud::{Markup, html};
use polder_members::{Month, SpentElsewhere};
use polder_page::{
    Choice, Field, ProgressView, Tone, badge, banner, count, empty, facts, field, hidden, progress,
    select, table, tick,
};
use polder_site::{Amount, UpstreamKind, UpstreamName, UpstreamServer};

use super::Wish;
use crate::Gateway;
use crate::pages::frame::Trouble;

pub(super) fn server_card(
    name: &UpstreamName,
    server: &UpstreamServer,
    month: Month,
    has_key: bool,
) -> Markup {
    let kind = match server.kind {
        UpstreamKind::Polder => "another Polder box",
        UpstreamKind::Server => "a server that speaks OpenAI's API",
        UpstreamKind::Cloud => "a company's server",
    };
    html! {
        section.card {
            div.row.spread { h2 { (name) } (badge(Tone::Plain, kind)) }
            (facts(&[
                ("At", html! { code { (server.url) } @if server.authority.is_some() { " " span.soft { "(its own certificate authority is trusted, and no other)" } } }),
                ("Asked", html! { (server.when()) @if let Some(most) = server.full_at.filter(|_| server.when_full) { "; full is when " (most) " questions wait" } }),
                ("Key", html! { @if has_key { "kept by this box, in a file of its own" } @else { "none" } }),
            ]))
            (budget(server, month))
            (models_table(name, server))
            div.row {
                form method="post" action=(format!("/elsewhere/{name}/test")) { button.quiet type="submit" { "Test it" } }
                form method="post" action=(format!("/elsewhere/{name}/remove")) {
                    button.danger type="submit" { "Ask it no more" }
                }
            }
            details {
                summary { "Let the box ask it for a model" }
                form.stack method="post" action=(format!("/elsewhere/{name}/model")) {
                    div.fields {
                        (own_field(name, "model", "The model, as members call it", "The name of one that this box serves, or a new one that then lives only there"))
                        (own_field(name, "called", "What it is called there", "Empty: the same"))
                        (own_field(name, "input", "Price of a million tokens read", "As in 0.15; 0 where it costs nothing"))
                        (own_field(name, "output", "Price of a million tokens written", ""))
                        (own_field(name, "cached", "Price of a million tokens that it had kept", "Empty: as those read"))
                        (own_field(name, "written", "Whole price of a million tokens that it reads and keeps from then on", "For minutes. Empty: a quarter more than those only read"))
                        (own_field(name, "longest", "Longest answer there, in tokens", "Empty: where it costs money and the question does not say, 4096"))
                    }
                    button type="submit" { "See what it comes to" }
                }
            }
            details {
                summary { "Change it" }
                form.stack method="post" action=(format!("/elsewhere/{name}")) {
                    (server_fields(&filled(server), false))
                    button type="submit" { "See what it comes to" }
                }
            }
        }
    }
}

/// A field whose id is this server's alone: the same form is on the page for each of them.
fn own_field(server: &UpstreamName, name: &str, label: &str, hint: &str) -> Markup {
    let id = format!("{server}-{name}");
    html! {
        div.field {
            label for=(id) { (label) }
            @if !hint.is_empty() { p.hint { (hint) } }
            input id=(id) name=(name) type="text" autocomplete="off";
        }
    }
}

pub(super) fn filled(server: &UpstreamServer) -> Wish {
    let yes = |on: bool| if on { "yes".to_owned() } else { String::new() };
    let kind = match server.kind {
        UpstreamKind::Polder => "polder",
        UpstreamKind::Server => "server",
        UpstreamKind::Cloud => "cloud",
    };
    Wish {
        kind: kind.to_owned(),
        url: server.url.to_string(),
        budget: server.budget.to_string(),
        currency: server.currency.to_string(),
        when_down: yes(server.when_down),
        when_full: yes(server.when_full),
        full_at: server.full_at.map(|most| most.to_string()).unwrap_or_default(),
        ..Wish::default()
    }
}

pub(super) fn server_fields(wish: &Wish, new: bool) -> Markup {
    let text = |name, label, hint, value: &str| {
        field(&Field { name, label, hint, value, ..Field::default() })
    };
    html! {
        div.fields {
            @if new { (field(&Field { name: "name", label: "What the box calls it", hint: "Answers say it: “cloud”, “elm”", value: &wish.name, required: true, ..Field::default() })) }
            (select("kind", "It is", "", &[
                Choice { value: "polder", label: "another Polder box" },
                Choice { value: "server", label: "another server that speaks OpenAI's API" },
                Choice { value: "cloud", label: "a company's server" },
            ], &wish.kind))
            (text("url", "Where its API begins", "https://elm.example.org:8443/v1", &wish.url))
            (text("budget", "Most that it may cost in a month", "As in 25; 0 only for what costs nothing", &wish.budget))
            (text("currency", "In", "EUR", &wish.currency))
        }
        (tick("when_down", "Ask it when the box is down", "When the engine of a model starts, stopped or broke", wish.when_down == "yes"))
        (tick("when_full", "Ask it when the box is full", "When the engine has no room for the question", wish.when_full == "yes"))
        (text("full_at", "Full is also when so many questions wait", "Empty: only when the engine refuses", &wish.full_at))
        details {
            summary { "It has a certificate that the world does not know" }
            p.soft { "Another Polder box has its own authority. Its fingerprint is on its screen and its page “Trust this box”; with it, this box fetches and checks the certificate by itself." }
            (text("fingerprint", "Fingerprint of the other box", "Sixty-four digits and letters, with or without colons", &wish.fingerprint))
            div.field {
                label for="authority" { "Or the authority's certificate (PEM)" }
                textarea #authority name="authority" rows="4" { (wish.authority) }
            }
        }
    }
}

/// A bar for the month, and the same in words.
fn budget(server: &UpstreamServer, month: Month) -> Markup {
    let money = Amount::of_millionths;
    let (limit, spent) = (server.budget.millionths(), month.spent);
    let fraction = match limit {
        0 => None,
        limit => Some((spent.saturating_add(month.reserved)) as f64 / limit as f64),
    };
    let mut amount =
        format!("{} of {} {} spent this month", money(spent), server.budget, server.currency);
    if month.reserved > 0 {
        amount += &format!(", {} set aside for answers that are not over", money(month.reserved));
    }
    html! {
        @match fraction {
            Some(fraction) => {
                (progress(&ProgressView { what: "This month's budget".into(), fraction: Some(fraction.min(1.0)), amount, ..Default::default() }))
                @if spent >= limit { (banner(Tone::Warn, html! { p { "It is used up: this server is asked again next month, or when the budget is raised." } })) }
            },
            None => p.soft { "It may cost nothing: only models without a price are asked." },
        }
    }
}

fn models_table(name: &UpstreamName, server: &UpstreamServer) -> Markup {
    let rows: Vec<Vec<Markup>> = server
        .models
        .iter()
        .map(|(model, there)| {
            vec![
                html! { strong { (model) } },
                html! { code { (there.called) } },
                html! { (there.input) " / " (there.output) @if let Some(cached) = there.cached { " / " (cached) } @if let Some(written) = there.written { " (keeping: " (written) ")" } },
                html! { @match there.longest { Some(longest) => (longest), None => "" } },
                html! { form method="post" action=(format!("/elsewhere/{name}/model/remove")) { (hidden("model", model.as_str())) button.quiet type="submit" aria-label=(format!("Ask {name} no more for {model}")) { "Remove" } } },
            ]
        })
        .collect();
    html! {
        @if rows.is_empty() { (empty("The box asks it for no model yet. Name one below.")) }
        @else { (table("Models there", &["Model", "Called there", "Price read / written / kept", "Longest answer", ""], &rows)) }
    }
}

/// What was answered elsewhere in the last months and what it cost, for everybody: it is everybody's money.
pub(in crate::pages) async fn spent_section(gateway: &Gateway) -> Result<Markup, Trouble> {
    const MONTHS: u32 = 6;
    let rows = gateway.members.ask(|m| m.spent_elsewhere(MONTHS)).await?;
    let status = gateway.status();
    let currency = |row: &SpentElsewhere| {
        let server = status.site.upstreams.iter().find(|(name, _)| name.as_str() == row.upstream);
        server.map(|(_, server)| server.currency.to_string()).unwrap_or_default()
    };
    let cells: Vec<Vec<Markup>> = rows
        .iter()
        .map(|row| {
            vec![
                html! { (row.month) },
                html! { (row.upstream) },
                html! { (row.model) },
                html! { (count(row.requests)) },
                html! { (count(row.prompt)) " / " (count(row.completion)) },
                html! { (Amount::of_millionths(row.cost)) " " (currency(row)) },
            ]
        })
        .collect();
    Ok(html! {
        @if !cells.is_empty() || !status.site.upstreams.is_empty() {
            section.card {
                h2 { "Answered elsewhere" }
                p.soft { "By everybody together, in calendar months (UTC). Who asked is not in these books." }
                @if cells.is_empty() { (empty("Nothing yet.")) }
                @else { (table("Answered elsewhere", &["Month", "Server", "Model", "Requests", "Tokens read / written", "Cost"], &cells)) }
            }
        }
    })
}
