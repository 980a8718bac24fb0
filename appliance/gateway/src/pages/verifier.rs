//! On the page of apps: which verifier the box asks, for stewards to set and remove.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_page::{Choice, Field, Tone, badge, banner, field, select};
use polder_site::{Site, SiteChange, Verifier, VerifierMode, VerifierUrlError};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::{self, change_site};
use crate::pages::frame::{Trouble, sentence, with_status};
use crate::pages::who::Steward;

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    url: String,
    #[serde(default)]
    mode: String,
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let verifier = match read(&wish) {
        Ok(verifier) => verifier,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why.to_string())) } });
            let filled = apps::Filled { verifier: Some(&wish), ..apps::Filled::default() };
            let page = apps::page(&gateway, &who, wrong, filled).await?;
            return Ok(with_status(StatusCode::BAD_REQUEST, page));
        }
    };
    change_site(&gateway, &who, SiteChange::Verifier(verifier)).await?;
    Ok(Redirect::to("/apps?said=verifier").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    change_site(&gateway, &who, SiteChange::RemoveVerifier).await?;
    Ok(Redirect::to("/apps?said=verifier-removed").into_response())
}

fn read(wish: &Wish) -> Result<Verifier, VerifierUrlError> {
    let mode = match wish.mode.as_str() {
        "forward" => VerifierMode::Forward,
        _ => VerifierMode::Nginx,
    };
    Ok(Verifier { url: wish.url.trim().parse()?, mode })
}

pub(super) fn section(site: &Site, wish: &Wish) -> Markup {
    html! {
        section.card {
            h2 { "Ask another service" }
            p.soft { "A service on this machine that already knows your people, such as oauth2-proxy or nginx with passwords, can let their programs use the models without a key of this box. It is sent their password, token or cookies, and has to answer with the name of a member, exactly as on the page Members, in X-Auth-Request-User. It can speak for every member, stewards too." }
            @if let Some(verifier) = &site.verifier {
                p { "The box asks " code { (verifier.url) } " " (badge(Tone::Plain, label(verifier.mode))) }
                form method="post" action="/verifier/remove"
                    data-confirm="Ask it no more? Whoever has no key of this box stays out then." {
                    button.danger type="submit" { "Ask it no more" }
                }
            }
            form.stack method="post" action="/verifier" {
                div.fields {
                    (field(&Field { name: "url", label: "Where it is asked", hint: "http://127.0.0.1:4180/oauth2/auth, or unix:/run/auth.sock:/auth", value: &wish.url, required: true, ..Field::default() }))
                    (select("mode", "In which way", "", &[
                        Choice { value: "nginx", label: label(VerifierMode::Nginx) },
                        Choice { value: "forward", label: label(VerifierMode::Forward) },
                    ], &wish.mode))
                }
                button type="submit" { @if site.verifier.is_some() { "Ask this one instead" } @else { "Ask it" } }
            }
        }
    }
}

fn label(mode: VerifierMode) -> &'static str {
    match mode {
        VerifierMode::Nginx => "as nginx auth_request",
        VerifierMode::Forward => "as Caddy and Traefik",
    }
}
