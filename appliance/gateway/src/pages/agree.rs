//! Somebody goes to an app for the first time: what it will learn and may do, in plain words, and their yes or no. And on their own page, to what
//! they agreed, to be taken back.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{Agreement, ClientApp};
use polder_oidc::{Asked, Wanted};
use polder_page::{Page, card, empty, hidden, table, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, plain_nav};
use crate::pages::provider::{Judging, address};
use crate::pages::who::{Caller, LONGEST_PATH, SignedIn};

/// What an app asks for, put to whoever is signed in.
pub(super) async fn ask(
    gateway: &Gateway,
    member: &polder_members::Member,
    app: &ClientApp,
    wanted: &Wanted,
    query: &str,
) -> Result<Response, Trouble> {
    let email = address(gateway, member).await?.0;
    let id = member.id;
    let before = gateway.members.ask(move |m| m.agreements(id)).await?;
    let before = before.iter().find(|before| before.app == app.id);
    let grew = before.is_some_and(|before| !before.covers(app, &wanted.scope));
    let back = wanted.redirect.split('/').take(3).collect::<Vec<_>>().join("/");
    let has = |word: &str| wanted.scope.split(' ').any(|known| known == word);
    let body = html! {
        @if grew { p { strong { "It wants more than you agreed to before." } } }
        p { "You are going to " strong { (app.name) } " (" code { (back) } "), which a steward wrote down as an app of your collective. You are " strong { (member.name) } " here. The box tells it nothing before you say so." }
        section.card {
            h2 { "What it will see" }
            ul {
                @if has("profile") { li { "Your name: " strong { (member.name) } } }
                @else { li { "A number that tells you apart from others" } }
                @if has("email") { li { "An e-mail address: " strong { (email) } } }
                @if has("groups") || has("profile") {
                    li { "Your groups: " @if member.is_steward() { "that you are a member and a steward" } @else { "that you are a member" } }
                }
                li { "When you signed in on this box" }
            }
        }
        section.card {
            h2 { "What it may do in your name" }
            @if app.asks_models {
                ul {
                    li { strong { "Ask models in your name" } ", whatever it wants and as often as it wants. What it asks counts as your own use, by your share of the machine; where the box asks a server elsewhere for money, it counts on the budget too." }
                    li { "It reads what it asks and what is answered. It may do so as long as you are signed in on this box" @if !has("offline_access") { " and go there" } "; when you sign out, or take back what you agreed to, an answer that is just being given to it ends too." }
                }
            } @else {
                p { "Nothing. It asks this box only who you are" @if has("offline_access") { ", as long as you are signed in here" } "." }
            }
        }
        form.stack method="post" action="/oidc/agree" {
            (hidden("question", query))
            (hidden("member", &member.id.to_string()))
            (hidden("asks_models", if app.asks_models { "yes" } else { "" }))
            div.row {
                button type="submit" name="says" value="yes" { "Agree and go on" }
                button.quiet type="submit" name="says" value="no" { "No" }
            }
        }
        p.soft.small { "You are asked once, and again if it is to see or do more. On your page " a href="/account" { "Your account" } " you can take it back at any time." }
    };
    let title = format!("Sign in at {}?", app.name);
    let page = Page { title: &title, narrow: true, ..Page::default() };
    Ok(answer(&page, &plain_nav(gateway), body))
}

/// What somebody said to that.
#[derive(Deserialize)]
pub(super) struct Said {
    #[serde(default)]
    question: String,
    #[serde(default)]
    member: String,
    #[serde(default)]
    asks_models: String,
    #[serde(default)]
    says: String,
}

pub(super) async fn agree(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    caller: Caller,
    headers: HeaderMap,
    Form(said): Form<Said>,
) -> Result<Response, Trouble> {
    let shown = |why: &str| Trouble::Say(StatusCode::BAD_REQUEST, why.to_owned());
    let unreadable = || shown("the app's question cannot be read; go to the app again");
    // What the app asked, once more and no less strictly: the form went through somebody's browser.
    let again = asked_again(&said.question);
    let uri: Uri = again.parse().map_err(|_| unreadable())?;
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|_| unreadable())?;
    let judging = Judging::of(&gateway, &caller, &headers);
    let (app, wanted) = match judging.judge(&asked).await? {
        Ok(judged) => judged,
        Err(told) => return Ok(told),
    };
    if said.says != "yes" {
        return judging.tell(&wanted.without("access_denied", "they did not agree to it"));
    }
    // Somebody else may have signed in since in this browser, who was shown nothing.
    if said.member != who.member.id.to_string() {
        return Err(shown(
            "somebody else signed in on this browser meanwhile, so nothing was agreed to; go to the app again",
        ));
    }
    // As it was shown: what the app was let do since is asked anew.
    let (member, asks_models) = (who.member.id, app.asks_models && said.asks_models == "yes");
    let (id, scope) = (app.id.clone(), wanted.scope);
    gateway.members.ask(move |m| m.agree_to_app(member, &id, &scope, asks_models)).await?;
    let what = match asks_models {
        true => "agreed that an app sees who they are and asks models in their name:",
        false => "agreed that an app sees who they are:",
    };
    who.record(&gateway, what, &app.name).await;
    if again.len() > LONGEST_PATH {
        return Err(shown("the app sends more along than the box takes; go to the app again"));
    }
    Ok(Redirect::to(&again).into_response())
}

/// The way back to the app's question; that they were to be asked is done.
fn asked_again(question: &str) -> String {
    let parts: Vec<&str> =
        question.split('&').filter(|part| !part.starts_with("prompt=")).collect();
    format!("/oidc/authorize?{}", parts.join("&"))
}

#[derive(Deserialize)]
pub(super) struct Back {
    #[serde(default)]
    app: String,
}

pub(super) async fn take_back(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(back): Form<Back>,
) -> Result<Response, Trouble> {
    let (member, app) = (who.member.id, back.app);
    let asked = app.clone();
    let known = gateway.members.ask(move |m| m.agreements(member)).await?;
    let gone = gateway.members.ask(move |m| m.take_back_from_app(member, &asked)).await?;
    // Pressed twice is done once.
    if let Some(known) = known.iter().find(|known| gone && known.app == app) {
        who.record(&gateway, "took back what they had agreed to for", &known.name).await;
    }
    Ok(Redirect::to("/account?said=app-back").into_response())
}

/// On a member's own page: to what they agreed.
pub(super) fn section(agreed: &[Agreement]) -> Markup {
    let row = |agreed: &Agreement| {
        vec![
            html! { strong { (agreed.name) } },
            html! { (sees(&agreed.scope)) @if agreed.asks_models { div { strong { "asks models in your name" } } } },
            html! { (when(agreed.at, frame::now())) },
            html! { form method="post" action="/account/apps/take-back" {
                (hidden("app", &agreed.app))
                button.danger type="submit" aria-label=(format!("Take back what you agreed to for {}", agreed.name)) { "Take back" }
            } },
        ]
    };
    let rows: Vec<_> = agreed.iter().map(row).collect();
    card(
        "Apps that you sign in to with this box",
        html! {
            @if rows.is_empty() { (empty("None. Before an app learns who you are, the box asks you.")) }
            @else {
                (table("Apps that you sign in to with this box", &["App", "What it may", "You agreed", ""], &rows))
                p.soft.small { "What you take back ends at once: the box tells that app nothing more about you and answers it nothing in your name, not to the end of an answer either. The same happens where you sign out. Until it asks the box again it may still show you as signed in." }
            }
        },
    )
}

fn sees(scope: &str) -> &'static str {
    let has = |word: &str| scope.split(' ').any(|known| known == word);
    match (has("profile"), has("email"), has("groups")) {
        (true, true, _) => "sees your name, address and groups",
        (true, false, _) => "sees your name and groups",
        (false, true, true) => "sees your address and groups",
        (false, true, false) => "sees your address",
        (false, false, true) => "sees your groups",
        (false, false, false) => "tells you apart from others",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_asked_is_not_asked_again_and_nothing_else_is_lost_on_the_way() {
        let again = asked_again("client_id=a&prompt=consent&max_age=5&state=prompt%3Dx");
        assert_eq!(again, "/oidc/authorize?client_id=a&max_age=5&state=prompt%3Dx");
        assert_eq!(asked_again("prompt=login%20consent"), "/oidc/authorize?");
    }
}
