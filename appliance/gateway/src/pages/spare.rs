//! The other box: being a spare, having one, how the two are to each other; for stewards.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_backup::Unpaired;
use polder_control::{
    Client, Plan, Reply, Request, SecretText, Sockets, SparePeer, SpareReply, SpareRequest,
    SpareStatus,
};
use polder_page::{
    Field, Page, StepMark, Tone, badge, banner, bytes, facts, field, hidden, steps, when,
};
use polder_site::{BackupPlace, SiteChange, Spare, SpareRole};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, nav, now, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

/// The part answers at once, or a page is shown without it.
const SOON: Duration = Duration::from_secs(2);
/// Telling the other box may take as long as it takes to find out that it is away.
const PATIENT: Duration = Duration::from_secs(15);

/// The form of a main box.
#[derive(Deserialize, Default)]
pub(super) struct Pairing {
    #[serde(default)]
    address: String,
    #[serde(default)]
    code: String,
}

/// The form of a spare.
#[derive(Deserialize, Default)]
pub(super) struct Being {
    #[serde(default)]
    disk_percent: String,
    #[serde(default)]
    port: String,
    /// The person has seen the steps.
    #[serde(default)]
    seen: String,
}

/// The form to end it.
#[derive(Deserialize, Default)]
pub(super) struct Ending {
    #[serde(default)]
    seen: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Response {
    page(&gateway, &who, frame::said(&said.said), &Pairing::default()).await
}

/// On a main box: the spare's address and its code were typed.
pub(super) async fn pair(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Pairing>,
) -> Result<Response, Trouble> {
    let (address, code) = (form.address.trim().to_owned(), SecretText::new(&form.code));
    match gateway.ask(Request::PairSpare { address, code, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => Ok(wrong(&gateway, &who, &why.to_string(), &form).await),
    }
}

/// This box becomes a spare: first the steps are shown, then they are done.
pub(super) async fn be(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Being>,
) -> Result<Response, Trouble> {
    let spare = match read(&form) {
        Ok(spare) => spare,
        Err(why) => return Ok(wrong(&gateway, &who, &why, &Pairing::default()).await),
    };
    let fields =
        [("disk_percent", spare.disk_percent.to_string()), ("port", spare.port.to_string())];
    change(&gateway, &who, SiteChange::Spare(spare), "/spare/be", &fields, &form.seen).await
}

/// No spare any more, on either side.
pub(super) async fn none(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(form): Form<Ending>,
) -> Result<Response, Trouble> {
    change(&gateway, &who, SiteChange::RemoveSpare, "/spare/none", &[], &form.seen).await
}

/// On a spare: the code, shown once. A POST, so that no address and no history leads to it.
pub(super) async fn code(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    record(&gateway, &who, "shows a code for a main box to pair with").await?;
    match ask(&gateway, &SpareRequest::ShowCode, SOON).await {
        Ok(SpareReply::Code { code, seconds }) => {
            let status = status(&gateway).await.ok().unwrap_or_default();
            let body = shown_code(&code, seconds, &status);
            let page = Page { title: "Pair with a main box", narrow: true, ..Page::default() };
            Ok(answer(&page, &nav(&gateway, &who.member, "/spare"), body))
        }
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => Ok(wrong(&gateway, &who, &why, &Pairing::default()).await),
    }
}

pub(super) async fn hide(gateway: State<Arc<Gateway>>, who: Steward) -> Result<Response, Trouble> {
    tell(&gateway, &who.0, SpareRequest::HideCode, "hid the code for pairing", "spare-hidden").await
}

/// On a spare: forget the main box and stay a spare.
pub(super) async fn unpair(
    gateway: State<Arc<Gateway>>,
    who: Steward,
) -> Result<Response, Trouble> {
    tell(
        &gateway,
        &who.0,
        SpareRequest::Unpair,
        "ended the pairing with the main box",
        "spare-unpaired",
    )
    .await
}

/// On a spare: backups of boxes that are not paired with it.
pub(super) async fn remove_old(
    gateway: State<Arc<Gateway>>,
    who: Steward,
) -> Result<Response, Trouble> {
    tell(
        &gateway,
        &who.0,
        SpareRequest::RemoveOld,
        "removed the backups of former main boxes",
        "spare-removed",
    )
    .await
}

async fn tell(
    gateway: &Gateway,
    who: &SignedIn,
    request: SpareRequest,
    what: &str,
    said: &str,
) -> Result<Response, Trouble> {
    record(gateway, who, what).await?;
    match ask(gateway, &request, PATIENT).await {
        Ok(_) => Ok(Redirect::to(&format!("/spare?said={said}")).into_response()),
        Err(why) => Ok(wrong(gateway, who, &why, &Pairing::default()).await),
    }
}

async fn record(gateway: &Gateway, who: &SignedIn, what: &str) -> Result<(), Trouble> {
    let (what, on) = (what.to_owned(), "(spare)".to_owned());
    gateway.ask(Request::Record { by: who.actor(), what, on }).await.map(drop).map_err(Into::into)
}

async fn change(
    gateway: &Gateway,
    who: &SignedIn,
    change: SiteChange,
    action: &str,
    fields: &[(&str, String)],
    seen: &str,
) -> Result<Response, Trouble> {
    if seen.is_empty() {
        return match gateway.ask(Request::Preview(change)).await {
            Ok(Reply::Preview { plan, .. }) => Ok(about_to(gateway, who, &plan, action, fields)),
            Ok(_) => Err(Trouble::odd_answer()),
            Err(why) => Ok(wrong(gateway, who, &why.to_string(), &Pairing::default()).await),
        };
    }
    match gateway.ask(Request::Apply { change, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => Ok(wrong(gateway, who, &why.to_string(), &Pairing::default()).await),
    }
}

fn read(form: &Being) -> Result<Spare, String> {
    let mut spare = Spare::of(SpareRole::ForAnother);
    let number = |typed: &str, what: &str| {
        typed.trim().parse().map_err(|_| format!("{what} is a whole number"))
    };
    if !form.disk_percent.trim().is_empty() {
        let percent: u16 = number(&form.disk_percent, "the part of the disk")?;
        spare.disk_percent = u8::try_from(percent).unwrap_or(u8::MAX);
    }
    if !form.port.trim().is_empty() {
        spare.port = number(&form.port, "the port")?;
    }
    Ok(spare)
}

async fn wrong(gateway: &Gateway, who: &SignedIn, why: &str, form: &Pairing) -> Response {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, form).await)
}

async fn ask(
    gateway: &Gateway,
    request: &SpareRequest,
    patience: Duration,
) -> Result<SpareReply, String> {
    let asked = async {
        let path = Sockets::of(&gateway.state).spare();
        let mut part: Client<SpareRequest, SpareReply> = Client::connect(&path).await?;
        part.ask_within(patience, request).await
    };
    match asked.await {
        Ok(SpareReply::Refused(why)) => Err(why),
        Ok(reply) => Ok(reply),
        Err(error) => Err(format!("the link to the other box is not up: {error}")),
    }
}

async fn status(gateway: &Gateway) -> Result<SpareStatus, String> {
    match ask(gateway, &SpareRequest::Status, SOON).await? {
        SpareReply::Status(status) => Ok(*status),
        _ => Err("the link to the other box answered something else than was asked".to_owned()),
    }
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup, form: &Pairing) -> Response {
    let spare = gateway.status().site.spare;
    let body = match spare {
        None => {
            let lost = Unpaired::noted(&gateway.state).map(Unpaired::sentence);
            html! {
                (top)
                @if let Some(lost) = lost { (banner(Tone::Warn, html! { p { (lost) } })) }
                (have_one(form)) (be_one(None))
            }
        }
        Some(spare) => match status(gateway).await {
            Ok(status) => {
                let backup = gateway.status().site.backup.clone();
                let there = backup.is_some_and(|backup| backup.to == BackupPlace::Spare);
                html! { (top) (two(&status, there, form)) p { a href="/spare/takeover" { "Which of the two serves: take over, give back, send models" } } @if status.is_spare { (be_one(Some(spare))) } (end(&status)) }
            }
            Err(why) => html! {
                (top)
                (banner(Tone::Bad, html! { p { (sentence(&why)) } }))
                (end(&SpareStatus { is_spare: spare.role == SpareRole::ForAnother, ..SpareStatus::default() }))
            },
        },
    };
    let page = Page {
        title: "Spare",
        lead: Some(
            "A second box that keeps what is precious of this one, and can go on in its place when this one breaks.",
        ),
        narrow: true,
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/spare"), body)
}

fn have_one(form: &Pairing) -> Markup {
    html! {
        section.card {
            h2 { "Have a spare" }
            p { "On the other box, which has stewards of its own, open this same page and let it be the spare of another box. It then shows a code, such as " code { "4821-otter-lamp" } ". Type the code here, within ten minutes." }
            form.stack method="post" action="/spare/pair" autocomplete="off" {
                div.fields {
                    (field(&Field { name: "address", label: "Where the spare is", hint: "Its name or address on the local network, such as ash.local or 192.168.1.20", value: &form.address, required: true, ..Field::default() }))
                    (field(&Field { name: "code", label: "The code that it shows", hint: "Four digits and two words", required: true, ..Field::default() }))
                }
                button type="submit" { "Pair the two boxes" }
            }
            (steps("What happens then", &[
                (StepMark::Later, "Both boxes prove to each other that the same code was typed, and remember each other's certificate"),
                (StepMark::Later, "The spare gets the key to this box's backups, to restore one for a trial every week"),
                (StepMark::Later, "Write down that this box has a spare"),
                (StepMark::Later, "Keep in touch with the spare"),
            ]))
        }
    }
}

fn be_one(now: Option<Spare>) -> Markup {
    let spare = now.unwrap_or(Spare::of(SpareRole::ForAnother));
    let (percent, port) = (spare.disk_percent.to_string(), spare.port.to_string());
    html! {
        section.card {
            h2 { @if now.is_some() { "What this box gives" } @else { "Be the spare of another box" } }
            @if now.is_none() {
                p { "This box goes on as it is, with its own members. Beside that it keeps another box's backups, which that box cannot remove, and can become that box when somebody says so." }
            }
            form.stack method="post" action="/spare/be" {
                div.fields {
                    (field(&Field { name: "disk_percent", label: "At most so much of the disk", hint: "In percent, 1 to 90", value: &percent, ..Field::default() }))
                    (field(&Field { name: "port", label: "Port", hint: "Where the main box finds it", value: &port, ..Field::default() }))
                }
                button.quiet[now.is_some()] type="submit" { "See what would be done" }
            }
        }
    }
}

/// How the two boxes are to each other.
fn two(status: &SpareStatus, backups_there: bool, form: &Pairing) -> Markup {
    html! {
        (wrongs(status))
        @match &status.peer {
            Some(peer) => {
                section.card {
                    div.row.spread {
                        h2 { @if status.is_spare { "The main box" } @else { "The spare" } }
                        (heard(status))
                    }
                    (figures(status, peer))
                    @if !status.is_spare && !backups_there {
                        form method="post" action="/backup/to" {
                            (hidden("to", "spare"))
                            button type="submit" { "Send backups there" }
                        }
                    }
                    @if status.is_spare {
                        form method="post" action="/spare/unpair" { button.quiet type="submit" { "Forget this main box" } }
                        p.soft.small { "Its backups stay on this box's disk; nobody can be let in with what it knows of this one." }
                    }
                }
            }
            None if status.is_spare => (ready(status)),
            None => (have_one(form)),
        }
        @if !status.formers.is_empty() || status.formers_aside.is_some() {
            section.card {
                h2 { "Machines that are out for good" }
                @if let Some(path) = &status.formers_aside {
                    (banner(Tone::Warn, html! { p { "The list of them could not be read and was set aside, as " code { (path) } ". Those that are named here are still told. One that only that list knew cannot hear that it is out: if it ever comes back it waits and serves nothing. Never say " code { "polder spare serve-anyway" } " at such a machine." } }))
                }
                ul { @for (name, at) in &status.formers { li { "The former machine of " b { (name) } ", since " (when(*at, now())) } } }
                p.soft { "This box is in their place. If one of them ever comes back it hears so here, and serves nothing." }
            }
        }
        @if status.old > 0 {
            section.card {
                h2 { "Backups of former main boxes" }
                p { (bytes(status.old)) " on this box's disk. Nobody sends to them any more." }
                form method="post" action="/spare/remove-old" { button.quiet type="submit" { "Remove them for good" } }
            }
        }
    }
}

/// A spare that nobody has paired with yet.
fn ready(status: &SpareStatus) -> Markup {
    html! {
        section.card {
            h2 { "Nobody has paired with this box yet" }
            @match status.code {
                Some(seconds) => {
                    p { "A code is being shown, for another " (seconds / 60 + 1) " minutes at most." }
                    form method="post" action="/spare/hide" { button.quiet type="submit" { "Let it be good no more" } }
                }
                None => p { "Show a code here, and type it on the main box, on its page Spare. It is good for ten minutes and three tries." },
            }
            form method="post" action="/spare/code" { button type="submit" { "Show a code" } }
            @if !status.tries.is_empty() {
                h3 { "Tries that failed" }
                ul { @for failed in &status.tries { li { (failed) } } }
            }
        }
    }
}

fn shown_code(code: &str, seconds: u64, status: &SpareStatus) -> Markup {
    html! {
        section.card {
            h2 { "Type this on the main box" }
            p.big { code #pairing-code { (code) } }
            p { "On the main box's page Spare, with this box's address and port " code { (status.port) } ". The code is good for " (seconds / 60) " minutes and three tries; it is shown this once." }
            p { "When the two are paired, the main box shows this box's fingerprint: " code { (status.own) } }
            p { a href="/spare" { "Go on when it is typed" } }
        }
    }
}

fn heard(status: &SpareStatus) -> Markup {
    match status.silent {
        Some(..60) => badge(Tone::Good, "in touch"),
        _ => badge(Tone::Warn, "silent"),
    }
}

fn figures(status: &SpareStatus, peer: &SparePeer) -> Markup {
    let at = now();
    let silent = match status.silent {
        None => "never yet".to_owned(),
        Some(..60) => "just now".to_owned(),
        Some(seconds) => format!("{} minutes ago", seconds / 60),
    };
    let gone = match (status.revoked, status.confirmed) {
        (Some(all), confirmed) if confirmed < all => {
            format!("{confirmed} of {all} are on the spare")
        }
        (_, confirmed) => format!("all {confirmed} are on the spare"),
    };
    facts(&[
        (
            "Called",
            html! { (peer.name) @if let Some(address) = &peer.address { ", at " code { (address) } } },
        ),
        ("Its fingerprint", html! { code { (peer.fingerprint) } }),
        ("This box's own", html! { code { (status.own) } }),
        (
            "Paired",
            html! { (when(peer.paired_at, at)) @if !peer.settled { ", and it has not come back yet" } },
        ),
        ("Last heard", html! { (silent) }),
        (
            "Last backup",
            html! { @match status.backup { Some(time) => (when(time, at)), None => "none yet" } },
        ),
        (
            "Last trial restore on the spare",
            html! { @match &status.drill {
                Some((time, Ok(found))) => { (when(*time, at)) ": " (found) },
                Some((time, Err(why))) => { (when(*time, at)) ", not good: " (why) },
                None => "none yet; there is one a week, and the first after the first backup",
            } },
        ),
        ("Revoked keys and removed members", html! { (gone) }),
        (
            "Room for backups",
            html! { @match status.room {
                Some((used, most, free)) => { (bytes(used)) " of at most " (bytes(most)) "; " (bytes(free)) " free" },
                None => "not known",
            } },
        ),
    ])
}

fn wrongs(status: &SpareStatus) -> Markup {
    let wrong = status.wrong();
    html! {
        @if !wrong.is_empty() {
            (banner(Tone::Warn, html! { @for why in &wrong { p { (sentence(why)) } } }))
        }
    }
}

fn end(status: &SpareStatus) -> Markup {
    html! {
        section.card {
            h2 { @if status.is_spare { "Be no spare any more" } @else { "Have no spare any more" } }
            p { "The two boxes forget each other. Backups that are on the spare stay there until somebody removes them there." }
            form method="post" action="/spare/none" { button.quiet type="submit" { "See what would be done" } }
        }
    }
}

/// On the dashboard, where the site names another box.
pub(super) async fn card(gateway: &Gateway) -> Markup {
    if gateway.status().site.spare.is_none() {
        return html! {};
    }
    let status = status(gateway).await;
    html! {
        section.card {
            div.row.spread {
                h2 { "Spare" }
                @if let Ok(status) = &status { @if status.peer.is_some() { (heard(status)) } }
            }
            @match &status {
                Ok(status) => {
                    (wrongs(status))
                    @match &status.peer {
                        Some(peer) if status.is_spare => p { "This box is the spare of " b { (peer.name) } "." },
                        Some(peer) => p { "The spare is " b { (peer.name) } "." },
                        None => p { "It is paired with no other box yet." },
                    }
                }
                Err(why) => (banner(Tone::Warn, html! { p { (sentence(why)) } })),
            }
            p.soft.small { a href="/spare" { "Look after the spare" } }
        }
    }
}

fn about_to(
    gateway: &Gateway,
    who: &SignedIn,
    plan: &Plan,
    action: &str,
    fields: &[(&str, String)],
) -> Response {
    let body = html! {
        section.card {
            h2 { (plan.title) }
            @if plan.steps.is_empty() { p { "It is so already." } }
            @else {
                div.stack { (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>())) }
                form method="post" action=(action) {
                    @for (name, value) in fields { (hidden(name, value)) }
                    (hidden("seen", "yes"))
                    button type="submit" { "Do it" }
                }
            }
            p { a href="/spare" { "Back" } }
        }
    };
    let page = Page { title: "Spare", narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/spare"), body)
}
