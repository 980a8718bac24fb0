//! Step 3: which model the box serves first.

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_page::{Tone, badge, bytes};
use polder_site::RecipeName;
use serde::Deserialize;

use crate::catalogue::{self, Choice};
use crate::host::Host;
use crate::page::{self, Page, sentence};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::Step;

#[derive(Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    recipe: String,
}

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Model) {
        return elsewhere;
    }
    page(&setup, &who, None).await
}

/// Takes the choice and begins to bring the model in.
pub(crate) async fn choose<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(answer): Form<Answer>,
) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Model) {
        return elsewhere;
    }
    let recipe = match chosen(&answer.recipe) {
        Ok(recipe) => recipe,
        Err(why) => {
            return (StatusCode::BAD_REQUEST, page(&setup, &who, Some(&why)).await).into_response();
        }
    };
    if let Err(error) = setup.choose(recipe).await {
        let status = refuse(error.clone()).status();
        return (status, page(&setup, &who, Some(&error.to_string())).await).into_response();
    }
    // Should it not begin, the next page says why and offers to try again.
    if let Err(error) = setup.begin_import().await {
        log::warn!("the import did not begin: {error}");
    }
    go(Step::Import)
}

/// The recipe of that name, if this box can serve it.
fn chosen(name: &str) -> Result<RecipeName, String> {
    if name.is_empty() {
        return Err("no model is chosen; pick one of the list".into());
    }
    let found = catalogue::recipe(name)?;
    match found.engine_lacks() {
        Some(why) => Err(format!("{} cannot be chosen: {why}", found.title)),
        None => name.parse().map_err(|error: polder_site::NameError| error.to_string()),
    }
}

async fn page<H: Host>(setup: &Setup<H>, who: &Claimer, error: Option<&str>) -> Response {
    let (machine, imported) = match tokio::join!(setup.host().machine(), setup.host().imported()) {
        (Ok(machine), Ok(imported)) => (machine, imported),
        (Err(error), _) | (_, Err(error)) => return refuse(error),
    };
    let choices = catalogue::choices(&machine, &imported);
    let picked = who.wizard.recipe().map_or(polder_recipes::DEFAULT_RECIPE, RecipeName::as_str);
    Page::new(Step::Model)
        .notice(who.notice.as_deref())
        .body(body(&choices, picked, error))
        .next("the model is fetched and checked, and you watch how far it is. You can change your mind later: models come and go without losing anything else.")
        .into_response()
}

fn body(choices: &[Choice], picked: &str, error: Option<&str>) -> Markup {
    let (usable, not): (Vec<&Choice>, Vec<&Choice>) =
        choices.iter().partition(|choice| choice.lacks.is_none());
    html! {
        @if let Some(error) = error { (page::error(error)) }
        form .card method="post" action=(Step::Model.path()) {
            fieldset {
                legend { "A model is what answers. This box can run:" }
                @for choice in &usable { (option(choice, choice.name == picked)) }
            }
            p .hint { "A token is about three quarters of a word; people read four or five words a second. 32K are 32 thousand tokens: a small book." }
            button type="submit" { "Bring this model in" }
        }
        @if !not.is_empty() {
            details {
                summary { "Models that it cannot run yet (" (not.len()) ")" }
                div .stack {
                    @for choice in &not {
                        section .card { h2 { (choice.title) } (details(choice)) }
                    }
                }
            }
        }
    }
}

fn option(choice: &Choice, picked: bool) -> Markup {
    let id = format!("model-{}", choice.name);
    html! {
        div .field.tick {
            input type="radio" name="recipe" required id=(id) value=(choice.name) checked[picked]
                aria-describedby=(format!("{id}-about"));
            label for=(id) { (choice.title) }
            div .hint.stack id=(format!("{id}-about")) { (details(choice)) }
        }
    }
}

fn details(choice: &Choice) -> Markup {
    html! {
        p {
            @if choice.trial { (badge(Tone::Warn, "Trial: tiny and often wrong")) " " }
            (choice.about.as_deref().unwrap_or_default())
        }
        @if choice.cannot_chat { p { strong { "Not for conversations: " } "the chat page cannot use it." } }
        @if let Some(lacks) = &choice.lacks { p { strong { "Not yet: " } (lacks) "." } }
        p {
            @if choice.imported { (badge(Tone::Good, "On this box")) " " }
            @if let Some(size) = choice.size { (bytes(size)) @if !choice.imported { " to fetch" } ". " }
            "Licence: " (choice.licence.as_deref().unwrap_or("not stated")) ". "
            @if let Some(fits) = &choice.fits { (sentence(fits)) " " }
            a href=(format!("/setup/planner?model={}", choice.name)) {
                "The figures" span .hidden-visually { " for " (choice.title) }
            }
        }
        @if choice.unpinned && choice.lacks.is_none() {
            p { "Nobody has written down its files' fingerprints yet: the first import does, and any later change is refused." }
        }
    }
}
