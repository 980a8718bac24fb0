//! Beside the steps: this machine becomes a box that there was before. Nothing is noted here: if it goes well, the wizard's notes are exchanged
//! with everything else.

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{KitWords, Run, RunState};
use polder_page::{Field, card, field};
use polder_site::{BackupPlace, BackupPlaceError};
use serde::Deserialize;

use crate::host::{Host, SetupError};
use crate::import::moving;
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, refuse};
use crate::wizard::Step;

/// Where the form is, and where it shows how far the restore is.
pub(crate) const PATH: &str = "/setup/restore";
pub(crate) const GOING: &str = "/setup/restore/going";

#[derive(Deserialize)]
pub(crate) struct Typed {
    #[serde(default)]
    from: String,
    #[serde(default)]
    key: String,
}

/// The form.
pub(crate) async fn show<H: Host>(State(_): State<Setup<H>>, who: Claimer) -> Response {
    page(&who, form("", html! {})).into_response()
}

/// Begins, if the place is there and the key opens it.
pub(crate) async fn begin<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(typed): Form<Typed>,
) -> Response {
    let from = typed.from.trim();
    let wrong = |why: &str| {
        let body = form(from, page::error(why));
        (StatusCode::BAD_REQUEST, page(&who, body)).into_response()
    };
    let place: BackupPlace = match from.parse() {
        Ok(place) => place,
        Err(error) => {
            let error: BackupPlaceError = error;
            return wrong(&error.to_string());
        }
    };
    match setup.host().restore(place, KitWords(typed.key)).await {
        Ok(_) => axum::response::Redirect::to(GOING).into_response(),
        Err(SetupError::Refused(why)) => wrong(&why),
        Err(error) => refuse(error),
    }
}

/// How far it is. When it is done, this box is another one, which leads to its own first page.
pub(crate) async fn going<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    let runs = match setup.host().runs().await {
        Ok(runs) => runs,
        Err(error) => return refuse(error),
    };
    let ours = |run: &&Run| run.plan.steps.iter().any(|step| step.id == "put-in-place");
    match runs.iter().find(ours) {
        Some(run) => match &run.state {
            RunState::Failed(why) => page(&who, form("", page::error(why))).into_response(),
            RunState::Cancelled => {
                page(&who, form("", page::error("it was stopped"))).into_response()
            }
            RunState::Running | RunState::Done => {
                page(&who, under_way(run)).reload(2).into_response()
            }
        },
        None => page(&who, form("", html! {})).into_response(),
    }
}

fn page(who: &Claimer, body: Markup) -> Page {
    Page::beside(Step::Machine, "Restore a box from its backups")
        .notice(who.notice.as_deref())
        .body(body)
}

fn form(from: &str, top: Markup) -> Markup {
    html! {
        (top)
        p { "With the backups of a box and its emergency kit, this machine becomes that box: same members, same keys, same name, same certificate authority. Members notice nothing. Its models are fetched again." }
        form.stack method="post" action=(PATH) autocomplete="off" {
            (field(&Field { name: "from", label: "Where the backups are", hint: "as it is on the kit: a folder, disk:LABEL, or rest:https://…", value: from, required: true, ..Field::default() }))
            (field(&Field { name: "key", label: "The key from the emergency kit", hint: "nine groups of four letters", required: true, ..Field::default() }))
            button type="submit" { "Restore it" }
        }
        p { a href=(Step::Machine.path()) { "No, set up a new box" } }
    }
}

fn under_way(run: &Run) -> Markup {
    html! {
        (card("It is being restored", moving(run)))
        p { "When it is done, this machine answers as the restored box, under that box's name and certificate: your browser may warn you once, or lose this page. Sign in there as you always did." }
        p { "Passwords are those of the day of the backup: whoever changed theirs since signs in with the former one, and should change it again at once, above all if somebody else knew it. Everybody reads this on their first page." }
    }
}
