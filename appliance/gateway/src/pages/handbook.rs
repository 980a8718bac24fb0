//! The handbook: for everybody, signed in or not. Who cannot sign in needs it most.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use maud::{Markup, PreEscaped, html};
use polder_handbook::{Chapter, chapter, chapters};
use polder_page::{Nav, Page};

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, plain_nav};
use crate::pages::who::Caller;

/// The chapters there are.
pub(super) async fn contents(State(gateway): State<Arc<Gateway>>, caller: Caller) -> Response {
    let body = html! {
        section.card {
            ol { @for chapter in chapters() {
                li { a href=(path(chapter)) { (chapter.title) } " " span.soft { (chapter.lead) } }
            } }
        }
    };
    let lead = "How to live with this box, for everybody who uses it.";
    let page = Page { title: "Handbook", lead: Some(lead), narrow: true, ..Page::default() };
    answer(&page, &above(&gateway, &caller).await, body)
}

/// One chapter.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Response, Trouble> {
    let here = chapter(&slug)
        .ok_or_else(|| Trouble::not_found("the handbook has no such chapter; look at /handbook"))?;
    let body = html! {
        // Ours, compiled in, and without anything that a page may not have.
        section.card { article.markdown { (PreEscaped(&here.html)) } }
        (onwards(here))
    };
    let page = Page { title: here.title, lead: Some(here.lead), narrow: true, ..Page::default() };
    Ok(answer(&page, &above(&gateway, &caller).await, body))
}

fn onwards(here: &Chapter) -> Markup {
    let next = chapters().iter().skip_while(|chapter| chapter.slug != here.slug).nth(1);
    html! {
        p {
            a href="/handbook" { "All chapters" }
            @if let Some(next) = next { " · Next: " a href=(path(next)) { (next.title) } }
        }
    }
}

fn path(chapter: &Chapter) -> String {
    format!("/handbook/{}", chapter.slug)
}

/// A member keeps their way around; a stranger sees the box's name.
async fn above(gateway: &Gateway, caller: &Caller) -> Nav {
    let member = match caller.token.clone() {
        Some(token) => gateway.members.ask(move |members| members.session(token.expose())).await,
        None => Ok(None),
    };
    match member {
        Ok(Some(member)) => nav(gateway, &member, "/handbook"),
        // The handbook is there also when the members' book is not.
        _ => plain_nav(gateway),
    }
}
