//! Beside the steps: this machine becomes a box that there was before. Nothing is noted here: if it goes well, the wizard's notes are exchanged
//! with everything else.

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{KitWords, PluggedDisk, Run, RunState};
use polder_page::{Field, bytes, card, field};
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
    /// One of the disks that are plugged in.
    #[serde(default)]
    disk: String,
    /// Somewhere else, which goes before.
    #[serde(default)]
    from: String,
    #[serde(default)]
    key: String,
}

/// The form.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    page(&who, form(&plugged(&setup).await, "", html! {})).into_response()
}

/// What can be chosen; a list that cannot be had is no reason not to type a place.
async fn plugged<H: Host>(setup: &Setup<H>) -> Vec<PluggedDisk> {
    setup.host().plugged().await.unwrap_or_default()
}

/// Begins, if the place is there and the key opens it.
pub(crate) async fn begin<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(typed): Form<Typed>,
) -> Response {
    let from = match typed.from.trim() {
        "" => typed.disk.trim(),
        from => from,
    };
    let disks = plugged(&setup).await;
    let wrong = |why: &str| {
        let body = form(&disks, from, page::error(why));
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
            RunState::Failed(why) => {
                let body = form(&plugged(&setup).await, "", page::error(why));
                page(&who, body).into_response()
            }
            RunState::Cancelled => {
                let body = form(&plugged(&setup).await, "", page::error("it was stopped"));
                page(&who, body).into_response()
            }
            RunState::Running | RunState::Done => {
                page(&who, under_way(run)).reload(2).into_response()
            }
        },
        None => page(&who, form(&plugged(&setup).await, "", html! {})).into_response(),
    }
}

fn page(who: &Claimer, body: Markup) -> Page {
    Page::beside(Step::Machine, "Restore a box from its backups")
        .notice(who.notice.as_deref())
        .body(body)
}

fn form(disks: &[PluggedDisk], from: &str, top: Markup) -> Markup {
    // Also one that backups could not be written to may have some.
    let disks: Vec<_> =
        disks.iter().filter_map(|disk| Some((disk.place.as_deref()?, disk))).collect();
    let chosen = disks.iter().map(|(place, _)| *place).find(|place| *place == from);
    let typed = if chosen.is_some() { "" } else { from };
    html! {
        (top)
        p { "With the backups of a box and its emergency kit, this machine becomes that box: same members, same keys, same name, same certificate authority. Members notice nothing. Its models are fetched again." }
        form.stack method="post" action=(PATH) autocomplete="off" {
            @if !disks.is_empty() {
                fieldset {
                    legend { "On a disk that is plugged in" }
                    @for (n, (place, disk)) in disks.iter().enumerate() {
                        div .field.tick {
                            input type="radio" name="disk" id=(format!("disk-{n}")) value=(place) checked[chosen == Some(*place)];
                            label for=(format!("disk-{n}")) { (disk.title()) }
                            div .hint { (disk.name) ", " (bytes(disk.bytes)) ", " (disk.kind) }
                        }
                    }
                }
            }
            (field(&Field { name: "from", label: if disks.is_empty() { "Where the backups are" } else { "Or somewhere else" }, hint: "as it is on the kit: a folder, disk:LABEL, or rest:https://…", value: typed, required: disks.is_empty(), ..Field::default() }))
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
