//! A plan being carried out: its steps, how far each is.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Progress, Reply, Request, Run, RunId, RunState, StepState, Unit};
use polder_page::{
    Page, ProgressView, StepMark, Tone, badge, banner, bytes, count, per_second, progress, steps,
};

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, piece, sentence};
use crate::pages::who::Steward;

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<u64>,
) -> Result<Response, Trouble> {
    let run = find(&gateway, RunId(id)).await?;
    let going = run.state == RunState::Running;
    let live = format!("/runs/{id}/live");
    let body = html! {
        section.card {
            @if going {
                div.stack data-refresh=(live) data-every="1000" { (inside(&run)) }
            } @else {
                div.stack { (inside(&run)) }
            }
        }
        p { a href="/dashboard" { "To the dashboard" } }
    };
    let page = Page {
        title: &run.plan.title,
        reload: going.then_some(3),
        narrow: true,
        ..Page::default()
    };
    Ok(answer(&page, &nav(&gateway, &who.member, "/runs"), body))
}

pub(super) async fn live(
    State(gateway): State<Arc<Gateway>>,
    Steward(_): Steward,
    Path(id): Path<u64>,
) -> Result<Response, Response> {
    match find(&gateway, RunId(id)).await {
        Ok(run) => Ok(piece(inside(&run))),
        // The page keeps what it shows and tries again.
        Err(trouble) => Err(trouble.status().into_response()),
    }
}

pub(super) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<u64>,
) -> Result<Response, Trouble> {
    let run = find(&gateway, RunId(id)).await?;
    gateway.ask(Request::Cancel(RunId(id))).await?;
    who.record(&gateway, "stopped", &run.plan.title).await;
    Ok(Redirect::to("/dashboard?said=cancelled").into_response())
}

/// What the run did is good, says whoever still reaches the box.
pub(super) async fn confirm(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(id): Path<u64>,
) -> Result<Response, Trouble> {
    gateway.ask(Request::Confirm { run: RunId(id), by: who.actor() }).await?;
    Ok(Redirect::to("/dashboard?said=confirmed").into_response())
}

async fn find(gateway: &Gateway, id: RunId) -> Result<Run, Trouble> {
    let Reply::Runs(runs) = gateway.ask(Request::Runs).await? else {
        return Err(Trouble::odd_answer());
    };
    runs.into_iter().find(|run| run.id == id).ok_or_else(|| {
        Trouble::Say(
            StatusCode::NOT_FOUND,
            "this change is long over; the audit trail has what was done".to_owned(),
        )
    })
}

fn inside(run: &Run) -> Markup {
    let marks: Vec<(StepMark, &str)> = run
        .plan
        .steps
        .iter()
        .zip(&run.steps)
        .map(|(step, state)| {
            let mark = match state {
                StepState::Waiting => StepMark::Later,
                StepState::Running(_) => StepMark::Now,
                StepState::Done => StepMark::Done,
                StepState::Failed(_) => StepMark::Failed,
            };
            (mark, step.title.as_str())
        })
        .collect();
    html! {
        @match &run.state {
            RunState::Running => {},
            RunState::Done => div data-done { (banner(Tone::Good, html! { p { "Done." } a href="/dashboard" { "To the dashboard" } })) },
            RunState::Failed(why) => div data-done { (banner(Tone::Bad, html! { p { (sentence(why)) } })) },
            RunState::Cancelled => div data-done { (banner(Tone::Warn, html! { p { "Stopped. What was fetched stays, so that doing it again goes on from there." } })) },
        }
        @if let Some(left) = run.waits_for_confirmation() {
            (banner(Tone::Warn, html! {
                p { "It is done, and you still reach the box. Say that it is good, or it is undone in " (left) " s." }
                form method="post" action=(format!("/runs/{}/confirm", run.id.0)) {
                    button type="submit" { "Keep it" }
                }
            }))
        }
        (steps("Steps", &marks))
        @for (step, state) in run.plan.steps.iter().zip(&run.steps) {
            @match state {
                StepState::Running(Some(p)) => (progress(&view(&step.title, p))),
                StepState::Running(None) => (progress(&ProgressView { what: step.title.clone(), ..ProgressView::default() })),
                StepState::Failed(why) => p.error { (step.title) ": " (sentence(why)) },
                StepState::Waiting | StepState::Done => {},
            }
        }
        @if run.state == RunState::Running {
            form method="post" action=(format!("/runs/{}/cancel", run.id.0)) {
                button.quiet type="submit" { "Stop" }
            }
        }
    }
}

/// A run in a few lines, for the dashboard.
pub(super) fn run_line(run: &Run) -> Markup {
    let (tone, word) = match &run.state {
        RunState::Running => (Tone::Warn, "running"),
        RunState::Done => (Tone::Good, "done"),
        RunState::Failed(_) => (Tone::Bad, "failed"),
        RunState::Cancelled => (Tone::Plain, "stopped"),
    };
    let at = run.plan.steps.iter().zip(&run.steps).find_map(|(step, state)| match state {
        StepState::Running(Some(p)) => Some(view(&step.title, p)),
        StepState::Running(None) => {
            Some(ProgressView { what: step.title.clone(), ..ProgressView::default() })
        }
        _ => None,
    });
    html! {
        div.stack {
            div.row.spread {
                a href=(format!("/runs/{}", run.id.0)) { (run.plan.title) }
                (badge(tone, word))
            }
            @if let Some(view) = at { (progress(&view)) }
            @if let RunState::Failed(why) = &run.state { p.soft.small { (sentence(why)) } }
        }
    }
}

fn view(step: &str, p: &Progress) -> ProgressView {
    let say = |n: u64| match p.unit {
        Unit::Bytes => bytes(n),
        Unit::Items => count(n),
    };
    ProgressView {
        what: if p.phase.is_empty() { step.to_owned() } else { format!("{step}: {}", p.phase) },
        fraction: p.fraction(),
        amount: match p.total {
            Some(total) => format!("{} of {}", say(p.done), say(total)),
            None => say(p.done),
        },
        rate: match (p.unit, p.rate.filter(|r| r.is_finite())) {
            (Unit::Bytes, Some(rate)) => per_second(rate),
            _ => String::new(),
        },
        eta: p.eta_seconds,
    }
}
