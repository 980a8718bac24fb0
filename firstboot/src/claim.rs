//! Step 1: show that you may set this box up, with the code from the machine itself.

use axum::Form;
use axum::extract::State;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use http::{StatusCode, header};
use maud::{Markup, html};
use polder_page::{Field, field};
use serde::Deserialize;

use crate::host::{ClaimRefusal, Host, SetupError, Window, in_words};
use crate::page::{self, Page, sentence};
use crate::setup::{Neighbour, Setup, cookie, go, refuse};
use crate::wizard::Step;

#[derive(Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    code: String,
    /// From somebody with the owner's key.
    #[serde(default)]
    signature: String,
}

/// The page that asks for the code.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Neighbour) -> Response {
    match standing(&setup, &who).await {
        Ok(Standing::Elsewhere(response)) => response,
        Ok(Standing::Here(way)) => page(way, None).into_response(),
        Err(error) => refuse(error),
    }
}

/// Takes the code.
pub(crate) async fn take<H: Host>(
    State(setup): State<Setup<H>>,
    who: Neighbour,
    Form(answer): Form<Answer>,
) -> Response {
    let way = match standing(&setup, &who).await {
        Ok(Standing::Elsewhere(response)) => return response,
        Ok(Standing::Here(way)) => way,
        Err(error) => return refuse(error),
    };
    let claimed = match way {
        Way::Owner(_) => setup.host().claim_as_owner(answer.signature, who.visitor.from).await,
        Way::Code { .. } => setup.host().claim(answer.code, who.visitor.from).await,
    };
    let refusal = match claimed {
        Ok(token) => {
            log::info!(from:% = who.visitor.from; "the box was claimed");
            let cookie = cookie(&token, who.visitor.tls);
            return match setup.claimed().await {
                Ok(wizard) => (AppendHeaders([(header::SET_COOKIE, cookie)]), go(wizard.step()))
                    .into_response(),
                // The code is used up: the browser keeps its proof whatever else went wrong.
                Err(error) => {
                    (AppendHeaders([(header::SET_COOKIE, cookie)]), refuse(error)).into_response()
                }
            };
        }
        Err(SetupError::Claim(refusal)) => refusal,
        Err(error) => return refuse(error),
    };
    log::warn!(from:% = who.visitor.from; "a claim was refused: {refusal}");
    let page = page(way, Some(&refusal.to_string()));
    match refusal {
        ClaimRefusal::Wrong | ClaimRefusal::NotTheOwner => {
            (StatusCode::FORBIDDEN, page).into_response()
        }
        ClaimRefusal::TooMany(wait) => {
            let wait = wait.as_secs().max(1).to_string();
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait)], page).into_response()
        }
    }
}

enum Standing {
    Here(Way),
    Elsewhere(Response),
}

/// How this box is claimed.
enum Way {
    /// With a code from the machine.
    Code { window: Window, begun: bool, ended: Option<&'static str> },
    /// With the other half of the owner's key, by signing this.
    Owner(String),
}

async fn standing<H: Host>(setup: &Setup<H>, who: &Neighbour) -> Result<Standing, SetupError> {
    let wizard = setup.read().await?.wizard;
    let window = setup.host().window().await?;
    let over = wizard.step() == Step::Done;
    if over && window == Window::Closed {
        return Ok(Standing::Elsewhere(Redirect::to("/").into_response()));
    }
    if who.token.is_some() && !over {
        return Ok(Standing::Elsewhere(Redirect::to("/setup").into_response()));
    }
    if let Some(text) = setup.host().owner_text().await?.filter(|_| !over) {
        return Ok(Standing::Here(Way::Owner(text)));
    }
    let begun = wizard.step() != Step::Claim && !over;
    let ended = setup.host().ended();
    Ok(Standing::Here(Way::Code { window, begun, ended }))
}

fn page(way: Way, error: Option<&str>) -> Page {
    let (window, begun, ended) = match way {
        Way::Owner(text) => return owner_page(&text, error),
        Way::Code { window, begun, ended } => (window, begun, ended),
    };
    let body = match window {
        Window::Open(left) => html! {
            p {
                "This is a new box. Whoever shows the code from its screen may set it up. "
                "The code works once, and for another " (in_words(left)) "."
            }
            (form(error))
        },
        Window::Closed => html! {
            @if let Some(error) = error { (page::error(error)) }
            @if begun {
                p {
                    "Somebody has used the code and is setting this box up in another browser, so that code is \
                     not good any more. If that was you, go on there. If it was not, or that browser is gone, "
                    "take the box back:"
                }
            } @else {
                p { "The time for claiming this box is over. That keeps strangers out while nobody looks." }
            }
            p { "At the machine itself, type:" }
            pre { code { "polder claim reopen" } }
            p .hint { "The box printed that line in full when it started." }
            p {
                "It prints a new link and a new code. Open the link, or "
                a href=(Step::Claim.path()) { "load this page again" } " and type the code."
            }
        },
    };
    let body = html! {
        (body)
        @if let Some(page) = ended {
            p .hint { "Others had this box before, and ended it: " a href=(page) { "what was done, and how it was verified" } "." }
        }
    };
    Page::new(Step::Claim)
        .body(body)
        .next("you see what this machine is and what it can run. Nothing is changed yet.")
        .script("/setup/claim.js")
}

fn owner_page(text: &str, error: Option<&str>) -> Page {
    let body = html! {
        p {
            "This box came with an owner's key. Choose the key file that was saved together with the seed, "
            code { "polder-owner-key.json" } ". It stays on your computer: only a proof that you have it is sent."
        }
        @if let Some(error) = error { (page::error(error)) }
        noscript { p { strong { "This needs JavaScript: the browser itself makes the proof." } } }
        form #owner .stack method="post" action=(Step::Claim.path()) data-text=(text) {
            div .field {
                label for="key-file" { "Key file" }
                input #key-file type="file" accept=".json,application/json";
                p #key-error .error role="alert" hidden {}
            }
            button type="submit" { "Claim this box" }
        }
        p .hint { "Lost the file? Then put Polder onto the disk once more, with a new seed: nothing is on this box yet." }
    };
    Page::new(Step::Claim)
        .body(body)
        .next("you see what this machine is and what it can run. Nothing is changed yet.")
        .script("/setup/owner.js")
}

fn form(error: Option<&str>) -> Markup {
    let code = Field {
        name: "code",
        label: "Code",
        hint: "Three groups of five letters and digits, as the machine shows them. \
               Capitals, spaces and dashes do not matter.",
        error: &error.map(sentence).unwrap_or_default(),
        required: true,
        autofocus: true,
        ..Field::default()
    };
    html! {
        form #claim .stack method="post" action=(Step::Claim.path()) {
            (field(&code))
            button type="submit" { "Claim this box" }
        }
    }
}
