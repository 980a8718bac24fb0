//! How one model uses the machine's memory, for stewards: the most that it takes, and how it holds conversations.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use maud::{Markup, html};
use polder_control::Request;
use polder_page::{Choice, Field, Page, Tone, banner, field, select, table};
use polder_site::{Budget, BudgetError, Conversations, EngineName, EngineSlot, Site, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, sentence, with_status};
use crate::pages::models;
use crate::pages::who::{SignedIn, Steward};

/// The form, as it was filled in.
#[derive(Deserialize)]
pub(super) struct Wish {
    /// Nothing for what the others leave.
    #[serde(default)]
    memory: String,
    #[serde(default)]
    conversations: String,
}

impl Wish {
    fn of(slot: &EngineSlot) -> Self {
        Self {
            memory: slot.memory.map_or_else(String::new, |budget| budget.to_string()),
            conversations: word(slot.conversations).to_owned(),
        }
    }

    fn applied_to(&self, slot: &EngineSlot) -> Result<EngineSlot, BudgetError> {
        let memory = match self.memory.trim() {
            "" => None,
            text => Some(text.parse::<Budget>()?),
        };
        let conversations = match self.conversations.as_str() {
            "compact" => Conversations::Compact,
            _ => Conversations::Full,
        };
        Ok(EngineSlot { memory, conversations, ..slot.clone() })
    }
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let (name, slot) = find(&gateway, &name)?;
    Ok(page(&gateway, &who, (&name, &slot), &Wish::of(&slot), None))
}

pub(super) async fn save(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let (name, slot) = find(&gateway, &name)?;
    let wrong = |why: &str| {
        let page = page(&gateway, &who, (&name, &slot), &wish, Some(why));
        Ok(with_status(StatusCode::BAD_REQUEST, page))
    };
    let next = match wish.applied_to(&slot) {
        Ok(next) => next,
        Err(why) => return wrong(&why.to_string()),
    };
    let change = SiteChange::Engine { name: name.clone(), slot: next };
    // What does not fit is said beside what was written, and not on a page of its own.
    match gateway.ask(Request::Preview(change.clone())).await {
        Ok(_) => models::accepted(gateway.ask(Request::Apply { change, by: who.actor() }).await?),
        Err(why) => wrong(&why.to_string()),
    }
}

fn find(gateway: &Gateway, name: &str) -> Result<(EngineName, EngineSlot), Trouble> {
    let none = || Trouble::not_found("there is no such engine");
    let name: EngineName = name.parse().map_err(|_| none())?;
    let slot = gateway.status().site.engines.get(&name).cloned().ok_or_else(none)?;
    Ok((name, slot))
}

fn page(
    gateway: &Gateway,
    who: &SignedIn,
    (name, slot): (&EngineName, &EngineSlot),
    wish: &Wish,
    wrong: Option<&str>,
) -> Response {
    let body = html! {
        @if let Some(why) = wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
        section.card {
            form.stack method="post" action=(format!("/engines/{name}/memory")) {
                (field(&Field {
                    name: "memory",
                    label: "It takes at most",
                    hint: "Of the graphics card's memory, or the machine's where there is none: 24 GiB, or 40 %. Nothing for what the others leave.",
                    value: &wish.memory,
                    ..Field::default()
                }))
                (select("conversations", "It holds conversations", "Compact, twice as many or twice as long ones fit, and answers may come out a little otherwise. Only on a graphics card.", &[
                    Choice { value: "full", label: "in full" },
                    Choice { value: "compact", label: "compact" },
                ], &wish.conversations))
                button type="submit" { "Save, and start it again" }
            }
        }
    };
    let title = format!("Memory of {}", models::title(&slot.recipe));
    let page = Page { title: &title, narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/models"), body)
}

/// What all of them have of the memory, on the page of models.
pub(super) fn section(site: &Site) -> Markup {
    let rows: Vec<Vec<Markup>> = site
        .engines
        .iter()
        .map(|(name, slot)| {
            vec![
                html! { strong { (models::title(&slot.recipe)) } " " span.soft { "in slot " code { (name) } } },
                html! { @match slot.memory {
                    Some(budget) => { "at most " (budget) },
                    None if site.engines.len() == 1 => "what is free",
                    None => "its share of what is left",
                } },
                html! { (match slot.conversations { Conversations::Full => "in full", Conversations::Compact => "compact" }) },
                html! { a href=(format!("/engines/{name}")) { "Change" } },
            ]
        })
        .collect();
    html! {
        @if !rows.is_empty() {
            section.card {
                h2 { "How the models share the memory" }
                (table("How the models share the memory", &["Model", "Takes", "Conversations", ""], &rows))
            }
        }
    }
}

fn word(conversations: Conversations) -> &'static str {
    match conversations {
        Conversations::Full => "full",
        Conversations::Compact => "compact",
    }
}
