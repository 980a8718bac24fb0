//! A member leaves, by themselves or at a steward's word: what goes, step by step, and what they take along.

use std::io::{Cursor, Write};
use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use maud::{Markup, html};
use polder_control::{Plan, Step};
use polder_members::{Belongings, MemberId, MembersError, Secret};
use polder_page::{Field, Page, StepMark, Tone, banner, field, steps};
use serde::Deserialize;
use zip::write::SimpleFileOptions;

use crate::pages::frame::{self, Trouble, answer, nav, plain_nav, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};
use crate::{Gateway, auth, forgetting};

#[derive(Deserialize)]
pub(super) struct Sure {
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    own_page(&gateway, &who, html! {}).await
}

/// Everything that the box has about a member, for themselves alone.
pub(super) async fn export(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
) -> Result<Response, Trouble> {
    let id = who.member.id;
    let files = gateway.members.ask(move |m| m.own_data(id)).await?;
    let (name, box_name) = (who.member.name.clone(), gateway.status().site.name.to_string());
    let packed = tokio::task::spawn_blocking(move || pack(&files, &name, &box_name)).await;
    let failed = |why: String| {
        Trouble::Say(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("your data could not be packed: {why}"),
        )
    };
    let packed = packed.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    who.record(&gateway, "took along", "their own data").await;
    let headers = [
        (header::CONTENT_TYPE, "application/zip"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"my-data.zip\""),
    ];
    Ok((headers, packed).into_response())
}

/// A member leaves by themselves.
pub(super) async fn leave(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(sure): Form<Sure>,
) -> Result<Response, Trouble> {
    let (id, name, password) = (who.member.id, who.member.name.clone(), Secret::new(sure.password));
    let done = if sure.name.trim() == name {
        gateway
            .members
            .ask(move |m| {
                if !m.is_own_password(id, &password)? {
                    return Err(MembersError::WrongPassword);
                }
                m.leave(id)
            })
            .await
    } else {
        Err(MembersError::Field(
            "that is not your name as the box knows it; type it as it is shown".into(),
        ))
    };
    if let Err(error) = done {
        let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
        return Ok(with_status(
            frame::members_status(&error),
            own_page(&gateway, &who, top).await?,
        ));
    }
    who.record(&gateway, "left", "the box").await;
    let cookie = auth::no_session_cookie(who.peer.tls);
    let page = Page { title: "You have left", narrow: true, ..Page::default() };
    let body = banner(
        Tone::Good,
        html! {
            p { "Your keys, your sessions and what was counted about you are gone from this box. What the models kept of your conversations goes now; a model that does not run forgets when it starts." }
            p { "Delete the box's certificate and your keys from your own programs too." }
        },
    );
    let page = answer(&page, &plain_nav(&gateway), body);
    tokio::spawn(async move { forgetting::carry_out(&gateway).await });
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), page).into_response())
}

/// What removing somebody would do, for a steward.
pub(super) async fn of_member(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
) -> Result<Response, Trouble> {
    let id = MemberId(id);
    let by = who.member.id;
    let (member, goes, alone) = gateway
        .members
        .ask(move |m| {
            Ok::<_, MembersError>((m.member(id)?, m.belongings(id)?, m.may_alone(by, id)))
        })
        .await?;
    let plan = plan(&format!("Remove {}", member.name), &goes, &surroundings(&gateway), false);
    let body = html! {
        section.card {
            (listed(&plan))
            p.soft { "Their data is theirs: on their own page they can take it along before. You do not see it." }
            @if goes.sheet {
                (banner(Tone::Warn, html! { p { "They keep a recovery sheet, which stays good after they are removed: have new ones made, on the page " a href="/collective/sheets" { "Recovery sheets" } "." } }))
            }
            @match &alone {
                Err(why) => { (banner(Tone::Warn, html! { p { (sentence(&why.to_string())) } })) a.button href="/collective/stewards" { "To the page Stewards" } }
                Ok(()) => form method="post" action=(format!("/members/{id}/remove")) {
                    button.danger type="submit" { "Remove " (member.name) }
                }
            }
            p { a href="/members" { "Back" } }
        }
    };
    let title = format!("Remove {}", member.name);
    let page = Page { title: &title, narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(&gateway, &who.member, "/members"), body))
}

async fn own_page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let id = who.member.id;
    let goes = gateway.members.ask(move |m| m.belongings(id)).await?;
    let plan = plan("Leave this box", &goes, &surroundings(gateway), true);
    let body = html! {
        (top)
        section.card {
            h2 { "First: take your data along" }
            p { "One archive with everything that the box has about you: profile, the names of your keys, apps that you went to, what was counted. What you did on it is in its audit trail too, which stays and is not in the archive. Only you get it. Conversations are not in it: the box keeps none in words; those of the chat page are in your browser." }
            form method="post" action="/account/export" { button.quiet type="submit" { "Download my data" } }
        }
        section.card {
            h2 { "Then: leave" }
            (listed(&plan))
            @if goes.last_steward {
                (banner(Tone::Warn, html! { p { "You are the only steward. Make somebody else a steward first, on the page Members, or end the box." } }))
            } @else {
                @if goes.leaves_one {
                    (banner(Tone::Warn, html! { p { "Without you one steward is left, alone: nobody can help when they are ill, leave or forget their password. Make somebody else a steward before, on the page " a href="/members" { "Members" } "." } }))
                }
                @if goes.sheet {
                    (banner(Tone::Warn, html! { p { "You hold a recovery sheet. It stays good after you have left: give it to the stewards, or have them make new ones." } }))
                }
                form.stack method="post" action="/account/leave" autocomplete="off" {
                    (field(&Field { name: "name", label: "Type your name", hint: &who.member.name, required: true, ..Field::default() }))
                    @if who.member.has_password {
                        (field(&Field { name: "password", label: "And your password", kind: "password", autocomplete: "current-password", required: true, ..Field::default() }))
                    }
                    button.danger type="submit" { "Leave, and be forgotten" }
                }
                p.soft.small { "There is no way back. Whoever wants to come again needs a new invite, and is somebody new." }
            }
        }
    };
    let page = Page { title: "Leave", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/account"), body))
}

/// What of the site matters to somebody who leaves.
struct Surroundings {
    engines: Vec<String>,
    trusting: bool,
    backups: Option<String>,
    /// What makes a new member of whoever signs in there.
    welcomes: Option<String>,
}

fn surroundings(gateway: &Gateway) -> Surroundings {
    let site = gateway.status().site.clone();
    Surroundings {
        engines: site.engines.keys().map(ToString::to_string).collect(),
        trusting: site.sharing.trusting,
        backups: site.backup.map(|backup| backup.to.to_string()),
        welcomes: site.sign_in.filter(|sign_in| sign_in.new_people).map(|sign_in| sign_in.name),
    }
}

/// Pure: what goes with a member, in order.
fn plan(title: &str, goes: &Belongings, around: &Surroundings, own: bool) -> Plan {
    let mut steps = Vec::new();
    let mut step = |id: &str, title: String| steps.push(Step { id: id.to_owned(), title });
    let (whose, they) = if own { ("your", "you") } else { ("their", "they") };
    let many = |n: u64, one: &str, more: &str| {
        if n == 1 { format!("1 {one}") } else { format!("{n} {more}") }
    };
    step(
        "sessions",
        format!(
            "Sign {} out: {}, on the box and in the apps behind its sign-in",
            if own { "you" } else { "them" },
            many(goes.sessions, "browser", "browsers")
        ),
    );
    step(
        "keys",
        format!(
            "End {whose} API keys ({}): answers under way end with an error that says so",
            goes.keys
        ),
    );
    if goes.invites > 0 {
        step(
            "invites",
            format!("Withdraw {} that {they} made", many(goes.invites, "invite", "invites")),
        );
    }
    step("usage", format!("Delete what was counted ({})", many(goes.usage, "line", "lines")));
    let engines = around.engines.join(", ");
    match (around.engines.is_empty(), around.trusting) {
        (true, _) => {}
        (false, false) => step(
            "kv",
            format!(
                "Destroy the key to what {engines} kept of {whose} conversations, in memory and on disk"
            ),
        ),
        (false, true) => step(
            "kv",
            format!(
                "Destroy what {engines} kept of everybody's conversations: on this box it is kept together, under one key"
            ),
        ),
    }
    step(
        "list",
        "Write it on the list of what never works again, which every restore honours".to_owned(),
    );
    step(
        "member",
        format!(
            "Forget {whose} name, e-mail address and password; lines of the audit trail and what everybody was told stay"
        ),
    );
    if goes.entries > 0 {
        step(
            "books",
            format!(
                "Leave {} in the books as they are, with {whose} name until somebody asks that it go",
                many(goes.entries, "entry", "entries")
            ),
        );
    }
    if goes.sheet {
        step(
            "sheet",
            format!("Leave {whose} name on the list of recovery sheets until new ones are made"),
        );
    }
    if let Some(place) = &around.backups {
        step(
            "backups",
            format!(
                "In the backups at {place} {they} stay, encrypted, until those are replaced; a restore from them removes {} again",
                if own { "you" } else { "them" }
            ),
        );
    }
    if let Some(name) = around.welcomes.as_ref().filter(|_| !own) {
        step(
            "welcomes",
            format!(
                "{name} can make a new member of them the next time they sign in there: to keep them out, disable them instead, or take them out of its groups"
            ),
        );
    }
    Plan { title: title.to_owned(), steps }
}

fn listed(plan: &Plan) -> Markup {
    let marks: Vec<_> = plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect();
    html! { div.stack { (steps("What will be done", &marks)) } }
}

/// One archive that every computer opens.
fn pack(
    files: &[(&'static str, String)],
    name: &str,
    box_name: &str,
) -> Result<Vec<u8>, zip::result::ZipError> {
    let readme = format!(
        "What the box {box_name} has about {name}, made {}.\n\n\
         profile.json          your name, role, share of the machine\n\
         keys.json             your API keys: what you called them and their limits, not what opens them\n\
         identities.json       services elsewhere that sign you in here\n\
         apps.json             apps that you agreed may learn who you are, or ask models in your name\n\
         at-apps.json          when you went to which of them\n\
         collective.json       recovery sheets that you keep, what you proposed, what you agreed to, what was taken back\n\
         money.csv             what is in the books about you, as a table\n\
         sessions.json         browsers that are signed in\n\
         invites.json          invites that you made and nobody took yet\n\
         usage-by-month.json   requests and tokens, by month and model\n\
         usage-by-day.json     the same by day and key, as far back as the box keeps it\n\n\
         What members and stewards did on the box is written into its audit trail, which stewards read and which keeps its lines. It is not here.\n\
         Conversations are not here: the box keeps none in words. Those of the chat page are in your browser.\n\
         The files are JSON: text that spreadsheets and programs read. Times are UTC.\n",
        jiff::Timestamp::now()
    );
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let files = files.iter().map(|(name, text)| (*name, text.as_str()));
    for (file, text) in [("README.txt", readme.as_str())].into_iter().chain(files) {
        archive.start_file(file, SimpleFileOptions::default())?;
        archive.write_all(text.as_bytes())?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_a_member_is_as_written_down() {
        let goes = Belongings {
            keys: 2,
            sessions: 1,
            invites: 1,
            usage: 40,
            entries: 3,
            sheet: true,
            ..Belongings::default()
        };
        let around = Surroundings {
            engines: vec!["fast".into()],
            trusting: false,
            backups: Some("/mnt/usb".into()),
            welcomes: Some("House".into()),
        };
        let bare =
            Surroundings { engines: Vec::new(), trusting: true, backups: None, welcomes: None };
        let shared = Surroundings {
            engines: vec!["fast".into(), "slow".into()],
            trusting: true,
            backups: None,
            welcomes: Some("House".into()),
        };
        let text = format!(
            "{}\n\n{}\n\n{}\n",
            plan("Leave this box", &goes, &around, true),
            plan("Remove Ben", &Belongings::default(), &bare, false),
            plan("Remove Ben", &goes, &shared, false)
        );
        assert_eq!(text, include_str!("leave.golden.txt"));
    }

    #[test]
    fn the_archive_has_a_readme_and_each_file() {
        let packed = pack(&[("profile.json", "{}".into())], "Ada", "oak").unwrap();
        let mut archive = zip::ZipArchive::new(Cursor::new(packed)).unwrap();
        let read = |archive: &mut zip::ZipArchive<_>, name: &str| {
            std::io::read_to_string(archive.by_name(name).unwrap()).unwrap()
        };
        assert!(read(&mut archive, "README.txt").contains("the box oak has about Ada"));
        assert_eq!(read(&mut archive, "profile.json"), "{}");
    }
}
