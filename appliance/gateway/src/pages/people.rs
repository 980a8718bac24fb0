//! Everyone who may use the box: invite, let in and out, make stewards; for stewards.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{Invite, InviteId, Member, MemberId, MembersError, Role, Secret, Share};
use polder_page::{Choice, Field, Page, Tone, badge, banner, copyable, field, select, table, when};
use polder_site::Site;
use serde::Deserialize;

use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};
use crate::{Gateway, forgetting};

#[derive(Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    note: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    days: String,
}

#[derive(Deserialize)]
pub(super) struct NewRole {
    #[serde(default)]
    role: String,
}

#[derive(Deserialize)]
pub(super) struct Shut {
    #[serde(default)]
    disabled: String,
}

#[derive(Deserialize)]
pub(super) struct NewPassword {
    #[serde(default)]
    password: String,
}

#[derive(Deserialize)]
pub(super) struct NewShare {
    #[serde(default)]
    percent: String,
    #[serde(default)]
    at_once: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said)).await
}

pub(super) async fn invite(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let role = role_of(&wish.role);
    let days: u64 = wish.days.parse().unwrap_or(7).clamp(1, 90);
    let (by, note) = (who.member.id, wish.note);
    let made = gateway
        .members
        .ask(move |m| m.invite(by, role, &note, Duration::from_secs(days * 86400)))
        .await;
    match made {
        Ok((invite, token)) => {
            let on = format!("{} (as {})", noted(&invite), role.as_str());
            who.record(&gateway, "invited", &on).await;
            let site = &gateway.status().site;
            let link = format!("{}/invite/{}", for_others(site, &who.base), token.expose());
            page(&gateway, &who, invited(&invite, &link, site.is_trial())).await
        }
        Err(error) => refused(&gateway, &who, error).await,
    }
}

pub(super) async fn withdraw(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<String>,
) -> Result<Response, Trouble> {
    gateway.members.ask(move |m| m.withdraw_invite(&InviteId(id))).await?;
    who.record(&gateway, "withdrew an invite", "").await;
    Ok(Redirect::to("/members?said=withdrawn").into_response())
}

pub(super) async fn role(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
    Form(wish): Form<NewRole>,
) -> Result<Response, Trouble> {
    let (id, role) = (MemberId(id), role_of(&wish.role));
    let what = match role {
        Role::Steward => "made a steward",
        Role::Member => "made a member",
    };
    let by = who.member.id;
    change(&gateway, &who, id, what, "role", move |m| m.decide_role(by, id, role)).await
}

/// What people on the box decided about somebody's role ends: the groups of their service count again.
pub(super) async fn groups(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
) -> Result<Response, Trouble> {
    let (id, by) = (MemberId(id), who.member.id);
    change(&gateway, &who, id, "let the groups decide about the role of", "groups", move |m| {
        m.let_groups_decide(by, id)
    })
    .await
}

pub(super) async fn disable(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
    Form(shut): Form<Shut>,
) -> Result<Response, Trouble> {
    let (id, disabled) = (MemberId(id), shut.disabled == "yes");
    let (what, said) =
        if disabled { ("disabled", "disabled") } else { ("let in again", "enabled") };
    change(&gateway, &who, id, what, said, move |m| m.set_disabled(id, disabled)).await
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
) -> Result<Response, Trouble> {
    let id = MemberId(id);
    if id == who.member.id {
        // There they hear what goes, and prove who they are.
        return Ok(Redirect::to("/account/leave").into_response());
    }
    let done = change(&gateway, &who, id, "removed", "removed", move |m| m.remove_member(id)).await;
    // It was noted with the removal, and goes on by itself where an engine does not answer.
    tokio::spawn(async move { forgetting::carry_out(&gateway).await });
    done
}

pub(super) async fn password(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
    Form(form): Form<NewPassword>,
) -> Result<Response, Trouble> {
    let (id, new) = (MemberId(id), Secret::new(form.password));
    if id == who.member.id && who.member.has_password {
        // There the present one is asked for: a browser left open is not enough.
        let why = MembersError::Field("change your own password on your account page".into());
        return refused(&gateway, &who, why).await;
    }
    change(&gateway, &who, id, "set a password for", "password-set", move |m| {
        m.set_password(id, &new)
    })
    .await
}

pub(super) async fn share(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
    Form(form): Form<NewShare>,
) -> Result<Response, Trouble> {
    let id = MemberId(id);
    let share = Share {
        percent: form.percent.trim().parse().unwrap_or(0),
        answers_at_once: match form.at_once.trim() {
            "" => None,
            number => Some(number.parse().unwrap_or(0)),
        },
    };
    let what = format!("set to {} the share of", share_in_words(share));
    // A share takes nothing away that a steward needs to be one.
    let done = gateway
        .members
        .ask(move |m| {
            m.set_share(id, share)?;
            Ok::<_, MembersError>(m.member(id)?.name)
        })
        .await;
    match done {
        Ok(name) => {
            who.record(&gateway, &what, &name).await;
            Ok(Redirect::to("/members?said=share").into_response())
        }
        Err(error) => refused(&gateway, &who, error).await,
    }
}

async fn change(
    gateway: &Gateway,
    who: &SignedIn,
    id: MemberId,
    what: &str,
    said: &str,
    work: impl FnOnce(&polder_members::Members) -> Result<(), MembersError> + Send + 'static,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    let done = gateway
        .members
        .ask(move |m| {
            m.may_alone(by, id)?;
            // The name, before the member may be gone.
            let name = m.member(id)?.name;
            work(m)?;
            Ok(name)
        })
        .await;
    match done {
        Ok(name) => {
            who.record(gateway, what, &name).await;
            Ok(Redirect::to(&format!("/members?said={said}")).into_response())
        }
        Err(error) => refused(gateway, who, error).await,
    }
}

async fn refused(
    gateway: &Gateway,
    who: &SignedIn,
    error: MembersError,
) -> Result<Response, Trouble> {
    let status: StatusCode = frame::members_status(&error);
    let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
    Ok(with_status(status, page(gateway, who, top).await?))
}

fn role_of(text: &str) -> Role {
    if text == "steward" { Role::Steward } else { Role::Member }
}

fn noted(invite: &Invite) -> String {
    if invite.note.is_empty() { "somebody".to_owned() } else { invite.note.clone() }
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let members = gateway.members.ask(|m| m.members()).await?;
    let invites = gateway.members.ask(|m| m.invites()).await?;
    let body = html! {
        (top)
        section.card {
            h2 { "Invite somebody" }
            p.soft { "You get a link to send them. It works once." }
            form.stack method="post" action="/members/invite" {
                div.fields {
                    (field(&Field { name: "note", label: "For whom", ..Field::default() }))
                    (select("role", "They become", "", &[Choice { value: "member", label: "a member" }, Choice { value: "steward", label: "a steward" }], "member"))
                    (select("days", "The link works for", "", &[Choice { value: "1", label: "a day" }, Choice { value: "7", label: "a week" }, Choice { value: "30", label: "a month" }], "7"))
                }
                button type="submit" { "Make the link" }
            }
        }
        @if !invites.is_empty() {
            section.card { h2 { "Open invites" } (invite_table(&invites)) }
        }
        section.card {
            h2 { "Members" }
            p.soft { "When several want an answer at once, each gets the same part of the machine, however much one of them asks. Who needs more can be given a larger share; it takes from the others only while they ask too." }
            (member_table(&members, who.member.id))
        }
    };
    let page = Page { title: "Members", lead: Some("Who may use the box."), ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/members"), body))
}

/// The box's address for somebody at another machine, to whom `localhost` leads nowhere.
fn for_others(site: &Site, base: &str) -> String {
    let host = base.split_once("://").map_or(base, |(_, host)| host);
    let here = ["localhost", "127.", "[::1]"].iter().any(|name| host.starts_with(name));
    match here && !site.is_trial() {
        true => format!("https://{}.local:{}", site.name, site.door.port),
        false => base.to_owned(),
    }
}

fn invited(invite: &Invite, link: &str, only_here: bool) -> Markup {
    html! {
        section.card {
            h2 { "Send this link to " (noted(invite)) }
            (banner(Tone::Warn, html! { p { "Copy it now: it is shown this once. Whoever opens it first becomes a member, so send it by a way that only they read." } }))
            div.wrap { (copyable("invite-link", "the invite's link", link)) }
            @if only_here {
                p.soft.small {
                    "So far the box can be reached from its own machine only, so the link works nowhere else. To let others in, type there: "
                    code { "polder claim reopen" }
                }
            }
        }
    }
}

fn invite_table(invites: &[Invite]) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = invites
        .iter()
        .map(|i| {
            vec![
                html! { (noted(i)) },
                html! { (i.role.as_str()) },
                html! { (i.made_by.as_deref().unwrap_or("somebody who left")) },
                when(i.expires_at, now),
                html! { form method="post" action=(format!("/members/invite/{}/withdraw", i.id.0)) { button.quiet type="submit" { "Withdraw" } } },
            ]
        })
        .collect();
    table("Open invites", &["For", "As", "From", "Ends", ""], &rows)
}

fn member_table(members: &[Member], me: MemberId) -> Markup {
    let now = frame::now();
    let rows: Vec<Vec<Markup>> = members
        .iter()
        .map(|m| {
            vec![
                html! { div { strong { (m.name) } @if m.id == me { " (you)" } @if let Some(email) = &m.email { div.soft.small { (email) } } } },
                html! { div.row {
                    (badge(if m.role == Role::Steward { Tone::Good } else { Tone::Plain }, m.role.as_str()))
                    @if m.disabled { (badge(Tone::Bad, "disabled")) }
                    @if m.kept_member { (badge(Tone::Warn, "no steward by groups")) }
                    @if !m.has_password { (badge(Tone::Plain, "no password")) }
                    @if m.share != Share::default() { (badge(Tone::Plain, &share_in_words(m.share))) }
                } },
                when(m.created_at, now),
                actions(m, m.id == me),
            ]
        })
        .collect();
    table("Members", &["Name", "Role", "Since", ""], &rows)
}

/// `the usual`, `2 times the usual, at most 4 answers at once`.
pub(super) fn share_in_words(share: Share) -> String {
    let part = match share.percent {
        100 => "the usual".to_owned(),
        50 => "half the usual".to_owned(),
        percent if percent % 100 == 0 => format!("{} times the usual", percent / 100),
        percent => format!("{percent} % of the usual"),
    };
    match share.answers_at_once {
        None => part,
        Some(1) => format!("{part}, 1 answer at once"),
        Some(most) => format!("{part}, at most {most} answers at once"),
    }
}

fn share_form(m: &Member) -> Markup {
    let percent = m.share.percent.to_string();
    let mut shares = vec![
        Choice { value: "50", label: "half of the usual" },
        Choice { value: "100", label: "the usual" },
        Choice { value: "200", label: "twice the usual" },
        Choice { value: "400", label: "four times the usual" },
    ];
    let other = share_in_words(Share { answers_at_once: None, ..m.share });
    if !shares.iter().any(|choice| choice.value == percent) {
        shares.push(Choice { value: &percent, label: &other });
    }
    let most = m.share.answers_at_once.map(|n| n.to_string()).unwrap_or_default();
    html! {
        form.stack method="post" action=(format!("/members/{}/share", m.id)) {
            div.fields {
                div.field {
                    label for=(format!("share-{}", m.id)) { "Share of the machine" }
                    select id=(format!("share-{}", m.id)) name="percent" {
                        @for choice in &shares {
                            option value=(choice.value) selected[choice.value == percent] { (choice.label) }
                        }
                    }
                }
                div.field {
                    label for=(format!("at-once-{}", m.id)) { "Most answers at once" }
                    input id=(format!("at-once-{}", m.id)) name="at_once" value=(most) inputmode="numeric" autocomplete="off" placeholder="no limit";
                }
            }
            div { button.quiet type="submit" { "Set share" } }
        }
    }
}

fn actions(m: &Member, me: bool) -> Markup {
    let at = |what: &str| format!("/members/{}/{what}", m.id);
    let (other, label) = match m.role {
        Role::Steward => ("member", "Make a member"),
        Role::Member => ("steward", "Make a steward"),
    };
    html! {
        details.actions {
            summary aria-label=(format!("Change {}", m.name)) { "Change" }
            div.stack {
                @if !me && m.is_steward() {
                    p.soft.small { "A steward is changed by two: " a href="/collective/stewards" { "propose it" } "." }
                } @else if !me { div.row {
                    form method="post" action=(at("role")) { input type="hidden" name="role" value=(other); button.quiet type="submit" { (label) } }
                    form method="post" action=(at("disable")) {
                        input type="hidden" name="disabled" value=(if m.disabled { "no" } else { "yes" });
                        button.quiet type="submit" { @if m.disabled { "Let in again" } @else { "Disable" } }
                    }
                    a.button.danger href=(at("leave")) { "Remove" }
                } }
                @if m.kept_member { form.stack method="post" action=(at("groups")) {
                    p.soft.small { "People on this box made them a member. That holds, whatever groups say where they sign in." }
                    div { button.quiet type="submit" { "Let groups decide again" } }
                } }
                (share_form(m))
                @if !me && !m.is_steward() { form.row method="post" action=(at("password")) {
                    label.hidden-visually for=(format!("password-{}", m.id)) { "New password for " (m.name) }
                    input.short id=(format!("password-{}", m.id)) name="password" type="password" autocomplete="new-password" required placeholder="new password";
                    button.quiet type="submit" { "Set password" }
                } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_made_at_the_machine_itself_leads_others_to_the_box_once_they_can_reach_it() {
        let mut site = Site::unclaimed(8443);
        let made_at = ["http://localhost:8443", "https://127.0.0.1:8443", "https://[::1]:8443"];
        assert_eq!(for_others(&site, made_at[0]), made_at[0], "nobody else can come yet");
        site.door.listen.push([192, 168, 1, 20].into());
        for base in made_at {
            assert_eq!(for_others(&site, base), "https://polder.local:8443");
        }
        assert_eq!(for_others(&site, "https://192.168.1.20:8443"), "https://192.168.1.20:8443");
    }
}
