//! Servers elsewhere that the box may ask: who they are, what they may cost and did, and whether they answer.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Reply, Request, SecretText};
use polder_page::{Field, Page, StepMark, Tone, banner, empty, facts, field, hidden, steps, tick};
use polder_site::{
    Amount, RecipeName, SiteChange, UpstreamKind, UpstreamModel, UpstreamName, UpstreamServer,
};
use polder_upstream::{Holder, Secrets, Term, Wire, fetch_authority, terms, terms_of_removal};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

mod cards;

pub(in crate::pages) use cards::spent_section;
use cards::{filled, server_card, server_fields};

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
    /// What it comes to was seen, and agreed to: the seal of what was shown, see [`seal`].
    seen: String,
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
    written: String,
    longest: String,
    seen: String,
}

/// The form that only agrees.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Agreed {
    seen: String,
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
        let site = gateway.status().site.clone();
        change.applied_to(&site).check().map_err(|e| e.to_string())?;
        let SiteChange::Upstream { upstream: server, .. } = &change else {
            unreachable!("it was made so above")
        };
        let terms = terms(&name, server, &site);
        if wish.seen != seal(&change, &terms) {
            return Ok((name, change, Err(terms)));
        }
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
        Ok::<_, String>((name, change, Ok(changes_key.then_some(new_key))))
    };
    match read.await {
        Ok((name, change, Err(terms))) => {
            let action = match before {
                Some(_) => format!("/elsewhere/{name}"),
                None => "/elsewhere".to_owned(),
            };
            let has_key = key(gateway, &name).await.is_ok_and(|key| key.is_some());
            let SiteChange::Upstream { upstream: server, .. } = &change else {
                unreachable!("it was made so above")
            };
            let moved = before.as_ref().filter(|was| was.url.authority() != server.url.authority());
            let agreement = Agreement {
                terms,
                action: &action,
                fields: server_values(&name, server),
                more: key_fields(moved, has_key),
                agree: "Ask it so",
                anew: !wish.seen.is_empty(),
            };
            about_to(gateway, who, change, agreement).await
        }
        Ok((name, change, Ok(new_key))) => {
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
        // As it is when the form that agrees sends it back.
        (fingerprint, _) => {
            let pem = fetch_authority(&url, fingerprint).await?;
            Some(format!("{}\n", pem.replace("\r\n", "\n").trim()))
        }
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
        let written = match wish.written.trim() {
            "" => None,
            text => Some(amount("the price for what is kept from then on", text)?),
        };
        let longest = match wish.longest.trim() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("{text} is not a number of tokens"))?),
        };
        let input = amount("the price for what it reads", &wish.input)?;
        let output = amount("the price for what it writes", &wish.output)?;
        Ok::<_, String>((model, UpstreamModel { called, input, output, cached, written, longest }))
    };
    let (model, there) = match read() {
        Ok(read) => read,
        Err(why) => return wrong(&gateway, &who, &why, None).await,
    };
    server.models.insert(model, there);
    let fields = [
        ("model", &wish.model),
        ("called", &wish.called),
        ("input", &wish.input),
        ("output", &wish.output),
        ("cached", &wish.cached),
        ("written", &wish.written),
        ("longest", &wish.longest),
    ];
    let fields = fields.map(|(name, value)| (name, value.clone())).into();
    let action = format!("/elsewhere/{name}/model");
    agreed(&gateway, &who, name, server, fields, &action, &wish.seen).await
}

pub(super) async fn remove_model(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(wish): Form<ModelWish>,
) -> Result<Response, Trouble> {
    let (name, mut server) = known(&gateway, &name)?;
    server.models.retain(|model, _| model.as_str() != wish.model);
    let (fields, action) = (vec![("model", wish.model)], format!("/elsewhere/{name}/model/remove"));
    agreed(&gateway, &who, name, server, fields, &action, &wish.seen).await
}

/// Shows what another list of its models comes to, and keeps it once that was seen.
async fn agreed(
    gateway: &Arc<Gateway>,
    who: &SignedIn,
    name: UpstreamName,
    server: UpstreamServer,
    fields: Vec<(&'static str, String)>,
    action: &str,
    seen: &str,
) -> Result<Response, Trouble> {
    let site = gateway.status().site.clone();
    let terms = terms(&name, &server, &site);
    let change = SiteChange::Upstream { name, upstream: Box::new(server) };
    if let Err(why) = change.applied_to(&site).check() {
        return wrong(gateway, who, &why.to_string(), None).await;
    }
    if seen != seal(&change, &terms) {
        let (more, agree, anew) = (html! {}, "Ask it so", !seen.is_empty());
        let agreement = Agreement { terms, action, fields, more, agree, anew };
        return about_to(gateway, who, change, agreement).await;
    }
    change_site(gateway, who, change).await?;
    Ok(Redirect::to("/elsewhere?said=upstream").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(agreed): Form<Agreed>,
) -> Result<Response, Trouble> {
    let (name, server) = known(&gateway, &name)?;
    let change = SiteChange::RemoveUpstream(name.clone());
    let terms = terms_of_removal(&name, &server, &gateway.status().site);
    if agreed.seen != seal(&change, &terms) {
        let agreement = Agreement {
            terms,
            action: &format!("/elsewhere/{name}/remove"),
            fields: Vec::new(),
            more: html! {},
            agree: "Ask it no more",
            anew: !agreed.seen.is_empty(),
        };
        return about_to(&gateway, &who, change, agreement).await;
    }
    change_site(&gateway, &who, change).await?;
    let secrets = Secrets::of(&gateway.state);
    let forgotten =
        gateway.members.ask(move |_| secrets.keep(Holder::Upstream(&name), &SecretText::new("")));
    if let Err(error) = forgotten.await {
        log::error!("the key of a server elsewhere that was removed is still there: {error}");
    }
    Ok(Redirect::to("/elsewhere?said=upstream-removed").into_response())
}

/// What is about to be done, and the form that agrees to it.
struct Agreement<'a> {
    terms: Vec<Term>,
    action: &'a str,
    /// What the form said, to be said again.
    fields: Vec<(&'static str, String)>,
    /// What only whoever agrees has to say.
    more: Markup,
    agree: &'a str,
    /// Something else was agreed to: it is shown once more, and nothing was done.
    anew: bool,
}

/// By which it is known whether what is done is what was shown. Neither the key nor what is spent is in it.
fn seal(change: &SiteChange, terms: &[Term]) -> String {
    let digest = Sha256::digest(format!("{change:?}\n{terms:?}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

const ANEW: &str = "this is not what was shown when it was agreed to: somebody has changed it meanwhile, so nothing was done; look at it once more";

/// The steps and what they come to, to be agreed to. Nothing is done yet.
async fn about_to(
    gateway: &Gateway,
    who: &SignedIn,
    change: SiteChange,
    agreement: Agreement<'_>,
) -> Result<Response, Trouble> {
    let Agreement { terms, action, fields, more, agree, anew } = agreement;
    let seen = seal(&change, &terms);
    let Reply::Preview { plan, .. } = gateway.ask(Request::Preview(change)).await? else {
        return Err(Trouble::odd_answer());
    };
    let facts_of: Vec<(&str, Markup)> =
        terms.iter().map(|(about, sentence)| (*about, html! { (sentence) })).collect();
    let body = html! {
        @if anew { (banner(Tone::Warn, html! { p { (sentence(ANEW)) } })) }
        section.card {
            h2 { (plan.title) }
            @if plan.steps.is_empty() { p { "It is so already." } }
            @else { (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>())) }
            h3 { "What it comes to" }
            (facts(&facts_of))
            form.stack method="post" action=(action) {
                @for (name, value) in &fields { (hidden(name, value)) }
                (hidden("seen", &seen))
                (more)
                div.row { button type="submit" { (agree) } a.button.quiet href="/elsewhere" { "Back" } }
            }
        }
    };
    let page = Page { title: "Elsewhere", narrow: true, ..Page::default() };
    let response = answer(&page, &nav(gateway, &who.member, "/models"), body);
    Ok(if anew { with_status(StatusCode::CONFLICT, response) } else { response })
}

/// What makes the same server of a form again. No key is among it.
fn server_values(name: &UpstreamName, server: &UpstreamServer) -> Vec<(&'static str, String)> {
    let wish = filled(server);
    vec![
        ("name", name.to_string()),
        ("kind", wish.kind),
        ("url", wish.url),
        ("authority", server.authority.clone().unwrap_or_default()),
        ("budget", wish.budget),
        ("currency", wish.currency),
        ("when_down", wish.when_down),
        ("when_full", wish.when_full),
        ("full_at", wish.full_at),
    ]
}

/// The key is asked for where it is agreed to: a page that shows what was typed never has it.
fn key_fields(moved: Option<&UpstreamServer>, has_key: bool) -> Markup {
    let hint = match (has_key, moved) {
        (true, Some(was)) => format!(
            "The one that is kept is for {}. Type the one for the new address, or tick that it be forgotten",
            was.url.host()
        ),
        (true, None) => "Kept; type another one to change it".to_owned(),
        (false, _) => "Only this box keeps it, in a file of its own; empty: none".to_owned(),
    };
    html! {
        (field(&Field { name: "key", label: "API key", kind: "password", hint: &hint, ..Field::default() }))
        @if has_key { (tick("forget_key", "Forget its key", "", false)) }
    }
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
            form.stack method="post" action="/elsewhere" { (server_fields(form.unwrap_or(&fresh), true)) button type="submit" { "See what it comes to" } }
        }
    };
    let page = Page {
        title: "Elsewhere",
        lead: Some("Who is asked when this box cannot answer, and what that may cost."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/elsewhere"), body))
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
