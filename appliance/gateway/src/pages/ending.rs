//! The end of the collective, or of its having this box: what goes, who agrees, and the record of it.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Disk, EndRecord, EndedBox, Plan, Reply, Request};
use polder_members::{Ending, EndingAsked, MembersError, RecoveryRefused, Secret};
use polder_page::{Choice, Field, Page, StepMark, Tone, banner, facts, field, select, steps, when};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{self, Trouble, answer, nav, plain_nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    models: String,
    /// The box's name, typed.
    #[serde(default)]
    name: String,
    #[serde(default)]
    first: String,
    #[serde(default)]
    second: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said)).await
}

/// The first of two.
pub(super) async fn ask(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    if let Err(why) = named(&gateway, &wish) {
        return wrong(&gateway, &who, StatusCode::BAD_REQUEST, &why).await;
    }
    let (by, keep) = (who.member.id, wish.models == "stay");
    match gateway.members.ask(move |m| m.ask_to_end(by, keep)).await {
        Ok(()) => {
            who.record(&gateway, "asked for the end of", "the box").await;
            Ok(Redirect::to("/collective/end?said=end-asked").into_response())
        }
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

pub(super) async fn take_back(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    gateway.members.ask(move |m| m.take_end_back(by)).await?;
    who.record(&gateway, "took back the end of", "the box").await;
    Ok(Redirect::to("/collective/end?said=end-back").into_response())
}

/// The second of two: it is done.
pub(super) async fn agree(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    if let Err(why) = named(&gateway, &wish) {
        return wrong(&gateway, &who, StatusCode::BAD_REQUEST, &why).await;
    }
    let by = who.member.id;
    match gateway.members.ask(move |m| m.agree_to_end(by)).await {
        Ok(ending) => carry_out(&gateway, &who, ending).await,
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

/// Two recovery sheets, where no two stewards are left.
pub(super) async fn with_sheets(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    if !who.peer.is_local_network() {
        let why = "recovery sheets are taken in the box's own network only; go there with them";
        return wrong(&gateway, &who, StatusCode::FORBIDDEN, why).await;
    }
    if let Err(why) = named(&gateway, &wish) {
        return wrong(&gateway, &who, StatusCode::BAD_REQUEST, &why).await;
    }
    let (first, second) = (Secret::new(wish.first), Secret::new(wish.second));
    let (keep, from) = (wish.models == "stay", who.peer.remote.ip());
    let done = gateway.members.ask(move |m| m.end_with_sheets([&first, &second], keep, from)).await;
    match done {
        Ok(ending) => carry_out(&gateway, &who, ending).await,
        Err(RecoveryRefused::TooMany { seconds }) => {
            let why = format!("too many tries; wait {seconds} seconds");
            wrong(&gateway, &who, StatusCode::TOO_MANY_REQUESTS, &why).await
        }
        Err(RecoveryRefused::Failed(error)) => refused(&gateway, &who, &error).await,
        Err(error) => wrong(&gateway, &who, StatusCode::FORBIDDEN, &error.to_string()).await,
    }
}

/// What is to be done, as a text to keep: before it is agreed to.
pub(super) async fn record_before(
    State(gateway): State<Arc<Gateway>>,
    Steward(_): Steward,
) -> Result<Response, Trouble> {
    let asked = gateway.members.ask(|m| m.ending()).await?;
    let asked = asked.ok_or_else(|| Trouble::not_found("nobody asks for the end of this box"))?;
    let plan = preview(&gateway, asked.keep_models).await?;
    let Reply::AuditHead(audit) = gateway.ask(Request::AuditHead).await? else {
        return Err(Trouble::odd_answer());
    };
    let record = EndRecord {
        name: gateway.status().site.name.to_string(),
        at: "not decided yet: this is how it would be".to_owned(),
        by: vec![asked.by, "(the second one)".to_owned()],
        fingerprint: gateway.ca().fingerprint,
        keep_models: asked.keep_models,
        steps: plan.steps.into_iter().map(|step| step.title).collect(),
        audit,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"end-of-the-box.txt\""),
    ];
    Ok((headers, record.text()).into_response())
}

/// On a box that was ended and is nobody's yet: what was done. For whoever stands at it.
pub(super) async fn ended(State(gateway): State<Arc<Gateway>>) -> Result<Response, Trouble> {
    let claimed = gateway.members.ask(|m| m.is_claimed()).await?;
    let ended = EndedBox::read(&gateway.state).filter(|_| !claimed);
    let ended =
        ended.ok_or_else(|| Trouble::not_found("there is no record of an end on this box"))?;
    let page = Page { title: "This box was ended", narrow: true, ..Page::default() };
    Ok(answer(&page, &plain_nav(&gateway), done(&ended)))
}

async fn carry_out(gateway: &Gateway, who: &SignedIn, ending: Ending) -> Result<Response, Trouble> {
    let question = Request::End {
        keep_models: ending.keep_models,
        by: ending.by,
        fingerprint: gateway.ca().fingerprint,
    };
    let record = match gateway.ask(question).await {
        Ok(Reply::Ended(record)) => *record,
        Ok(_) => return Err(Trouble::odd_answer()),
        Err(error) => {
            return wrong(gateway, who, StatusCode::CONFLICT, &error.to_string()).await;
        }
    };
    // A spare that is there hears it before the box ends; nothing here waits for that.
    if let Err(error) = gateway.members.ask(|m| m.everybody_is_gone()).await {
        log::error!("a spare cannot be told of the end: {error}");
    }
    let body = html! {
        (banner(Tone::Warn, html! { p { "It is decided, and is being carried out now, whatever happens to the power. This page is the only one that shows this record: print or save it at once." } }))
        section.card { pre { (record.text()) } }
        p.soft { "In a minute or two this address shows a new box, under another certificate." }
    };
    let page = Page { title: "The end of this box", ..Page::default() };
    Ok(answer(&page, &plain_nav(gateway), body))
}

/// Whoever ends a box types its name.
fn named(gateway: &Gateway, wish: &Wish) -> Result<(), String> {
    let name = gateway.status().site.name.to_string();
    match wish.name.trim() == name {
        true => Ok(()),
        false => Err(format!("type the box's name, {name}, to show that you mean this one")),
    }
}

async fn preview(gateway: &Gateway, keep_models: bool) -> Result<Plan, Trouble> {
    match gateway.ask(Request::PreviewEnd { keep_models }).await? {
        Reply::Preview { plan, .. } => Ok(plan),
        _ => Err(Trouble::odd_answer()),
    }
}

async fn refused(
    gateway: &Gateway,
    who: &SignedIn,
    error: &MembersError,
) -> Result<Response, Trouble> {
    wrong(gateway, who, frame::members_status(error), &error.to_string()).await
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    status: StatusCode,
    why: &str,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(status, page(gateway, who, top).await?))
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let (asked, sheets) =
        gateway.members.ask(|m| Ok::<_, MembersError>((m.ending()?, m.sheets()?))).await?;
    let keep = asked.as_ref().is_some_and(|asked| asked.keep_models);
    let plan = preview(gateway, keep).await?;
    let disk = match gateway.ask(Request::Disk).await {
        Ok(Reply::Disk(disk)) => disk,
        _ => None,
    };
    let site = gateway.status().site.clone();
    let backups = site.backup.as_ref().map(|backup| backup.to.to_string());
    let marks: Vec<_> = plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect();
    let body = html! {
        (top)
        section.card {
            h2 { "What will be done" }
            div.stack { (steps("What will be done", &marks)) }
        }
        (what_stays(disk.as_ref(), backups.as_deref()))
        section.card {
            h2 { "Before" }
            p { "Each member takes their own data along: " a href="/account/leave" { "download mine" } "." }
        }
        @if who.member.is_steward() { (two_stewards(asked.as_ref(), who, site.name.as_str())) }
        @if !sheets.in_force.is_empty() { (two_sheets(site.name.as_str())) }
    };
    let page = Page {
        title: "The end",
        lead: Some("When the collective ends, or gives this box away."),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/collective/end"), body))
}

/// What nobody should be told otherwise.
fn what_stays(disk: Option<&Disk>, backups: Option<&str>) -> Markup {
    html! {
        section.card {
            h2 { "What this cannot do" }
            ul {
                @match disk {
                    Some(_) => li { "The disk of this box is encrypted with a key of its own. Where the models go too, that key is destroyed, and nothing on the disk can be read again." },
                    None => li { "The disk under this box is its owner's affair. Files are overwritten before they are removed; but a solid-state disk, or a file system that copies, may keep older pieces where no program reaches them. Whoever must be sure destroys the disk, or its own encryption key." },
                }
                @match backups {
                    Some(place) => li { "The backups at " code { (place) } " stay, encrypted. The box forgets their key; whoever has the emergency kit on paper can still open them. Destroy the paper, or the backups." },
                    None => li { "There are no backups that this box knows of. Copies that somebody made by hand stay." },
                }
                li { "A spare box that can be reached in that moment hears of it, and lets none of the members in any more. It is not erased, and neither are the backups on it: end it at its own pages." }
                li { "What members have on their own machines stays there." }
            }
        }
    }
}

fn two_stewards(asked: Option<&EndingAsked>, who: &SignedIn, name: &str) -> Markup {
    let typed = field(&Field {
        name: "name",
        label: "Type the box's name",
        hint: name,
        required: true,
        ..Field::default()
    });
    html! {
        section.card {
            h2 { "Two stewards" }
            @match asked {
                None => {
                    p { "One asks for it, and another one agrees. Every member is told when it is asked for." }
                    form.stack method="post" action="/collective/end/ask" autocomplete="off" {
                        (models_choice())
                        (typed)
                        button.danger type="submit" { "Ask for the end" }
                    }
                }
                Some(asked) => {
                    p { strong { (asked.by) } " asked for it " (when(asked.at, frame::now())) "; the models " @if asked.keep_models { "stay" } @else { "go too" } "." }
                    p { a href="/collective/end/record" { "Download the record as it would be" } }
                    @if asked.member != Some(who.member.id) {
                        form.stack method="post" action="/collective/end/agree" autocomplete="off" {
                            (typed)
                            button.danger type="submit" { "Agree: end this box" }
                        }
                    }
                    form method="post" action="/collective/end/back" { button.quiet type="submit" { "Take it back" } }
                }
            }
        }
    }
}

fn two_sheets(name: &str) -> Markup {
    html! {
        section.card {
            h2 { "Or two recovery sheets" }
            details {
                summary { "Where no two stewards are left" }
                form.stack method="post" action="/collective/end/sheets" autocomplete="off" {
                    (field(&Field { name: "first", label: "One sheet", required: true, ..Field::default() }))
                    (field(&Field { name: "second", label: "Another sheet", required: true, ..Field::default() }))
                    (models_choice())
                    (field(&Field { name: "name", label: "Type the box's name", hint: name, required: true, ..Field::default() }))
                    button.danger type="submit" { "End this box" }
                }
            }
        }
    }
}

fn models_choice() -> Markup {
    select(
        "models",
        "The models",
        "",
        &[
            Choice { value: "go", label: "go too" },
            Choice { value: "stay", label: "stay for whoever has the box next" },
        ],
        "go",
    )
}

fn done(ended: &EndedBox) -> Markup {
    html! {
        @if ended.left.is_empty() {
            (banner(Tone::Good, html! { p { "Nothing of the members of before is left in this box's state. It is a new box." } }))
        } @else {
            (banner(Tone::Bad, html! { p { "Something could not be removed:" } ul { @for left in &ended.left { li { code { (left) } } } } }))
        }
        section.card {
            (facts(&[
                ("Done", html! { (ended.at) }),
                ("Overwritten and removed", html! { (ended.overwritten) " files" }),
                ("Only removed", html! { (ended.removed) " files: models, and what was encrypted with keys that were overwritten" }),
                ("The models", html! { @if ended.keep_models { "stayed" } @else { "went" } }),
                ("How it was verified", html! { "every folder was looked at again afterwards" }),
                ("The disk", html! { (ended.disk.as_deref().unwrap_or("is its owner's affair")) }),
                ("The audit trail ended with", html! { "entry " (ended.audit.number) ", " code { (ended.audit.hash) } }),
                ("SHA-256 of the record on paper", html! { code { (ended.record) } }),
            ]))
        }
        p { a.button href="/setup" { "Set up this box" } }
    }
}
