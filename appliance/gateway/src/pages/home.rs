//! A member's first page: their keys.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{KeyId, KeyInfo, KeyLimits, MintedKey, NewKey, Scope};
use polder_page::{
    Choice, Field, Page, Tone, badge, banner, copyable, count, empty, field, select, table, tick,
    when,
};
use serde::Deserialize;

use crate::Gateway;
use crate::elsewhere;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::who::{Caller, SignedIn};
use crate::pages::{apps, chat, collective, succession};

#[derive(Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    pub(super) said: String,
}

/// The form for a new key, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    label: String,
    #[serde(default)]
    opens: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    days: String,
    #[serde(default)]
    requests: String,
    #[serde(default)]
    tokens: String,
    #[serde(default)]
    month: String,
    #[serde(default)]
    at_once: String,
    #[serde(default)]
    strict: String,
    #[serde(default)]
    background: String,
    #[serde(default)]
    stays_here: String,
}

/// What stands above the keys.
enum Top {
    Nothing,
    Said(String),
    Wrong(String),
    Minted(MintedKey),
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Query(said): Query<Said>,
) -> Result<Response, Response> {
    // Whoever comes to an unclaimed box, comes to claim it. The claim code is in the part of the
    // address after #, which the browser carries along.
    let claimed = gateway.members.ask(|m| m.is_claimed()).await;
    if !claimed.map_err(|e| Trouble::from(e).into_response())? {
        return Ok(Redirect::to("/setup").into_response());
    }
    let Some(token) = caller.token else { return Ok(Redirect::to("/sign-in").into_response()) };
    let asked = token.clone();
    let member = gateway.members.ask(move |m| m.session(asked.expose())).await;
    let Some(member) = member.map_err(|e| Trouble::from(e).into_response())? else {
        return Ok(Redirect::to("/sign-in").into_response());
    };
    let who = SignedIn { member, token, peer: caller.peer, base: caller.base };
    let top = if said.said.is_empty() { Top::Nothing } else { Top::Said(said.said) };
    page(&gateway, &who, top, &Wish::default()).await.map_err(Trouble::into_response)
}

pub(super) async fn mint(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let minted = match read(&wish) {
        Ok(new) => {
            let owner = who.member.id;
            let minted = gateway.members.ask(move |m| m.mint_key(owner, &new)).await;
            minted.map_err(|error| (frame::members_status(&error), error.to_string()))
        }
        Err(why) => Err((StatusCode::BAD_REQUEST, why)),
    };
    match minted {
        Ok(minted) => {
            let on = format!("{} ({})", minted.info.label, minted.info.beginning());
            who.record(&gateway, "made key", &on).await;
            page(&gateway, &who, Top::Minted(minted), &Wish::default()).await
        }
        Err((status, why)) => {
            let page = page(&gateway, &who, Top::Wrong(why), &wish).await?;
            Ok(with_status(status, page))
        }
    }
}

pub(super) async fn revoke(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Path(id): Path<String>,
) -> Result<Response, Trouble> {
    let owner = who.member.id;
    let info = gateway.members.ask(move |m| m.revoke_key(owner, &KeyId(id))).await?;
    who.record(&gateway, "revoked key", &format!("{} ({})", info.label, info.beginning())).await;
    Ok(Redirect::to("/?said=key-revoked").into_response())
}

fn read(wish: &Wish) -> Result<NewKey, String> {
    let number = |what: &str, text: &str| -> Result<Option<u64>, String> {
        let digits: String =
            text.chars().filter(|c| !c.is_whitespace() && *c != '\u{202f}').collect();
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| {
            format!(
                "{what} is not a whole number; write digits only, or leave it empty for no limit"
            )
        })
    };
    let small = |what: &str, text: &str| -> Result<Option<u32>, String> {
        number(what, text)?
            .map(|n| u32::try_from(n).map_err(|_| format!("{what} is too large to be a limit")))
            .transpose()
    };
    let days = number("the number of days", &wish.days)?;
    if days.is_some_and(|d| d == 0 || d > 3650) {
        return Err("a key lasts from 1 to 3650 days, or until it is revoked".into());
    }
    Ok(NewKey {
        label: wish.label.clone(),
        scopes: match wish.opens.as_str() {
            "auth" => vec![Scope::Auth],
            "both" => Scope::ALL.to_vec(),
            _ => vec![Scope::Api],
        },
        models: Some(wish.model.trim())
            .filter(|m| !m.is_empty())
            .map(str::to_owned)
            .into_iter()
            .collect(),
        strict: wish.strict == "yes",
        background: wish.background == "yes",
        stays_here: wish.stays_here == "yes",
        expires_in: days.map(|d| Duration::from_secs(d * 86400)),
        limits: KeyLimits {
            requests_per_minute: small("the limit of requests", &wish.requests)?,
            tokens_per_minute: small("the limit of tokens", &wish.tokens)?,
            tokens_per_month: number("the monthly quota", &wish.month)?,
            at_once: small("the limit of requests at once", &wish.at_once)?,
        },
    })
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Top,
    wish: &Wish,
) -> Result<Response, Trouble> {
    let owner = who.member.id;
    let keys = gateway.members.ask(move |m| m.keys_of(owner)).await?;
    let all = elsewhere::models(&gateway.status(), gateway.members.trying(owner));
    let models: Vec<String> = all.into_iter().map(|model| model.shown).collect();
    let unread = collective::unread(gateway, &who.member).await?;
    let first = keys.is_empty() && !matches!(top, Top::Minted(_));
    let wrong = matches!(top, Top::Wrong(_));
    let body = html! {
        @match &top {
            Top::Nothing => {},
            Top::Said(code) => (frame::said(code)),
            Top::Wrong(why) => (banner(Tone::Bad, html! { p { (sentence(why)) } })),
            Top::Minted(minted) => (shown_once(minted)),
        }
        (unread)
        (chat::trial_banner(gateway, &who.member))
        (succession::told(gateway, &who.member))
        (succession::trial(gateway, &who.member))
        @if models.is_empty() { (nothing_served(who.member.is_steward())) }
        div.grid {
            section.card {
                h2 { "Talk to the model" }
                p.soft { "In the browser. The conversation stays in your browser; the box keeps none of it." }
                a.button href="/chat" { "Open the chat" }
            }
            section.card {
                h2 { "Use it from your tools" }
                p.soft { "Settings to copy for the OpenAI SDK, curl, Aider and others. They need a key." }
                a.button.quiet href="/connect" { "Show the settings" }
            }
            (apps::card(gateway, who))
        }
        section.card {
            h2 { "Your keys" }
            @if keys.is_empty() {
                (empty("You have no keys yet. A key lets a program use the model in your name."))
            } @else {
                (key_table(&keys))
            }
            details open[first || wrong] {
                summary { "Make a new key" }
                (new_key(wish, &models))
            }
        }
    };
    let lead = format!("Good to see you, {}.", who.member.name);
    let page = Page { title: "Home", lead: Some(&lead), ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/"), body))
}

fn nothing_served(steward: bool) -> Markup {
    banner(
        Tone::Warn,
        html! {
            p {
                "This box serves no model yet. "
                @if steward { "Choose one and it will answer." } @else { "A steward has to choose one." }
            }
            @if steward { a href="/models" { "Choose a model" } }
        },
    )
}

fn shown_once(minted: &MintedKey) -> Markup {
    html! {
        section.card {
            h2 { "Your new key: " (minted.info.label) }
            (banner(Tone::Warn, html! { p { "Copy it now. It is shown this once: the box keeps only a fingerprint of it." } }))
            div.wrap { (copyable("new-key", "the new key", minted.key.expose())) }
            p { a href="/connect" { "How to put it into your tools" } }
        }
    }
}

fn key_table(keys: &[KeyInfo]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = keys
        .iter()
        .map(|key| {
            let expired = key.expires_at.is_some_and(|at| at <= now);
            vec![
                html! { div { strong { (key.label) } div.soft.small { code { (key.beginning()) } } } },
                html! { (opens(key)) },
                html! { (limits(key)) },
                html! {
                    div {
                        @match key.used_at {
                            Some(at) => { "used " (when(at, now)) },
                            None => span.soft { "never used" },
                        }
                        div.soft.small {
                            @if expired { (badge(Tone::Warn, "expired")) }
                            @else if let Some(at) = key.expires_at { "expires " (when(at, now)) }
                            @else { "made " (when(key.created_at, now)) }
                        }
                    }
                },
                html! {
                    form method="post" action=(format!("/keys/{}/revoke", key.id))
                        data-confirm=(format!("Revoke the key “{}”? Whatever uses it stops at once.", key.label)) {
                        button.danger type="submit" aria-label=(format!("Revoke {}", key.label)) { "Revoke" }
                    }
                },
            ]
        })
        .collect();
    table("Your keys", &["Key", "Opens", "Limits", "Use", ""], &rows)
}

fn opens(key: &KeyInfo) -> Markup {
    html! {
        div {
            @match (key.scopes.contains(&Scope::Api), key.scopes.contains(&Scope::Auth)) {
                (true, true) => "the model, and other web apps",
                (false, true) => "other web apps",
                _ => "the model",
            }
            @if !key.models.is_empty() { div.soft.small { "only " (key.models.join(", ")) } }
            @if key.background { div.soft.small { "in the background" } }
            @if key.stays_here { div.soft.small { "never elsewhere" } }
            @if key.strict { div.soft.small { "strict" } }
        }
    }
}

fn limits(key: &KeyInfo) -> Markup {
    let l = key.limits;
    let mut parts = Vec::new();
    if let Some(n) = l.requests_per_minute {
        parts.push(format!("{} requests a minute", count(n.into())));
    }
    if let Some(n) = l.tokens_per_minute {
        parts.push(format!("{} tokens a minute", count(n.into())));
    }
    if let Some(n) = l.at_once {
        parts.push(format!("{n} at once"));
    }
    html! {
        div.small {
            @if parts.is_empty() && l.tokens_per_month.is_none() { span.soft { "none" } }
            @for part in &parts { div { (part) } }
            @if let Some(n) = l.tokens_per_month {
                div { (count(key.tokens_this_month)) " of " (count(n)) " tokens this month" }
            }
        }
    }
}

fn new_key(wish: &Wish, models: &[String]) -> Markup {
    let mut choices = vec![Choice { value: "", label: "every model" }];
    choices.extend(models.iter().map(|m| Choice { value: m, label: m }));
    let number =
        |name, label, hint, value| field(&Field { name, label, hint, value, ..Field::default() });
    html! {
        form.stack method="post" action="/keys" {
            (field(&Field { name: "label", label: "What is it for?", hint: "So that you know it again: “laptop”, “editor”.",
                value: &wish.label, required: true, ..Field::default() }))
            details {
                summary { "Limits and other choices" }
                div.stack {
                    div.fields {
                        (select("opens", "It opens", "", &[
                            Choice { value: "api", label: "the model" },
                            Choice { value: "auth", label: "other web apps that ask this box" },
                            Choice { value: "both", label: "both" },
                        ], &wish.opens))
                        (select("model", "Which model", "", &choices, &wish.model))
                        (number("days", "Days until it expires", "", &wish.days))
                    }
                    p.hint { "These are limits that you set for yourself, for a program that you do not quite trust. Leave one empty for none." }
                    div.fields {
                        (number("requests", "Requests a minute", "", &wish.requests))
                        (number("tokens", "Tokens a minute", "", &wish.tokens))
                        (number("at_once", "Requests at once", "", &wish.at_once))
                        (number("month", "Tokens a month", "", &wish.month))
                    }
                    p.hint { "With a monthly quota the box counts this key's tokens, and keeps that one number for the month." }
                    (tick("background", "In the background", "What is asked with this key waits for whatever else you ask: for agents that work through the night.", wish.background == "yes"))
                    (tick("stays_here", "Never elsewhere", "What is asked with it is answered on this box or not at all, also where the box may ask another server when it is down or full.", wish.stays_here == "yes"))
                    (tick("strict", "Strict", "Refuse a request with a field that no specification has, instead of naming the field in the answer.", wish.strict == "yes"))
                }
            }
            button type="submit" { "Make the key" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_spaces_and_refused_with_letters() {
        let wish =
            Wish { month: "1 000\u{202f}000".into(), at_once: " 4 ".into(), ..Wish::default() };
        let key = read(&wish).unwrap();
        assert_eq!(key.limits.tokens_per_month, Some(1_000_000));
        assert_eq!(key.limits.at_once, Some(4));
        let wish = Wish { requests: "ten".into(), ..Wish::default() };
        assert!(read(&wish).unwrap_err().contains("requests"));
        let wish = Wish { days: "0".into(), ..Wish::default() };
        assert!(read(&wish).is_err());
        let wish = Wish { tokens: "99999999999".into(), ..Wish::default() };
        assert!(read(&wish).is_err());
    }
}
