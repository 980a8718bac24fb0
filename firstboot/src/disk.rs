//! Step 2, on a machine that keeps its disk shut itself: what opens it. The box knows what was decided, so that
//! nothing is noted here.

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{Disk, Lock, RecoveryKey};
use polder_page::{Field, copyable, field};
use serde::Deserialize;

use crate::host::{Host, SetupError};
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step};

/// Where the page is.
pub(crate) const PATH: &str = "/setup/disk";
/// Where its answers go.
pub(crate) const SEAL: &str = "/setup/disk/seal";
pub(crate) const CONFIRM: &str = "/setup/disk/confirm";
pub(crate) const LEAVE: &str = "/setup/disk/leave";

#[derive(Deserialize)]
pub(crate) struct Typed {
    #[serde(default)]
    key: String,
}

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match setup.host().disk().await {
        Ok(Some(disk)) => page(&who, decide(&disk)).into_response(),
        Ok(None) => go(Step::Machine),
        Err(error) => refuse(error),
    }
}

/// Makes a recovery key, and shows it: the only time.
pub(crate) async fn seal<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match setup.host().seal().await {
        Ok(key) => page(&who, write_it_down(&key)).into_response(),
        Err(error) => wrong(&setup, &who, error).await,
    }
}

/// The key was written down: the disk is shut for everybody else.
pub(crate) async fn confirm<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(typed): Form<Typed>,
) -> Response {
    let Some(key) = RecoveryKey::typed(&typed.key) else {
        let why = "that is no recovery key: it has eight words of eight letters; type it once more as you wrote it down";
        return (StatusCode::BAD_REQUEST, page(&who, again(&typed.key, why))).into_response();
    };
    match setup.host().confirm_seal(key).await {
        Ok(()) => on(&setup).await,
        Err(SetupError::Refused(why)) => {
            (StatusCode::BAD_REQUEST, page(&who, again(&typed.key, &why))).into_response()
        }
        Err(error) => refuse(error),
    }
}

/// It stays as it is.
pub(crate) async fn leave<H: Host>(State(setup): State<Setup<H>>, _who: Claimer) -> Response {
    match setup.host().disk().await {
        Ok(Some(Disk { lock: Lock::Open, .. })) => {
            if let Err(error) = setup.host().leave_disk_open().await {
                return refuse(error);
            }
        }
        Ok(_) => {}
        Err(error) => return refuse(error),
    }
    on(&setup).await
}

async fn on<H: Host>(setup: &Setup<H>) -> Response {
    match setup.happen(Event::MachineSeen).await {
        Ok(_) => go(Step::Model),
        Err(error) => refuse(error),
    }
}

async fn wrong<H: Host>(setup: &Setup<H>, who: &Claimer, error: SetupError) -> Response {
    let status = refuse(error.clone()).status();
    match setup.host().disk().await {
        Ok(Some(disk)) => {
            let body = html! { (page::error(&error.to_string())) (decide(&disk)) };
            (status, page(who, body)).into_response()
        }
        _ => refuse(error),
    }
}

fn page(who: &Claimer, body: Markup) -> Page {
    Page::beside(Step::Machine, "What opens the disk").notice(who.notice.as_deref()).body(body)
}

fn decide(disk: &Disk) -> Markup {
    let button = |to: &str, words: &str| {
        html! { form method="post" action=(to) { button type="submit" { (words) } } }
    };
    html! {
        p { (disk.protects()) }
        @if disk.lock == Lock::Sealed {
            p .soft { "The recovery key is with whoever sealed it. A reset at the machine's own screen makes everything anew, also the key." }
            (button(LEAVE, "Go on: choose a model"))
        } @else {
            @if disk.chip {
                section .card {
                    h2 { "Seal it to this machine" }
                    p { "The box still starts by itself. You get a recovery key, for the day when the machine is repaired, its firmware changed, or the disk put into another one." }
                    @if let Some(lacks) = disk.lacks() { p { strong { "What it does not do: " } (lacks) } }
                    (button(SEAL, "Seal the disk"))
                }
            } @else if let Some(lacks) = disk.lacks() {
                p { strong { "It cannot be sealed. " } (lacks) }
            }
            section .card {
                h2 { "Leave it open" }
                p { "The disk starts in any machine and needs no key. Whoever takes it reads everything on it: keys, names, models." }
                (button(LEAVE, "Leave it open"))
            }
        }
    }
}

fn write_it_down(key: &RecoveryKey) -> Markup {
    html! {
        section .card {
            h2 { "The recovery key" }
            p { "Write it down on paper and keep it where the box is not. It is shown only now; whoever has it can open the disk, and without it nobody can when the machine does not." }
            div .groups { (copyable("recovery-key", "The recovery key", html! { @for group in key.expose().split_inclusive('-') { span { (group) } } })) }
        }
        (typed("", None))
    }
}

fn again(before: &str, why: &str) -> Markup {
    html! {
        (page::error(why))
        (typed(before, Some("The key is not shown again. If it is lost, go back to the disk's page and have a new one made.")))
        p { a href=(PATH) { "Back to the disk's page" } }
    }
}

fn typed(before: &str, hint: Option<&'static str>) -> Markup {
    let key = Field {
        name: "key",
        label: "The recovery key, as you wrote it down",
        value: before,
        hint: hint.unwrap_or("Read it from your paper, so that you know it can be read."),
        required: true,
        ..Field::default()
    };
    html! {
        form .card method="post" action=(CONFIRM) {
            (field(&key))
            p .hint { "From then on the disk opens in this machine, or with this key, and not otherwise." }
            button type="submit" { "I have it: seal the disk" }
        }
    }
}
