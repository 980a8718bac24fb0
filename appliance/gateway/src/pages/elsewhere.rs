//! Servers elsewhere that the box may ask: who they are, what they may cost and did, and whether they answer.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::SecretText;
use polder_members::{Month, SpentElsewhere};
use polder_page::{
    Choice, Field, Page, ProgressView, Tone, badge, banner, count, empty, facts, field, hidden,
    progress, select, table, tick,
};
use polder_site::{
    Amount, RecipeName, SiteChange, UpstreamKind, UpstreamModel, UpstreamName, UpstreamServer,
};
use polder_upstream::{Holder, Secrets, Wire, fetch_authority};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

/// A test waits no longer.
const TEST: std::time::Duration = std::time::Duration::from_secs(15);
/// Names of models that a test repeats.
const MOST_NAMES: usize = 30;

/// The form for a server, as it was filled in. A key is never filled in again.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    name: String,
    kind: String,
    url: String,
    key: String,
    forget_key: String,
    fingerprint: String,
    authority: String,
    budget: String,
    currency: String,
    when_down: String,
    when_full: String,
    full_at: String,
}

/// The form for one of its models.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct ModelWish {
    model: String,
    called: String,
    input: String,
    output: String,
    cached: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said), None).await
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let name = wish.name.trim().parse::<UpstreamName>().map_err(|e| e.to_string());
    let taken = |name: &UpstreamName| gateway.status().site.upstreams.contains_key(name);
    let name = name.and_then(|name| match taken(&name) {
        true => Err(format!(
            "there is a server called {name} already; change it below, or take another name"
        )),
        false => Ok(name),
    });
    keep(&gateway, &who, name, None, wish).await
}

pub(super) async fn change(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let (name, server) = known(&gateway, &name)?;
    keep(&gateway, &who, Ok(name), Some(server), wish).await
}

async fn keep(
    gateway: &Arc<Gateway>,
    who: &SignedIn,
    name: Result<UpstreamName, String>,
    before: Option<UpstreamServer>,
    wish: Wish,
) -> Result<Response, Trouble> {
    let read = async {
        let name = name?;
        let server = read(&wish, before.as_ref()).await?;
        // A key is for whoever gave it.
        let moved =
            before.as_ref().is_some_and(|before| before.url.authority() != server.url.authority());
        // The site is asked before a key is put down for what it does not take.
        let upstream = Box::new(server);
        let change = SiteChange::Upstream { name: name.clone(), upstream };
        change.applied_to(&gateway.status().site).check().map_err(|e| e.to_string())?;
        let new_key = SecretText::new(&wish.key);
        let changes_key = !new_key.expose().is_empty() || wish.forget_key == "yes";
        if moved && key(gateway, &name).await?.is_some() {
            if !changes_key {
                return Err(format!(
                    "the key that is kept for {name} is for {}; type the one for the new address, or tick that the old one be forgotten",
                    before.as_ref().map_or("", |before| before.url.host())
                ));
            }
            // Nobody at the new address ever sees it, whatever becomes of the rest.
            keep_key(gateway, &name, SecretText::new("")).await?;
        }
        Ok::<_, String>((name, change, changes_key.then_some(new_key)))
    };
    match read.await {
        Ok((name, change, new_key)) => {
            change_site(gateway, who, change).await?;
            if let Some(new_key) = new_key {
                let kept = keep_key(gateway, &name, new_key).await;
                kept.map_err(|why| Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, why))?;
                who.record(gateway, "changed the key for", name.as_str()).await;
            }
            Ok(Redirect::to("/elsewhere?said=upstream").into_response())
        }
        Err(why) => wrong(gateway, who, &why, before.is_none().then_some(&wish)).await,
    }
}

/// An empty key is none.
async fn keep_key(gateway: &Gateway, name: &UpstreamName, key: SecretText) -> Result<(), String> {
    let (secrets, holder) = (Secrets::of(&gateway.state), name.clone());
    let kept = gateway.members.ask(move |_| secrets.keep(Holder::Upstream(&holder), &key));
    kept.await.map_err(|error| error.to_string())
}

/// Whoever filled in the form wrong sees it as it was filled in.
async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    why: &str,
    wish: Option<&Wish>,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, wish).await?))
}

/// What the form says; what it has no field for stays.
async fn read(wish: &Wish, before: Option<&UpstreamServer>) -> Result<UpstreamServer, String> {
    let kind = match wish.kind.as_str() {
        "polder" => UpstreamKind::Polder,
        "server" => UpstreamKind::Server,
        _ => UpstreamKind::Cloud,
    };
    let url = wish.url.trim().parse::<polder_site::UpstreamUrl>().map_err(|e| e.to_string())?;
    let same = before.filter(|before| before.url.host() == url.host());
    let authority = match (wish.fingerprint.trim(), wish.authority.trim()) {
        ("", "") => same.and_then(|before| before.authority.clone()),
        ("", pem) => Some(format!("{}\n", pem.replace("\r\n", "\n").trim())),
        (fingerprint, _) => Some(fetch_authority(&url, fingerprint).await?),
    };
    let full_at = match wish.full_at.trim() {
        "" => None,
        text => Some(
            text.parse().map_err(|_| format!("{text} is not a number of questions that wait"))?,
        ),
    };
    let currency = match wish.currency.trim() {
        "" => polder_site::Currency::default(),
        text => text
            .to_ascii_uppercase()
            .parse()
            .map_err(|e: polder_site::CurrencyError| e.to_string())?,
    };
    Ok(UpstreamServer {
        kind,
        url,
        authority,
        budget: amount("the budget", &wish.budget)?,
        currency,
        when_down: wish.when_down == "yes",
        when_full: wish.when_full == "yes",
        full_at,
        models: before.map(|before| before.models.clone()).unwrap_or_default(),
    })
}

fn amount(what: &str, text: &str) -> Result<Amount, String> {
    // As people write it in other countries.
    let text = text.trim().replace(',', ".");
    text.parse().map_err(|error| format!("{what}: {error}"))
}

pub(super) async fn set_model(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(wish): Form<ModelWish>,
) -> Result<Response, Trouble> {
    let (name, mut server) = known(&gateway, &name)?;
    let read = || {
        let model: RecipeName =
            wish.model.trim().parse().map_err(|e: polder_site::NameError| e.to_string())?;
        let called = match wish.called.trim() {
            "" => model.to_string(),
            called => called.to_owned(),
        };
        let cached = match wish.cached.trim() {
            "" => None,
            text => Some(amount("the price for what was kept", text)?),
        };
        let input = amount("the price for what it reads", &wish.input)?;
        let output = amount("the price for what it writes", &wish.output)?;
        Ok::<_, String>((model, UpstreamModel { called, input, output, cached }))
    };
    let (model, there) = match read() {
        Ok(read) => read,
        Err(why) => return wrong(&gateway, &who, &why, None).await,
    };
    server.models.insert(model, there);
    change_site(&gateway, &who, SiteChange::Upstream { name, upstream: Box::new(server) }).await?;
    Ok(Redirect::to("/elsewhere?said=upstream").into_response())
}

pub(super) async fn remove_model(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(wish): Form<ModelWish>,
) -> Result<Response, Trouble> {
    let (name, mut server) = known(&gateway, &name)?;
    server.models.retain(|model, _| model.as_str() != wish.model);
    change_site(&gateway, &who, SiteChange::Upstream { name, upstream: Box::new(server) }).await?;
    Ok(Redirect::to("/elsewhere?said=upstream").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let (name, _) = known(&gateway, &name)?;
    change_site(&gateway, &who, SiteChange::RemoveUpstream(name.clone())).await?;
    let secrets = Secrets::of(&gateway.state);
    let forgotten =
        gateway.members.ask(move |_| secrets.keep(Holder::Upstream(&name), &SecretText::new("")));
    if let Err(error) = forgotten.await {
        log::error!("the key of a server elsewhere that was removed is still there: {error}");
    }
    Ok(Redirect::to("/elsewhere?said=upstream-removed").into_response())
}

/// Asks the server what models it has, which costs nothing, and says how that went.
pub(super) async fn test(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let (name, server) = known(&gateway, &name)?;
    let top = match tried(&gateway, &name, &server).await {
        Ok(well) => banner(Tone::Good, html! { p { (sentence(&well)) } }),
        Err(why) => banner(Tone::Bad, html! { p { (sentence(&why)) } }),
    };
    page(&gateway, &who, top, None).await
}

async fn tried(
    gateway: &Gateway,
    name: &UpstreamName,
    server: &UpstreamServer,
) -> Result<String, String> {
    let key = key(gateway, name).await?;
    let wire = Wire::to(&server.url, server.authority.as_deref(), key.as_ref())
        .map_err(|error| format!("{name}: {error}"))?;
    let asked = tokio::time::timeout(TEST, wire.fetch("/v1/models")).await;
    let asked = asked.map_err(|_| format!("{name} did not answer within {} s", TEST.as_secs()))?;
    let answer = asked.map_err(|error| format!("{name}: {error}"))?;
    let secret = key.as_ref().map(SecretText::expose);
    let (status, headers) = (answer.status(), answer.headers());
    use polder_upstream::Answered;
    match polder_upstream::answered(name.as_str(), "list", status, headers, answer.body(), secret) {
        Answered::Well => {}
        Answered::Refused(fault) | Answered::Failed(fault) => return Err(fault.message),
    }
    let value: serde_json::Value = serde_json::from_slice(answer.body()).map_err(|_| {
        format!("{name} answers, but not as a server with models does; is its address right?")
    })?;
    let has: Vec<&str> =
        value["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    let lacks: Vec<&str> =
        server.models.values().map(|m| m.called.as_str()).filter(|m| !has.contains(m)).collect();
    if !lacks.is_empty() {
        let has: Vec<String> =
            has.iter().take(MOST_NAMES).map(|id| id.chars().take(80).collect()).collect();
        return Err(format!(
            "{name} answers, but does not know {}; it has {}",
            lacks.join(", "),
            has.join(", ")
        ));
    }
    Ok(match server.models.len() {
        0 => format!(
            "{name} answers, and takes the key; now say which of its models the box may ask"
        ),
        _ => format!("{name} answers, takes the key, and has every model that is named here"),
    })
}

async fn key(gateway: &Gateway, name: &UpstreamName) -> Result<Option<SecretText>, String> {
    let (secrets, holder) = (Secrets::of(&gateway.state), name.clone());
    let key = gateway.members.ask(move |_| secrets.get(Holder::Upstream(&holder)));
    key.await.map_err(|error| error.to_string())
}

fn known(gateway: &Gateway, name: &str) -> Result<(UpstreamName, UpstreamServer), Trouble> {
    let none = || Trouble::not_found("the box knows no such server elsewhere");
    let name: UpstreamName = name.parse().map_err(|_| none())?;
    let server = gateway.status().site.upstreams.get(&name).cloned().ok_or_else(none)?;
    Ok((name, server))
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    wish: Option<&Wish>,
) -> Result<Response, Trouble> {
    let status = gateway.status();
    let site = &status.site;
    let mut cards = Vec::new();
    for (name, server) in &site.upstreams {
        let asked = name.clone();
        let month = gateway.members.ask(move |m| m.month_elsewhere(asked.as_str())).await?;
        let has_key = key(gateway, name).await.is_ok_and(|key| key.is_some());
        cards.push(server_card(name, server, month, has_key));
    }
    let (fresh, form) = (Wish { when_down: "yes".into(), ..Wish::default() }, wish);
    let body = html! {
        (top)
        (banner(Tone::Warn, html! {
            p { strong { "What leaves the house: " } "the whole conversation of a question that is answered elsewhere, and what the model there writes. Whoever runs that server can read and keep it, by their rules and their country's. They see this box's address and its key, and are not told which member asked." }
            p { "A member can say on their account page that nothing of theirs leaves, and a key can be marked so. Which server answered is in every answer (" code { "x-polder-served-by" } ")." }
        }))
        @if cards.is_empty() { section.card { (empty("No server elsewhere is asked. What this box cannot answer, nobody answers.")) } }
        @for card in &cards { (card) }
        (spent_section(gateway).await?)
        section.card {
            h2 { "Ask another one" }
            p.soft { "Another Polder box, a server of your own or of friends that speaks OpenAI's API (vLLM, SGLang, NIM, llama.cpp), or a company's." }
            form.stack method="post" action="/elsewhere" { (server_fields(form.unwrap_or(&fresh), None)) button type="submit" { "Keep this" } }
        }
    };
    let page = Page {
        title: "Elsewhere",
        lead: Some("Who is asked when this box cannot answer, and what that may cost."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/elsewhere"), body))
}

fn server_card(
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
                form method="post" action=(format!("/elsewhere/{name}/remove")) data-confirm=(format!("Ask {name} no more? Its key is forgotten. What it cost stays in the books.")) {
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
                    }
                    button type="submit" { "Keep this" }
                }
            }
            details {
                summary { "Change it" }
                form.stack method="post" action=(format!("/elsewhere/{name}")) {
                    (server_fields(&filled(server), Some((name, has_key))))
                    button type="submit" { "Keep this" }
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

fn filled(server: &UpstreamServer) -> Wish {
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

fn server_fields(wish: &Wish, known: Option<(&UpstreamName, bool)>) -> Markup {
    let text = |name, label, hint, value: &str| {
        field(&Field { name, label, hint, value, ..Field::default() })
    };
    let has_key = known.is_some_and(|(_, has_key)| has_key);
    let key = if has_key {
        "Kept; type another one to change it"
    } else {
        "Only this box keeps it, in a file of its own; empty: none"
    };
    html! {
        div.fields {
            @if known.is_none() { (field(&Field { name: "name", label: "What the box calls it", hint: "Answers say it: “cloud”, “elm”", value: &wish.name, required: true, ..Field::default() })) }
            (select("kind", "It is", "", &[
                Choice { value: "polder", label: "another Polder box" },
                Choice { value: "server", label: "another server that speaks OpenAI's API" },
                Choice { value: "cloud", label: "a company's server" },
            ], &wish.kind))
            (text("url", "Where its API begins", "https://elm.example.org:8443/v1", &wish.url))
            (field(&Field { name: "key", label: "API key", kind: "password", hint: key, ..Field::default() }))
            (text("budget", "Most that it may cost in a month", "As in 25; 0 only for what costs nothing", &wish.budget))
            (text("currency", "Currency", "EUR", &wish.currency))
        }
        (tick("when_down", "Ask it when the box is down", "When the engine of a model starts, stopped or broke", wish.when_down == "yes"))
        (tick("when_full", "Ask it when the box is full", "When the engine has no room for the question", wish.when_full == "yes"))
        (text("full_at", "Full is also when so many questions wait", "Empty: only when the engine refuses", &wish.full_at))
        @if has_key { (tick("forget_key", "Forget its key", "", false)) }
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
                html! { (there.input) " / " (there.output) @if let Some(cached) = there.cached { " / " (cached) } },
                html! { form method="post" action=(format!("/elsewhere/{name}/model/remove")) { (hidden("model", model.as_str())) button.quiet type="submit" aria-label=(format!("Ask {name} no more for {model}")) { "Remove" } } },
            ]
        })
        .collect();
    html! {
        @if rows.is_empty() { (empty("The box asks it for no model yet. Name one below.")) }
        @else { (table("Models there", &["Model", "Called there", "Price read / written / kept", ""], &rows)) }
    }
}

/// What was answered elsewhere in the last months and what it cost, for everybody: it is everybody's money.
pub(super) async fn spent_section(gateway: &Gateway) -> Result<Markup, Trouble> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            kind: "cloud".into(),
            url: " https://api.example.org/v1 ".into(),
            budget: "12,50".into(),
            when_down: "yes".into(),
            full_at: "8".into(),
            ..Wish::default()
        }
    }

    #[tokio::test]
    async fn a_form_is_read_and_what_it_has_no_field_for_stays() {
        let mut server = read(&wish(), None).await.unwrap();
        assert_eq!(server.budget.to_string(), "12.50");
        assert!(server.when_down && !server.when_full && server.models.is_empty());
        server.authority = Some("PEM".into());
        let again = read(&wish(), Some(&server)).await.unwrap();
        assert_eq!(again.authority.as_deref(), Some("PEM"));
        // Another host's authority is not this one's.
        let moved = Wish { url: "https://other.example.org/v1".into(), ..wish() };
        assert_eq!(read(&moved, Some(&server)).await.unwrap().authority, None);
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_in_a_sentence() {
        for (wish, part) in [
            (Wish { url: "api.example.org".into(), ..wish() }, "where an API begins"),
            (Wish { url: "http://10.0.0.1/v1".into(), ..wish() }, "in the clear"),
            (Wish { budget: String::new(), ..wish() }, "the budget"),
            (Wish { full_at: "many".into(), ..wish() }, "many is not a number"),
            (Wish { currency: "Euro".into(), ..wish() }, "currency"),
            (Wish { fingerprint: "AB:CD".into(), ..wish() }, "64 digits"),
        ] {
            let why = read(&wish, None).await.unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
