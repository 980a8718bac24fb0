//! What exactly runs, what else could, and what became of updates; for stewards. Nothing moves here without a press.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{ImageStatus, OfferStatus, Plan, Reply, Request, UpdateStatus, UpdateWish};
use polder_page::{Field, Page, StepMark, Tone, banner, bytes, empty, facts, field, steps};
use polder_recipes::Recipe;
use polder_site::{RecipeName, Site, SiteChange, UpdateUrl, Updates};
use serde::Deserialize;

use crate::Gateway;
use crate::health::report;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::health::worst;
use crate::pages::home::Said;
use crate::pages::models::title;
use crate::pages::who::{SignedIn, Steward};

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    axum::extract::Query(said): axum::extract::Query<Said>,
) -> Result<Response, Trouble> {
    let top = frame::said(&said.said);
    page(&gateway, &who, top, "").await
}

/// Looks for an update, and shows what was found or why there is none.
pub(super) async fn check(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let top = match gateway.ask(Request::CheckUpdate).await {
        Ok(Reply::Updates(status)) if status.offer.is_some() => html! {},
        Ok(_) => banner(Tone::Good, html! { p { "There is nothing newer than what runs." } }),
        Err(why) => banner(Tone::Warn, html! { p { (sentence(&why.to_string())) } }),
    };
    page(&gateway, &who, top, "").await
}

pub(super) async fn fetch(gateway: State<Arc<Gateway>>, who: Steward) -> Result<Response, Trouble> {
    wish(&gateway, &who, UpdateWish::Fetch).await
}

pub(super) async fn apply(gateway: State<Arc<Gateway>>, who: Steward) -> Result<Response, Trouble> {
    wish(&gateway, &who, UpdateWish::Apply).await
}

pub(super) async fn back(gateway: State<Arc<Gateway>>, who: Steward) -> Result<Response, Trouble> {
    wish(&gateway, &who, UpdateWish::Back).await
}

async fn wish(gateway: &Gateway, who: &Steward, wish: UpdateWish) -> Result<Response, Trouble> {
    match gateway.ask(Request::Update { wish, by: who.0.actor() }).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

#[derive(Deserialize)]
pub(super) struct From {
    #[serde(default)]
    address: String,
}

/// Sets where updates are looked for; an empty address means on sticks only.
pub(super) async fn from(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(From { address }): Form<From>,
) -> Result<Response, Trouble> {
    let change = match address.trim() {
        "" => SiteChange::RemoveUpdates,
        address => match address.parse::<UpdateUrl>() {
            Ok(from) => SiteChange::Updates(Updates { from }),
            Err(why) => {
                let wrong = banner(Tone::Bad, html! { p { (sentence(&why.to_string())) } });
                let page = page(&gateway, &who, wrong, address).await?;
                return Ok(with_status(StatusCode::BAD_REQUEST, page));
            }
        },
    };
    change_site(&gateway, &who, change).await?;
    Ok(Redirect::to("/versions?said=updates").into_response())
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    typed: &str,
) -> Result<Response, Trouble> {
    let Reply::Updates(status) = gateway.ask(Request::Updates).await? else {
        return Err(Trouble::odd_answer());
    };
    let site = gateway.status().site.clone();
    let plan = match (&status.image, &status.offer) {
        (Some(_), Some(_)) => Some(gateway.ask(Request::PreviewUpdate(UpdateWish::Apply)).await),
        _ => None,
    };
    let health = report(gateway).await;
    let body = html! {
        (top)
        (worst(health.as_ref()))
        (runs(&status, &site))
        @match &status.image {
            None => section.card {
                h2 { "Updates" }
                (empty("This box is a program on a machine of somebody's own, not an image: update it as it was installed."))
            },
            Some(image) => {
                (update(&status, image, plan.as_ref()))
                (source(&site, typed))
            },
        }
        (story(&status))
    };
    let page = Page {
        title: "Versions",
        lead: Some("What exactly runs. Nothing of it changes unless a steward says so."),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/versions"), body))
}

fn runs(status: &UpdateStatus, site: &Site) -> Markup {
    let digest = |hex: &str| html! { code.small { (hex) } };
    html! {
        section.card {
            h2 { "What runs" }
            @match &status.image {
                None => (facts(&[("Polder", html! { (env!("CARGO_PKG_VERSION")) })])),
                Some(image) => (facts(&[
                    ("Image", html! { "Polder " (image.version) ", for " (image.arch) " machines" }),
                    ("Root hash, over every byte of it", digest(&image.roothash)),
                    ("Kernel", html! { (image.kernel) }),
                    ("GPU driver", html! { @match &image.driver { Some(version) => { "NVIDIA " (version) }, None => "none; models are computed on the processor" } }),
                    ("Other slot", html! { @match &image.other { Some(version) => { "Polder " (version) }, None => "empty" } }),
                    ("Keys that may sign updates", html! { (image.keys) }),
                ])),
            }
            @for (slot, engine) in &site.engines { (model(slot.as_str(), &engine.recipe)) }
        }
    }
}

/// A model and the digest of every file of it.
fn model(slot: &str, name: &RecipeName) -> Markup {
    let files = Recipe::find(name.as_str()).map(|recipe| recipe.files.as_slice()).unwrap_or(&[]);
    html! {
        details {
            summary { (title(name)) " in slot " (slot) }
            @if files.is_empty() { p.soft.small { "Its fingerprints were taken when it was imported, and a change is refused." } }
            @for file in files {
                p.small { (file.name) br; code { @match &file.sha256 { Some(digest) => (digest), None => "taken at the import" } } }
            }
        }
    }
}

fn update(
    status: &UpdateStatus,
    image: &ImageStatus,
    plan: Option<&Result<Reply, crate::AskError>>,
) -> Markup {
    html! {
        section.card {
            h2 { "Updates" }
            @if let Some(trying) = &status.trying {
                (banner(Tone::Warn, html! { p { "Polder " (trying) " is on trial. If it can do less than the version before, that one comes back by itself." } }))
            }
            @match &status.offer {
                None => p { "No update was found." },
                Some(offer) => (offered(offer, plan)),
            }
            @if image.keys == 0 { (banner(Tone::Warn, html! { p { "This image was made without keys, so that it can believe no update. Install a newer one from a stick." } })) }
            div.row {
                form method="post" action="/versions/check" {
                    button.quiet type="submit" { "Look for an update" }
                }
                @if let Ok(version) = &image.back {
                    form method="post" action="/versions/back"
                        data-confirm=(format!("Start the machine again with Polder {version}? Answers under way are finished first.")) {
                        button.danger type="submit" { "Go back to Polder " (version) }
                    }
                }
            }
        }
    }
}

fn offered(offer: &OfferStatus, plan: Option<&Result<Reply, crate::AskError>>) -> Markup {
    html! {
        (facts(&[
            ("Found", html! { "Polder " (offer.version) ", " (offer.age) }),
            ("Where", html! { (offer.from) @if offer.here { "; fetched already" } }),
            ("Size", html! { (bytes(offer.bytes)) }),
            ("Root hash", html! { code.small { (offer.roothash) } }),
        ]))
        @match plan {
            Some(Ok(Reply::Preview { plan, .. })) => (change(offer, plan)),
            Some(Err(why)) => (banner(Tone::Warn, html! { p { (sentence(&why.to_string())) } })),
            _ => {},
        }
    }
}

fn change(offer: &OfferStatus, plan: &Plan) -> Markup {
    let marks: Vec<(StepMark, &str)> =
        plan.steps.iter().map(|step| (StepMark::Later, step.title.as_str())).collect();
    html! {
        p.soft { "This is what will happen:" }
        div.stack { (steps("Steps", &marks)) }
        div.row {
            form method="post" action="/versions/apply"
                data-confirm=(format!("Change to Polder {}? The machine starts again; answers under way are finished first.", offer.version)) {
                button type="submit" { "Change to Polder " (offer.version) }
            }
            @if !offer.here {
                form method="post" action="/versions/fetch" {
                    button.quiet type="submit" { "Only fetch it" }
                }
            }
        }
    }
}

fn source(site: &Site, typed: &str) -> Markup {
    let known = site.updates.as_ref().map(|updates| updates.from.to_string()).unwrap_or_default();
    let value = if typed.is_empty() { &known } else { typed };
    html! {
        section.card {
            h2 { "Where updates come from" }
            p.soft { "A stick with the files of a newer image is always looked at first. With an address here, the box also asks there once a day whether there is something new, and fetches nothing by itself. What comes from there is believed only with a signature that this image knows." }
            form.stack method="post" action="/versions/from" {
                div.fields {
                    (field(&Field { name: "address", label: "Web address of a folder with images", hint: "Empty: from sticks only", value, ..Field::default() }))
                }
                button.quiet type="submit" { "Keep this" }
            }
        }
    }
}

fn story(status: &UpdateStatus) -> Markup {
    html! {
        @if status.image.is_some() {
            section.card {
                h2 { "What became of updates" }
                @if status.why.is_empty() { (empty("None was tried yet.")) }
                @for told in &status.why { p { (told) } }
            }
        }
    }
}
