//! Which models there are, what fits, and putting one to use; for stewards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{BoxStatus, ImportSource, Machine, Reply, Request};
use polder_page::{
    Choice, Field, Page, StepMark, Tone, badge, banner, bytes, card, count, facts, field, hidden,
    select, steps, table, tick,
};
use polder_planner::{Fit, ModelFit, what_fits};
use polder_recipes::{BoxSpec, Recipe, Role, Source};
use polder_site::{EngineName, Keeping, RecipeName, Sharing, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav};
use crate::pages::who::Steward;
use crate::pages::{engine, registries, succession};

#[derive(Deserialize)]
pub(super) struct From {
    #[serde(default)]
    source: String,
    #[serde(default)]
    place: String,
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let (imported, machine) = (imported(&gateway).await?, machine(&gateway).await?);
    let status = gateway.status();
    // Planning every model takes a while of arithmetic.
    let spec = as_box(&machine);
    let fits = tokio::task::spawn_blocking(move || what_fits(&spec)).await.map_err(|e| {
        Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, format!("planning failed: {e}"))
    })?;
    let (can, cannot): (Vec<&Recipe>, Vec<&Recipe>) = ordered(&fits).into_iter().partition(|r| {
        r.engine_lacks().is_none() && fit(&fits, r).is_none_or(|f| f.verdict.fit != Fit::DoesNotFit)
    });
    let body = html! {
        p.soft { "This machine: " (machine.cpu) ", " (bytes(machine.memory)) " of memory, " (bytes(machine.disk_free)) " free on disk"
            @for gpu in &machine.gpus { ", " (gpu.name) }
            @if let Some(driver) = &machine.driver { "; " (driver) } "." }
        div.grid {
            @for recipe in can { (model_card(recipe, &fits, &imported, &status)) }
        }
        (succession::card(&status.site))
        (engine::section(&status.site))
        section.card {
            h2 { "When this box cannot answer" }
            p { @match status.site.upstreams.len() {
                0 => "Nobody else is asked: what members ask stays here.",
                1 => "One server elsewhere may be asked. What it is asked leaves the house.",
                _ => "Servers elsewhere may be asked. What they are asked leaves the house.",
            } }
            a.button.quiet href="/elsewhere" { "Elsewhere" }
        }
        (sharing(status.site.sharing, &status.site.common))
        (keeping(status.site.keeping))
        details {
            summary { "Models that cannot run here yet (" (cannot.len()) ")" }
            ul { @for recipe in cannot {
                li { strong { (recipe.title) } ": " (recipe.engine_lacks().unwrap_or_else(|| fit(&fits, recipe).map_or_else(String::new, |f| f.line.clone()))) }
            } }
        }
    };
    let page = Page {
        title: "Models",
        lead: Some(
            "Every file of a model is checked against its known fingerprint before it is used.",
        ),
        ..Page::default()
    };
    Ok(answer(&page, &nav(&gateway, &who.member, "/models"), body))
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let recipe = recipe(&name)?;
    let name: RecipeName = parse(&recipe.name)?;
    let (change, slot) = change(&gateway.status(), recipe, &name);
    let image = match &change {
        SiteChange::Engine { slot, .. } => registries::beside_plan(&gateway, slot).await?,
        _ => html! {},
    };
    let preview = gateway.ask(Request::Preview(change)).await;
    let (imported, machine) = (imported(&gateway).await?, machine(&gateway).await?);
    let spec = as_box(&machine);
    let estimate =
        polder_planner::plan(&spec, recipe, 1, &polder_planner::Assumptions::for_box(&spec));
    let verdict = estimate.map_or_else(|e| e.to_string(), |e| e.verdict.why);
    let body = html! {
        @if recipe.trial { (banner(Tone::Warn, html! { p { "This is a trial model: tiny and often wrong. It is good for seeing that everything works." } })) }
        section.card {
            @if let Some(about) = &recipe.about { p { (about) } }
            (facts(&[
                ("Called in requests", html! { code { (recipe.name) } }),
                ("Size", html! { @match recipe.total_size() { Some(n) => (bytes(n)), None => "known after the import" } }),
                ("Licence", html! { (recipe.licence.as_deref().unwrap_or("not stated")) }),
                ("Reads at most", html! { @match recipe.context { Some(n) => { (polder_page::count(n.into())) " tokens" }, None => "not stated" } }),
                ("On this machine", html! { (frame::sentence(&verdict)) }),
                ("Files", html! { @if recipe.is_pinned() { "every fingerprint is known; a wrong byte is refused" } @else { "fingerprints are taken at the first import; any later change is refused" } }),
            ]))
        }
        section.card {
            h2 { "Use it" }
            @match &preview {
                Ok(Reply::Preview { plan, .. }) => {
                    @if plan.steps.is_empty() { p { "It is in use already." } }
                    @else {
                        p.soft { "This is what will happen, in slot " code { (slot) } ":" }
                        div.stack { (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>())) }
                        (use_button(recipe, imported.contains(&name)))
                    }
                },
                Ok(_) => (banner(Tone::Bad, html! { p { "The supervisor did not say what would happen." } })),
                Err(error) => (banner(Tone::Bad, html! { p { (frame::sentence(&error.to_string())) } })),
            }
        }
        (image)
        section.card {
            h2 { "Bring its files in from elsewhere" }
            p.soft { "From a disk that somebody carried here, or from another box. The files are checked in the same way." }
            form.stack method="post" action=(format!("/models/{}/import", recipe.name)) {
                div.fields {
                    (select("source", "From", "", &[Choice { value: "folder", label: "a folder on this machine" }, Choice { value: "web", label: "a web address" }, Choice { value: "recipe", label: "where the recipe says" }], "folder"))
                    (field(&Field { name: "place", label: "Folder or address", ..Field::default() }))
                }
                button.quiet type="submit" { "Import without using it yet" }
            }
        }
    };
    let page = Page { title: &recipe.title, narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(&gateway, &who.member, "/models"), body))
}

pub(super) async fn put_to_use(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let recipe = recipe(&name)?;
    let (change, _) = change(&gateway.status(), recipe, &parse(&recipe.name)?);
    accepted(gateway.ask(Request::Apply { change, by: who.actor() }).await?)
}

pub(super) async fn import(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(from): Form<From>,
) -> Result<Response, Trouble> {
    let recipe = parse(&recipe(&name)?.name)?;
    let place = from.place.trim();
    let missing = |what: &str| Trouble::Say(StatusCode::BAD_REQUEST, what.to_owned());
    let from = match from.source.as_str() {
        "folder" if !place.starts_with('/') => {
            return Err(missing("write the whole path of the folder, beginning with /"));
        }
        "folder" => ImportSource::Folder(PathBuf::from(place)),
        "web" if !place.starts_with("http://") && !place.starts_with("https://") => {
            return Err(missing("write the whole address, beginning with http:// or https://"));
        }
        "web" => ImportSource::Web(place.to_owned()),
        _ => ImportSource::Recipe,
    };
    accepted(gateway.ask(Request::Import { recipe, from, by: who.actor() }).await?)
}

fn sharing(now: Sharing, common: &BTreeMap<String, String>) -> Markup {
    html! {
        section.card {
            h2 { "What members have together" }
            p { "The box keeps what it has read, so that the next turn of a conversation is quick: for each member their own, as long as nobody needs the room." }
            form.stack method="post" action="/sharing" {
                (tick("trusting", "Our members trust each other", "What several of them send, such as the same long instructions, is read once for all. Somebody could then tell by the time of an answer whether another member has sent the same words before; never who, and never what came of it.", now.trusting))
                button.quiet type="submit" { "Save" }
            }
            h3 { "Instructions that everybody's programs send" }
            p.soft { "The words that a program puts before every conversation are no secret. Put them here exactly as it sends them, and they are read once for all members, whether they trust each other or not." }
            @if !common.is_empty() { (common_table(common)) }
            details {
                summary { "Add some" }
                form.stack method="post" action="/common" {
                    (field(&Field { name: "title", label: "Title", hint: "So that you know them again: “code agent”.", required: true, ..Field::default() }))
                    div.field {
                        label for="common-text" { "Instructions" }
                        textarea #common-text name="text" rows="8" required {}
                    }
                    button.quiet type="submit" { "Add" }
                }
            }
        }
    }
}

fn common_table(common: &BTreeMap<String, String>) -> Markup {
    let rows: Vec<Vec<Markup>> = common
        .iter()
        .map(|(title, text)| {
            vec![
                html! { strong { (title) } },
                html! { (count(text.chars().count() as u64)) " letters" },
                html! { form method="post" action="/common/remove" { (hidden("title", title)) button.quiet type="submit" { "Remove" } } },
            ]
        })
        .collect();
    table("Common instructions", &["Title", "Length", ""], &rows)
}

#[derive(Deserialize)]
pub(super) struct Instructions {
    #[serde(default)]
    title: String,
    #[serde(default)]
    text: String,
}

pub(super) async fn add_common(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Instructions>,
) -> Result<Response, Trouble> {
    // Browsers end lines with two characters; programs with one.
    let (title, text) = (form.title.trim().to_owned(), form.text.replace("\r\n", "\n"));
    change_site(&gateway, &who, SiteChange::Common { title, text }).await?;
    Ok(Redirect::to("/models?said=sharing").into_response())
}

pub(super) async fn remove_common(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Instructions>,
) -> Result<Response, Trouble> {
    change_site(&gateway, &who, SiteChange::RemoveCommon(form.title)).await?;
    Ok(Redirect::to("/models?said=sharing").into_response())
}

#[derive(Deserialize)]
pub(super) struct Shared {
    #[serde(default)]
    trusting: String,
}

pub(super) async fn share(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Shared>,
) -> Result<Response, Trouble> {
    let sharing = Sharing { trusting: form.trusting == "yes" };
    change_site(&gateway, &who, SiteChange::Sharing(sharing)).await?;
    Ok(Redirect::to("/models?said=sharing").into_response())
}

fn keeping(now: Keeping) -> Markup {
    let days = choices(&[0, 1, 7, 30, 90, 365], now.days, |days| match days {
        0 => "not at all".to_owned(),
        1 => "for a day".to_owned(),
        days => format!("for {days} days"),
    });
    let percent =
        choices(&[5, 10, 20, 40, 60], now.disk_percent.into(), |part| format!("{part} %"));
    let (chosen_days, chosen_percent) = (now.days.to_string(), now.disk_percent.to_string());
    html! {
        section.card {
            h2 { "What stays on disk of conversations" }
            p { "As numbers, never as words, and encrypted with a key for each member (one for all, where they trust each other), which they can have destroyed on their own page. Whoever comes back to a conversation then waits a moment instead of minutes." }
            form.stack method="post" action="/keeping" {
                div.fields {
                    (select("days", "After somebody last came back to it, it stays", "", &shown(&days), &chosen_days))
                    (select("disk_percent", "Of the disk, it takes at most", "", &shown(&percent), &chosen_percent))
                }
                button.quiet type="submit" { "Save, and start the models again" }
            }
        }
    }
}

/// Numbers to choose from, the present one among them, with what is read.
fn choices(usual: &[u16], now: u16, label: impl Fn(u16) -> String) -> Vec<(String, String)> {
    let mut all = usual.to_vec();
    all.push(now);
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|number| (number.to_string(), label(number))).collect()
}

fn shown(choices: &[(String, String)]) -> Vec<Choice<'_>> {
    choices.iter().map(|(value, label)| Choice { value, label }).collect()
}

#[derive(Deserialize)]
pub(super) struct Kept {
    days: u16,
    disk_percent: u8,
}

pub(super) async fn keep(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Kept { days, disk_percent }): Form<Kept>,
) -> Result<Response, Trouble> {
    let change = SiteChange::Keeping(Keeping { days, disk_percent });
    accepted(gateway.ask(Request::Apply { change, by: who.actor() }).await?)
}

pub(super) async fn remove_engine(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let name: EngineName =
        name.parse().map_err(|_| Trouble::not_found("there is no such engine"))?;
    let change = SiteChange::RemoveEngine(name);
    gateway.ask(Request::Apply { change, by: who.actor() }).await?;
    Ok(Redirect::to("/dashboard?said=engine-removed").into_response())
}

pub(super) fn accepted(reply: Reply) -> Result<Response, Trouble> {
    match reply {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

/// What people call this model.
pub(super) fn title(name: &RecipeName) -> String {
    Recipe::find(name.as_str()).map_or_else(|_| name.to_string(), |recipe| recipe.title.clone())
}

/// True for a model that is only for trying the box out.
pub(super) fn is_trial(name: &RecipeName) -> bool {
    Recipe::find(name.as_str()).is_ok_and(|recipe| recipe.trial)
}

/// Is there a model that is more than a trial and that the engine of this version can run?
pub(super) fn better_one_runs() -> bool {
    Recipe::builtin().iter().any(|recipe| !recipe.trial && recipe.engine_lacks().is_none())
}

/// The change that puts a model to use, and in which slot: the only one there is, or else the one
/// that is named after the model's role.
fn change(status: &BoxStatus, recipe: &Recipe, name: &RecipeName) -> (SiteChange, EngineName) {
    let wanted = match recipe.role {
        Role::Fast => "fast",
        Role::Slow => "slow",
    };
    let slot: EngineName = match status.site.engines.keys().collect::<Vec<_>>().as_slice() {
        [only] => (*only).clone(),
        _ => wanted.parse().expect("the literals are names"),
    };
    let engine = status.site.slot_with(&slot, name.clone());
    (SiteChange::Engine { name: slot.clone(), slot: engine }, slot)
}

fn recipe(name: &str) -> Result<&'static Recipe, Trouble> {
    Recipe::find(name).map_err(|error| Trouble::not_found(&error.to_string()))
}

fn parse(name: &str) -> Result<RecipeName, Trouble> {
    name.parse().map_err(|error: polder_site::NameError| Trouble::not_found(&error.to_string()))
}

async fn imported(gateway: &Gateway) -> Result<Vec<RecipeName>, Trouble> {
    match gateway.ask(Request::Imported).await? {
        Reply::Imported(names) => Ok(names),
        _ => Err(Trouble::odd_answer()),
    }
}

async fn machine(gateway: &Gateway) -> Result<Machine, Trouble> {
    match gateway.ask(Request::Machine).await? {
        Reply::Machine(machine) => Ok(machine),
        _ => Err(Trouble::odd_answer()),
    }
}

fn as_box(machine: &Machine) -> BoxSpec {
    let gpus: Vec<_> = machine.gpus.iter().map(|g| (g.name.as_str(), g.memory)).collect();
    BoxSpec::for_machine(&gpus, machine.memory)
}

/// In the planner's order: what fits first, the largest of those first; then what it cannot plan.
fn ordered(fits: &[ModelFit]) -> Vec<&'static Recipe> {
    let at = |r: &Recipe| fits.iter().position(|f| f.recipe.name == r.name).unwrap_or(usize::MAX);
    let mut all: Vec<&Recipe> = Recipe::builtin().iter().collect();
    all.sort_by_key(|r| at(r));
    all
}

fn fit<'a>(fits: &'a [ModelFit], recipe: &Recipe) -> Option<&'a ModelFit> {
    fits.iter().find(|f| f.recipe.name == recipe.name)
}

fn model_card(
    recipe: &Recipe,
    fits: &[ModelFit],
    imported: &[RecipeName],
    status: &BoxStatus,
) -> Markup {
    let in_use = status.engines.iter().find(|e| e.recipe.as_str() == recipe.name);
    let here = imported.iter().any(|n| n.as_str() == recipe.name);
    card(
        &recipe.title,
        html! {
            div.row {
                @if in_use.is_some() { (badge(Tone::Good, "in use")) }
                @else if here { (badge(Tone::Plain, "imported")) }
                @if recipe.trial { (badge(Tone::Warn, "trial: tiny and often wrong")) }
            }
            @if let Some(about) = &recipe.about { p { (about) } }
            p.soft.small {
                @if let Some(n) = recipe.total_size() { (bytes(n)) " · " }
                @if let Some(licence) = &recipe.licence { (licence) }
                @if let Some(f) = fit(fits, recipe) { br; (frame::sentence(&f.line)) }
            }
            div.row {
                @match in_use {
                    None => (use_button(recipe, here)),
                    Some(engine) => form method="post" action=(format!("/engines/{}/remove", engine.name))
                        data-confirm="Stop serving this model? Its files stay." {
                        button.quiet type="submit" { "Stop serving it" }
                    },
                }
                a.button.quiet href=(format!("/models/{}", recipe.name)) { "More" }
            }
        },
    )
}

fn use_button(recipe: &Recipe, here: bool) -> Markup {
    let fetched = matches!(recipe.source, Source::Web { .. }) && !here;
    html! {
        @if fetched { p.soft.small { "Its files have to be brought in first." } }
        @else {
            form method="post" action=(format!("/models/{}/use", recipe.name)) {
                button type="submit" { @if here { "Use it" } @else { "Import and use it" } }
            }
        }
    }
}
