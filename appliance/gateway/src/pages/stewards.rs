//! Any two stewards replace a third; and what recovery sheets have asked for is refused here; for stewards.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::{Member, MemberId, MembersError, Proposal, Role, Wanted};
use polder_page::{Choice, Page, Tone, banner, select, when};
use serde::Deserialize;

use crate::pages::collective::{press_for_a_second, recovery_waits};
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};
use crate::{Gateway, forgetting};

#[derive(Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    target: String,
    #[serde(default)]
    what: String,
    #[serde(default)]
    successor: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said)).await
}

pub(super) async fn propose(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    let (Some(target), successor) = (member_id(&wish.target), member_id(&wish.successor)) else {
        return refused(&gateway, &who, &MembersError::NoMember).await;
    };
    let what = if wish.what == "remove" { Wanted::Removed } else { Wanted::Member };
    match gateway.members.ask(move |m| m.propose(by, target, what, successor)).await {
        Ok(made) => {
            who.record(&gateway, "proposed to replace the steward", &made.target.name).await;
            Ok(Redirect::to("/collective/stewards?said=proposed").into_response())
        }
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

pub(super) async fn agree(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    match gateway.members.ask(move |m| m.agree(by, id)).await {
        Ok(done) => {
            let on =
                format!("{} (proposed by {})", done.proposal.target.name, done.proposal.by.name);
            who.record(&gateway, "agreed to replace the steward", &on).await;
            let work = gateway.clone();
            tokio::spawn(async move { forgetting::carry_out(&work).await });
            Ok(Redirect::to("/collective?said=replaced").into_response())
        }
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

pub(super) async fn refuse(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<i64>,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    match gateway.members.ask(move |m| m.refuse_proposal(by, id)).await {
        Ok(gone) => {
            who.record(&gateway, "said no to replacing the steward", &gone.target.name).await;
            Ok(Redirect::to("/collective/stewards?said=refused").into_response())
        }
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

/// A steward who is there stops what two sheets have asked for.
pub(super) async fn refuse_recovery(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let by = who.member.id;
    match gateway.members.ask(move |m| m.refuse_recovery(by)).await {
        Ok(asked) => {
            let on = format!("{} (sheets of {})", asked.name, asked.holders);
            who.record(&gateway, "said no to the recovery sheets for", &on).await;
            Ok(Redirect::to("/collective/stewards?said=refused").into_response())
        }
        Err(error) => refused(&gateway, &who, &error).await,
    }
}

async fn refused(
    gateway: &Gateway,
    who: &SignedIn,
    error: &MembersError,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } });
    Ok(with_status(frame::members_status(error), page(gateway, who, top).await?))
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Result<Response, Trouble> {
    let (members, proposals, recovery) = gateway
        .members
        .ask(|m| Ok::<_, MembersError>((m.members()?, m.proposals()?, m.recovery()?)))
        .await?;
    let stewards: Vec<&Member> = members.iter().filter(|m| m.is_steward()).collect();
    let body = html! {
        (top)
        @if let Some(asked) = &recovery { (recovery_waits(asked, true)) }
        @for proposal in &proposals { (proposed(proposal, who)) }
        section.card {
            h2 { "Replace a steward" }
            p { "One proposes, another one agrees. Everybody is told of both. The one whom it is about can only watch, unless there are no more than two of you: then nobody can be replaced in this way, and the recovery sheets are there for it." }
            @if stewards.len() < 2 { (press_for_a_second(true)) } @else { (form(&members, who)) }
        }
        section.card {
            h2 { "What one steward does alone" }
            p { "Everything about members who are no stewards, on the page " a href="/members" { "Members" } "; and with themselves. A steward of less than a day agrees to nothing here." }
        }
    };
    let page = Page { title: "Stewards", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/collective/stewards"), body))
}

fn proposed(proposal: &Proposal, who: &SignedIn) -> Markup {
    html! {
        section.card {
            h2 { "Proposed: " (in_words(proposal)) }
            p.soft { (proposal.by.name) ", " (when(proposal.at, frame::now())) }
            div.row {
                @if who.member.id != proposal.by.id && who.member.id != proposal.target.id {
                    form method="post" action=(format!("/collective/stewards/{}/agree", proposal.id)) {
                        button.danger type="submit" { "Agree" }
                    }
                }
                form method="post" action=(format!("/collective/stewards/{}/refuse", proposal.id)) {
                    button.quiet type="submit" { @if who.member.id == proposal.by.id { "Take it back" } @else { "Say no" } }
                }
            }
        }
    }
}

fn in_words(proposal: &Proposal) -> String {
    let mut text = match proposal.what {
        Wanted::Member => format!("{} is no steward any more", proposal.target.name),
        Wanted::Removed => format!("{} is removed", proposal.target.name),
    };
    if let Some(successor) = &proposal.successor {
        text += &format!(", {} becomes one", successor.name);
    }
    text
}

fn form(members: &[Member], who: &SignedIn) -> Markup {
    let ids: Vec<String> = members.iter().map(|m| m.id.to_string()).collect();
    let choices = |wanted: &dyn Fn(&Member) -> bool| -> Vec<Choice<'_>> {
        let all = members.iter().zip(&ids).filter(|(m, _)| wanted(m));
        all.map(|(m, id)| Choice { value: id, label: &m.name }).collect()
    };
    let targets = choices(&|m| m.is_steward() && m.id != who.member.id);
    let mut successors = vec![Choice { value: "", label: "nobody" }];
    successors.extend(choices(&|m| m.role == Role::Member && !m.disabled));
    html! {
        form.stack method="post" action="/collective/stewards/propose" {
            div.fields {
                (select("target", "Whom", "", &targets, ""))
                (select("what", "What becomes of them", "", &[
                    Choice { value: "member", label: "a member like others" },
                    Choice { value: "remove", label: "removed from the box" },
                ], "member"))
                (select("successor", "Who becomes a steward in their place", "", &successors, ""))
            }
            button type="submit" { "Propose it" }
        }
    }
}

fn member_id(text: &str) -> Option<MemberId> {
    text.trim().parse().ok().map(MemberId)
}
