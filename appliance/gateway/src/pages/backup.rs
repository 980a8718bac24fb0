//! Backups: whether they are made, where to, and the sheet of paper that opens them; for stewards.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_backup::{Kit, KitKey};
use polder_control::{BackupStatus, BackupWish, KitWords, Plan, PluggedDisk, Reply, Request};
use polder_page::{
    Field, Page, StepMark, Tone, badge, banner, bytes, facts, field, hidden, steps, when,
};
use polder_site::{Backup, BackupPlace, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, now, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

/// The form for a place, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    to: String,
    #[serde(default)]
    limit_kib: String,
    /// The person has seen the steps.
    #[serde(default)]
    seen: String,
}

/// The key, as it was typed back.
#[derive(Deserialize)]
pub(super) struct Typed {
    #[serde(default)]
    key: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said), &Wish::default()).await
}

/// The sheet, to be printed. A POST, so that no address and no history leads to it.
pub(super) async fn kit(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let Reply::Kit(words) = gateway.ask(Request::BackupKit { by: who.actor() }).await? else {
        return Err(Trouble::odd_answer());
    };
    let key = KitKey::typed(&words.0).map_err(|_| Trouble::odd_answer())?;
    let site = gateway.status().site.clone();
    let kit = Kit {
        name: site.name.to_string(),
        place: site.backup.map(|backup| backup.to.to_string()),
        fingerprint: gateway.ca().fingerprint,
        key,
    };
    let page = Page { title: "Emergency kit", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(&gateway, &who.member, "/backup"), sheet(&kit)))
}

/// The key was typed back from the paper.
pub(super) async fn confirm(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Typed { key }): Form<Typed>,
) -> Result<Response, Trouble> {
    match gateway.ask(Request::ConfirmKit { key: KitWords(key), by: who.actor() }).await {
        Ok(_) => Ok(Redirect::to("/backup?said=kit").into_response()),
        Err(why) => wrong(&gateway, &who, &why.to_string(), &Wish::default()).await,
    }
}

/// Sets where backups go: first the steps are shown, then they are done. An empty place means nowhere.
pub(super) async fn to(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    if wish.to.trim().is_empty() {
        change_site(&gateway, &who, SiteChange::RemoveBackup).await?;
        return Ok(Redirect::to("/backup?said=no-backup").into_response());
    }
    let before = gateway.status().site.backup.clone();
    let change = match read(&wish, before) {
        Ok(backup) => SiteChange::Backup(backup),
        Err(why) => return wrong(&gateway, &who, &why, &wish).await,
    };
    if wish.seen.is_empty() {
        return match gateway.ask(Request::Preview(change)).await {
            Ok(Reply::Preview { plan, .. }) => Ok(about_to(&gateway, &who, &plan, &wish)),
            Ok(_) => Err(Trouble::odd_answer()),
            Err(why) => wrong(&gateway, &who, &why.to_string(), &wish).await,
        };
    }
    match gateway.ask(Request::Apply { change, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => wrong(&gateway, &who, &why.to_string(), &wish).await,
    }
}

pub(super) async fn back_up(
    gateway: State<Arc<Gateway>>,
    who: Steward,
) -> Result<Response, Trouble> {
    run(&gateway, &who.0, BackupWish::Now).await
}

pub(super) async fn drill(gateway: State<Arc<Gateway>>, who: Steward) -> Result<Response, Trouble> {
    run(&gateway, &who.0, BackupWish::Drill).await
}

async fn run(gateway: &Gateway, who: &SignedIn, wish: BackupWish) -> Result<Response, Trouble> {
    match gateway.ask(Request::Backups { wish, key: None, by: who.actor() }).await {
        Ok(Reply::Accepted(run)) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        Ok(_) => Err(Trouble::odd_answer()),
        Err(why) => wrong(gateway, who, &why.to_string(), &Wish::default()).await,
    }
}

fn read(wish: &Wish, before: Option<Backup>) -> Result<Backup, String> {
    let to: BackupPlace =
        wish.to.trim().parse().map_err(|e: polder_site::BackupPlaceError| e.to_string())?;
    let mut backup = match before {
        Some(before) => Backup { to, ..before },
        None => Backup::to(to),
    };
    backup.limit_kib = match wish.limit_kib.trim() {
        "" => 0,
        typed => typed.parse().map_err(|_| {
            "the limit is a whole number of KiB per second; leave it empty for none".to_owned()
        })?,
    };
    Ok(backup)
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    why: &str,
    wish: &Wish,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, wish).await?))
}

/// What the supervisor knows of backups.
pub(super) async fn status(gateway: &Gateway) -> Option<BackupStatus> {
    match gateway.ask(Request::Backup).await {
        Ok(Reply::Backup(status)) => Some(*status),
        _ => None,
    }
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    wish: &Wish,
) -> Result<Response, Trouble> {
    let status = status(gateway).await.ok_or_else(Trouble::odd_answer)?;
    let backup = gateway.status().site.backup.clone();
    let body = html! {
        (top)
        (left_out(&status))
        (how(&status))
        (paper(&status))
        (place(&status, backup.as_ref(), wish))
    };
    let page = Page {
        title: "Backups",
        lead: Some(
            "Copies of what cannot be had again: members and their keys, the box's certificate authority, its settings, who did what.",
        ),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/backup"), body))
}

/// How backups are, in a few lines.
fn figures(status: &BackupStatus) -> Markup {
    let now = now();
    let to = status.to.as_deref().unwrap_or("nowhere yet");
    facts(&[
        ("Go to", html! { code { (to) } }),
        (
            "Last backup",
            html! { @match &status.last {
                Some(last) => {
                    (when(last.at, now)) ", " (bytes(last.bytes)) ", of which " (bytes(last.added)) " were new"
                    @if !last.thinned { "; that place lets no old ones be removed" }
                },
                None => "none yet",
            } },
        ),
        (
            "Last trial restore",
            html! { @match &status.drill {
                Some((at, Ok(found))) => { (when(*at, now)) ": " (found) },
                Some((at, Err(why))) => { (when(*at, now)) ", not good: " (why) },
                None => "none yet; there is one a week",
            } },
        ),
    ])
}

fn wrongs(status: &BackupStatus) -> Markup {
    let wrong = status.wrong(now());
    html! {
        @if !wrong.is_empty() {
            (banner(Tone::Warn, html! { @for why in &wrong { p { (sentence(why)) } } }))
        }
    }
}

/// What a restore left out because it does not fit this machine.
fn left_out(status: &BackupStatus) -> Markup {
    html! {
        @if !status.left_out.is_empty() {
            (banner(Tone::Warn, html! {
                p { "This box came back from a backup on a machine that its models do not all fit." }
                @for left in &status.left_out { p { (sentence(left)) } }
                p { a href="/models" { "Choose models that fit" } }
            }))
        }
    }
}

/// On the dashboard.
pub(super) fn card(status: &BackupStatus) -> Markup {
    html! {
        section.card {
            div.row.spread {
                h2 { "Backups" }
                @if status.wrong(now()).is_empty() { (badge(Tone::Good, "made every hour")) }
            }
            (wrongs(status))
            (left_out(status))
            @if status.to.is_some() { (figures(status)) }
            p.soft.small { a href="/backup" { "Look after backups" } }
        }
    }
}

fn how(status: &BackupStatus) -> Markup {
    html! {
        (wrongs(status))
        section.card {
            h2 { "How they are" }
            (figures(status))
            @if status.to.is_some() && status.kit {
                div.row {
                    form method="post" action="/backup/now" { button type="submit" { "Make one now" } }
                    form method="post" action="/backup/drill" { button.quiet type="submit" { "Restore the newest for a trial" } }
                }
            }
            p.soft { "Models are not in them: a restored box fetches them again, by their fingerprints. Neither is what was said in conversations; the box does not keep it." }
        }
    }
}

fn paper(status: &BackupStatus) -> Markup {
    html! {
        section.card {
            div.row.spread {
                h2 { "1. The emergency kit" }
                @if status.kit { (badge(Tone::Good, "on paper")) } @else { (badge(Tone::Warn, "not on paper yet")) }
            }
            p { "One sheet with the key that opens the backups. Without it nobody can, you neither: print it, or copy it by hand, and keep it where the box is not." }
            form method="post" action="/backup/kit" { button.quiet[status.kit] type="submit" { "Show the sheet" } }
            @if !status.kit {
                form.stack method="post" action="/backup/confirm" autocomplete="off" {
                    (field(&Field { name: "key", label: "Type the key back from the paper", hint: "nine groups of four letters", required: true, ..Field::default() }))
                    button type="submit" { "It is on paper" }
                }
            }
        }
    }
}

fn place(status: &BackupStatus, backup: Option<&Backup>, wish: &Wish) -> Markup {
    let to = backup.map(|backup| backup.to.to_string()).unwrap_or_default();
    let to = if wish.to.is_empty() { &to } else { &wish.to };
    let limit = backup.map(|b| b.limit_kib).filter(|n| *n > 0).map(|n| n.to_string());
    let limit = limit.unwrap_or_default();
    let limit = if wish.limit_kib.is_empty() { &limit } else { &wish.limit_kib };
    html! {
        section.card {
            h2 { "2. Where they go" }
            @if status.kit {
                (disks(status, backup, limit))
                form.stack method="post" action="/backup/to" {
                    div.fields {
                        (field(&Field { name: "to", label: "Place", hint: "a folder (/mnt/usb), a disk by its name (disk:POLDER-BACKUP), a server (rest:https://spare.local:8000/box), or the box that is paired with this one (spare); empty for nowhere", value: to, ..Field::default() }))
                        (field(&Field { name: "limit_kib", label: "At most so many KiB per second", hint: "empty for as fast as it goes", value: limit, ..Field::default() }))
                    }
                    button type="submit" { "See what would be done" }
                }
                p.soft.small { "Nothing on a disk is ever removed or formatted: the box makes a folder of its own there, polder-backup." }
            } @else {
                p.soft { "After the kit is on paper." }
            }
        }
    }
}

/// What is plugged in, to be chosen.
fn disks(status: &BackupStatus, backup: Option<&Backup>, limit: &str) -> Markup {
    let to = backup.map(|backup| backup.to.to_string());
    html! {
        h3 { "A disk that is plugged in" }
        @if status.disks.is_empty() {
            p.soft { "None is. Plug one into the box by USB, wait ten seconds, and open this page again." }
        }
        @for disk in &status.disks { (plugged(disk, to.as_deref(), limit)) }
        h3 { "Any place" }
    }
}

fn plugged(disk: &PluggedDisk, to: Option<&str>, limit: &str) -> Markup {
    let kind = if disk.kind.is_empty() { "no file system" } else { &disk.kind };
    html! {
        div.row.spread {
            div {
                strong { (disk.title()) }
                p.soft.small {
                    (disk.name) ", " (bytes(disk.bytes))
                    @if let Some(free) = disk.free { ", " (bytes(free)) " free" }
                    ", " (kind)
                }
            }
            @match (&disk.place, &disk.wrong) {
                (Some(place), None) if Some(place.as_str()) == to => { (badge(Tone::Good, "backups go here")) }
                (Some(place), None) => {
                    form method="post" action="/backup/to" {
                        (hidden("to", place))
                        (hidden("limit_kib", limit))
                        button.quiet type="submit" { "Let backups go to " (disk.title()) }
                    }
                }
                _ => { (badge(Tone::Warn, "not as it is")) }
            }
        }
        @if let Some(why) = &disk.wrong { p.soft.small { (sentence(why)) } }
    }
}

fn about_to(gateway: &Gateway, who: &SignedIn, plan: &Plan, wish: &Wish) -> Response {
    let body = html! {
        section.card {
            h2 { (plan.title) }
            @if plan.steps.is_empty() { p { "It is so already." } }
            @else {
                div.stack { (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>())) }
                form method="post" action="/backup/to" {
                    (hidden("to", &wish.to))
                    (hidden("limit_kib", &wish.limit_kib))
                    (hidden("seen", "yes"))
                    button type="submit" { "Do it" }
                }
            }
            p { a href="/backup" { "Back" } }
        }
    };
    let page = Page { title: "Where backups go", narrow: true, ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/backup"), body)
}

/// The sheet itself. What a browser prints is the page, so that the words that are not needed there are few.
fn sheet(kit: &Kit) -> Markup {
    let (path, width) = kit.svg_path();
    let groups: Vec<&str> = kit.key.groups().collect();
    html! {
        section.card {
            h2 { "The box " (kit.name) }
            p { "The key of its backups:" }
            @for line in groups.chunks(3) { p { strong { code { (line.join("  ")) } } } }
            svg role="img" aria-label="The key, to be photographed" width="180" height="180"
                viewBox=(format!("0 0 {width} {width}")) {
                rect width=(width) height=(width) fill="#fff" {}
                path d=(path) fill="#000" {}
            }
            (facts(&[
                ("Backups are at", html! { @match &kit.place { Some(place) => { code { (place) } }, None => "(write it here)" } }),
                ("Its certificate authority", html! { code { (kit.fingerprint) } }),
            ]))
            p { "Whoever has this sheet and the backups has the box, with the keys of all its members. To have the box again on another machine: open the first page of a new box and choose to restore one. Without Polder, restic opens the backups; the key, with hyphens between its groups, is the password." }
        }
        p.soft { "Print this page, then " a href="/backup" { "type the key back" } "." }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(to: &str, limit_kib: &str) -> Wish {
        Wish { to: to.into(), limit_kib: limit_kib.into(), seen: String::new() }
    }

    #[test]
    fn a_form_changes_place_and_limit_and_leaves_how_many_are_kept() {
        let mut before = Backup::to("/mnt/old".parse().unwrap());
        before.keep.days = 3;
        let read_ = read(&wish(" /mnt/new ", "500"), Some(before)).unwrap();
        assert_eq!(
            (read_.to.to_string().as_str(), read_.limit_kib, read_.keep.days),
            ("/mnt/new", 500, 3)
        );
        assert!(read(&wish("mnt", ""), None).is_err());
        assert!(read(&wish("/mnt", "fast"), None).unwrap_err().contains("whole number"));
    }

    #[test]
    fn a_disk_that_would_do_has_a_button_and_one_that_would_not_says_why() {
        let safe = PluggedDisk {
            place: Some("disk:SAFE@1C2E-44AF".into()),
            label: "SAFE".into(),
            name: "Cruzer Blade".into(),
            kind: "exfat".into(),
            bytes: 64 << 30,
            free: Some(12 << 30),
            wrong: None,
        };
        let shown = |disk: &PluggedDisk, to| plugged(disk, to, "2000").into_string();
        let page = shown(&safe, None);
        assert!(page.contains("value=\"disk:SAFE@1C2E-44AF\"") && page.contains("Cruzer Blade"));
        assert!(page.contains("Let backups go to SAFE") && page.contains(" free"), "{page}");
        let page = shown(&safe, Some("disk:SAFE@1C2E-44AF"));
        assert!(page.contains("backups go here") && !page.contains("<button"), "{page}");
        let wrong = Some("the disk SAFE is write-protected; look for a switch on it".into());
        let page = shown(&PluggedDisk { wrong, ..safe }, None);
        assert!(page.contains("is write-protected") && !page.contains("<button"), "{page}");
    }

    #[test]
    fn the_sheet_shows_the_key_in_letters_and_as_a_square() {
        let kit = Kit {
            name: "birch".into(),
            place: None,
            fingerprint: "AB:CD".into(),
            key: KitKey::make().unwrap(),
        };
        let text = sheet(&kit).into_string();
        assert!(kit.key.groups().all(|group| text.contains(group)));
        assert!(text.contains("<svg") && text.contains("AB:CD") && text.contains("write it here"));
    }
}
