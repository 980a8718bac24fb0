//! On the page of apps: those that let people sign in with the box, for stewards to write down and to remove.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{ClientApp, MembersError, NewClientApp, Secret};
use polder_oidc::Redirect as Address;
use polder_page::{
    Choice, Field, Page, Tone, badge, banner, copyable, empty, facts, field, select, table, tick,
};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps;
use crate::pages::frame::{Trouble, answer, nav, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// Addresses of one app.
const MOST_ADDRESSES: usize = 10;

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    title: String,
    redirects: String,
    kind: String,
    audience: String,
    asks_models: String,
}

pub(super) async fn add(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let wrong = |why: String| banner(Tone::Bad, html! { p { (sentence(&why)) } });
    let done = match read(&wish) {
        Ok(new) => gateway.members.ask(move |m| m.add_client_app(&new)).await,
        Err(why) => Err(MembersError::Field(why)),
    };
    match done {
        Ok((app, secret)) => {
            who.record(&gateway, "let people sign in with the box at", &app.name).await;
            Ok(written_down(&gateway, &who, &app, secret.as_ref()))
        }
        Err(error @ MembersError::Field(_)) => {
            let top = wrong(error.to_string());
            let filled = apps::Filled { client: Some(&wish), ..apps::Filled::default() };
            let page = apps::page(&gateway, &who, top, filled).await?;
            Ok(with_status(StatusCode::BAD_REQUEST, page))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<String>,
) -> Result<Response, Trouble> {
    let asked = id.clone();
    let app = gateway.members.ask(move |m| m.client_app(&asked)).await?;
    let app = app.ok_or_else(|| {
        Trouble::not_found("there is no such app; perhaps it was removed meanwhile")
    })?;
    gateway.members.ask(move |m| m.remove_client_app(&id)).await?;
    who.record(&gateway, "let nobody sign in with the box any more at", &app.name).await;
    Ok(Redirect::to("/apps?said=client-removed").into_response())
}

fn read(wish: &Wish) -> Result<NewClientApp, String> {
    let given = wish.redirects.lines().map(str::trim).filter(|line| !line.is_empty());
    let redirects: Result<Vec<String>, _> =
        given.map(|line| line.parse::<Address>().map(|a| a.to_string())).collect();
    let redirects = redirects.map_err(|error| error.to_string())?;
    if redirects.len() > MOST_ADDRESSES {
        return Err(format!("an app has {MOST_ADDRESSES} addresses at most; write fewer"));
    }
    Ok(NewClientApp {
        name: wish.title.clone(),
        redirects,
        with_secret: wish.kind != "public",
        for_stewards: wish.audience == "stewards",
        asks_models: !wish.asks_models.is_empty(),
    })
}

/// The one page that shows the secret.
fn written_down(
    gateway: &Gateway,
    who: &SignedIn,
    app: &ClientApp,
    secret: Option<&Secret>,
) -> Response {
    let body = html! {
        (banner(Tone::Good, html! { p { (app.name) " is written down." } }))
        section.card {
            (copyable("client", "The client's number (client id)", &app.id))
            @match secret {
                Some(secret) => {
                    (copyable("secret", "Its secret (client secret)", secret.expose()))
                    p { strong { "The secret is shown only now." } " The box keeps no copy of it. If it is lost, remove the app and write it down again." }
                }
                None => p { "It has no secret: it proves each sign-in anew (PKCE)." }
            }
            (facts(&[
                ("The box's address (issuer)", html! { code { (who.base) } }),
                ("How it describes itself", html! { code { (who.base) "/.well-known/openid-configuration" } }),
                ("Scopes", html! { code { "openid profile email groups" } }),
            ]))
        }
        p { a href="/apps" { "Back to Apps" } }
    };
    let page = Page { title: "Sign in with the box", narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/apps"), body)
}

pub(super) fn section(clients: &[ClientApp], wish: &Wish) -> Markup {
    let row = |app: &ClientApp| {
        vec![
            html! { div { strong { (app.name) } div.soft.small { code { (app.id) } } } },
            html! { @for address in &app.redirects { div.small { code { (address) } } } },
            html! {
                @if app.for_stewards { (badge(Tone::Warn, "stewards only")) } @else { (badge(Tone::Plain, "members")) }
                @if !app.has_secret { " " (badge(Tone::Plain, "no secret")) }
                @if app.asks_models { " " (badge(Tone::Warn, "asks models in their name")) }
            },
            html! { form method="post" action=(format!("/clients/{}/remove", app.id))
                data-confirm=(format!("Let nobody sign in at “{}” with the box any more? Who is there is asked again.", app.name)) {
                button.danger type="submit" aria-label=(format!("Remove {}", app.name)) { "Remove" }
            } },
        ]
    };
    let rows: Vec<_> = clients.iter().map(row).collect();
    html! {
        section.card {
            h2 { "Sign in with the box" }
            p.soft { "An app that speaks OpenID Connect can send people to this box to sign in, wherever it runs. It learns their name, an address of the box's own and whether they are a steward. Who signs out or is removed here is out there too, as soon as the app asks again. Everybody is asked on their first way there whether the app may see and do what it wants to, and can take that back." }
            @if rows.is_empty() { (empty("No app lets people sign in with the box yet.")) }
            @else { (table("Apps that people sign in to with the box", &["App", "Sends people back to", "For", ""], &rows)) }
            form.stack method="post" action="/clients" {
                div.fields {
                    (field(&Field { name: "title", label: "What you call it", hint: "“Open WebUI”", value: &wish.title, required: true, ..Field::default() }))
                    div.field {
                        label for="redirects" { "Where it wants people sent back to" }
                        p.hint id="redirects-hint" { "As the app says it (redirect URI), letter by letter, one a line." }
                        textarea id="redirects" name="redirects" rows="2" required aria-describedby="redirects-hint" { (wish.redirects) }
                    }
                    (select("kind", "It runs", "", &[
                        Choice { value: "", label: "on a server, which can keep a secret" },
                        Choice { value: "public", label: "in people's hands, without a secret" },
                    ], &wish.kind))
                    (select("audience", "Who may sign in there", "", &[
                        Choice { value: "members", label: "every member" },
                        Choice { value: "stewards", label: "stewards only" },
                    ], &wish.audience))
                }
                (tick("asks_models", "It may ask models in the name of whoever is signed in there", "For an app to chat in. What is asked counts as that member's own, by their share of the machine. Only for an app that you trust as you trust the box: it can ask whatever it wants. The box tells each member so before, and asks them.", !wish.asks_models.is_empty()))
                button type="submit" { "Write it down" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_written_down_with_whole_addresses_or_not_at_all() {
        let wish = |redirects: &str| Wish {
            title: "Wiki".into(),
            redirects: redirects.into(),
            ..Wish::default()
        };
        let new = read(&wish(" https://a.example/b \n\nhttp://localhost:3000/c")).unwrap();
        assert_eq!(new.redirects, ["https://a.example/b", "http://localhost:3000/c"]);
        assert!(new.with_secret && !new.for_stewards);
        assert!(read(&wish("https://a.example/b\nhttp://a.example/b")).is_err());
        assert!(read(&wish(&"https://a.example/b\n".repeat(11))).is_err());
    }
}
