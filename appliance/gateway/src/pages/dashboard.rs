//! What runs, how busy it is, what happened last: for stewards.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use polder_control::{
    AuditEntry, Disk, EngineStatus, Lock, PartState, PartStatus, Reply, Request, Run, RunState,
};
use polder_page::{Page, Tone, badge, banner, empty, percent, sparkline, stat, tokens_per_second};
use polder_site::{Store, UnknownKey};

use crate::Gateway;
use crate::health::report;
use crate::pages::audit::audit_table;
use crate::pages::backup;
use crate::pages::certificate;
use crate::pages::collective;
use crate::pages::frame::{self, Trouble, answer, nav, piece};
use crate::pages::health::worst;
use crate::pages::home::Said;
use crate::pages::models::title;
use crate::pages::power;
use crate::pages::runs::run_line;
use crate::pages::samples::{Sample, Samples, Series};
use crate::pages::shell::now_open;
use crate::pages::who::Steward;
use crate::pages::{outside, spare, uplinks};

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Extension(samples): Extension<Arc<Samples>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    let inside = inside(&gateway, &samples).await;
    let health = report(&gateway).await;
    let disk = match gateway.ask(Request::Disk).await {
        Ok(Reply::Disk(disk)) => disk,
        _ => None,
    };
    let backups = backup::status(&gateway).await;
    let people = gateway
        .members
        .ask(|m| Ok::<_, polder_members::MembersError>((m.members()?, m.recovery()?)))
        .await?;
    let stewards = people.0.iter().filter(|m| m.is_steward()).count();
    let spare = spare::card(&gateway).await;
    let state = gateway.state.clone();
    let unknown = tokio::task::spawn_blocking(move || Store::unknown_in(&state)).await;
    let body = html! {
        (frame::said(&said.said))
        @if let Ok(Ok(unknown)) = &unknown { (unknown_keys(unknown)) }
        (worst(health.as_ref()))
        @if let Some(asked) = &people.1 { (collective::recovery_waits(asked, true)) }
        @if stewards < 2 { section.card { h2 { "You are the only steward" } (collective::press_for_a_second(true)) } }
        div.stack.wide data-refresh="/dashboard/live" data-every="3000" { (inside) }
        @if let Some(backups) = &backups { (backup::card(backups)) }
        (spare)
        @if let Some(disk) = &disk { (disk_card(disk)) }
        section.card {
            h2 { "The collective" }
            div.row {
                a.button.quiet href="/money" { "Money" }
                a.button.quiet href="/moving" { "Moving house" }
            }
        }
    };
    let page = Page {
        title: "Dashboard",
        lead: Some("What the box is doing now."),
        reload: Some(10),
        ..Page::default()
    };
    Ok(answer(&page, &nav(&gateway, &who.member, "/dashboard"), body))
}

pub(super) async fn live(
    State(gateway): State<Arc<Gateway>>,
    Extension(samples): Extension<Arc<Samples>>,
    Steward(_): Steward,
) -> Response {
    piece(inside(&gateway, &samples).await)
}

async fn inside(gateway: &Gateway, samples: &Samples) -> Markup {
    let status = gateway.status();
    let runs = match gateway.ask(Request::Runs).await {
        Ok(Reply::Runs(runs)) => runs,
        _ => Vec::new(),
    };
    let audit = match gateway.ask(Request::Audit { before: None, limit: 6 }).await {
        Ok(Reply::Audit(entries)) => entries,
        _ => Vec::new(),
    };
    let shell = match gateway.ask(Request::Shell).await {
        Ok(Reply::Shell(shell)) => shell,
        _ => None,
    };
    let uplinks = uplinks::card(gateway).await;
    let outside = outside::card(gateway);
    html! {
        @if let Some(open) = &shell { (now_open(open)) }
        @if !gateway.supervisor_answers() {
            (banner(Tone::Bad, html! { p { "The supervisor does not answer just now. What is shown may be old, and nothing can be changed. Models that run go on answering." } }))
        }
        @if status.safe {
            (banner(Tone::Warn, html! { p { "The box is in safe mode, which somebody asked for at the machine's own screen: no engine and no app runs. Start the machine again to leave it." } }))
        }
        @if status.engines.is_empty() {
            section.card {
                h2 { "No model yet" }
                (empty("The box serves no model. Choose one and it is imported, started and kept running."))
                a.button href="/models" { "Choose a model" }
            }
        }
        @for engine in &status.engines { (engine_card(engine, &samples.of(&engine.name))) }
        @match &status.supply {
            Some(supply) => (power::card(supply)),
            None => section.card {
                h2 { "The power" }
                (empty("No UPS is watched: a power cut would cut every answer off."))
                a href="/power" { "Choose a UPS" }
            }
        }
        (runs_card(&runs))
        (uplinks)
        (outside)
        (door_card(&status.gateway, gateway))
        (audit_card(&audit))
    }
}

/// What the box is told that this version of it does not know.
fn unknown_keys(keys: &[UnknownKey]) -> Markup {
    html! {
        @if !keys.is_empty() {
            (banner(Tone::Warn, html! {
                @for key in keys { p { (frame::sentence(&key.to_string())) } }
            }))
        }
    }
}

fn engine_card(engine: &EngineStatus, series: &Series) -> Markup {
    let now: Option<Sample> = series.back().copied().flatten();
    let history = |pick: fn(&Sample) -> Option<f64>| -> Vec<Option<f64>> {
        series.iter().map(|s| s.as_ref().and_then(pick)).collect()
    };
    let figure = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.0}"));
    let rate = now.and_then(|s| s.write_rate);
    let read = now.and_then(|s| s.read_rate);
    let kv = now.and_then(|s| s.figures.kv_used);
    let running = now.and_then(|s| s.figures.running);
    let waiting = now.and_then(|s| s.figures.waiting);
    html! {
        section.card {
            div.row.spread {
                h2 { (title(&engine.recipe)) }
                div.row { (state_badge(&engine.part.state)) }
            }
            p.soft.small { "slot " code { (engine.name) } " · called " code { (engine.recipe) } " in requests" (restarts(&engine.part)) }
            @if let Some(note) = engine.note.as_ref().filter(|_| engine.part.state == PartState::Ready) {
                (banner(Tone::Warn, html! { p { (frame::sentence(note)) } }))
            }
            @if let Some(why) = why(&engine.part.state) { (banner(Tone::Bad, html! { p { (frame::sentence(&why)) } })) }
            div.stats {
                (stat("Writing", &rate.map_or("–".to_owned(), tokens_per_second), html! {
                    (sparkline("Tokens written per second, last minutes", &history(|s| s.write_rate), None))
                    @match read { Some(r) => { "reading " (tokens_per_second(r)) }, None => "reading –" }
                }))
                (stat("Conversations now", &figure(running), html! {
                    (sparkline("Conversations being answered, last minutes", &history(|s| s.figures.running), Some(4.0)))
                    (figure(waiting)) " waiting in the queue"
                }))
                (stat("Memory for conversations", &kv.map_or("–".to_owned(), percent), html! {
                    (sparkline("KV memory in use, last minutes", &history(|s| s.figures.kv_used), Some(1.0)))
                    "in use (KV blocks)"
                }))
            }
        }
    }
}

fn disk_card(disk: &Disk) -> Markup {
    html! {
        section.card {
            div.row.spread {
                h2 { "The disk" }
                @match disk.lock {
                    Lock::Sealed => { (badge(Tone::Good, "sealed")) },
                    Lock::Open => { (badge(Tone::Warn, "open")) },
                }
            }
            p { (disk.protects()) }
            @if disk.lock == Lock::Open {
                p.soft { "To seal it, open the set-up again: press s at the machine's own screen." }
            } @else if let Some(lacks) = disk.lacks() {
                p.soft { (lacks) }
            }
        }
    }
}

/// How a part is, in a word.
pub(super) fn state_badge(state: &PartState) -> Markup {
    match state {
        PartState::Ready => badge(Tone::Good, "answers"),
        PartState::Starting => badge(Tone::Warn, "starting"),
        PartState::Draining => badge(Tone::Warn, "finishing what it has"),
        PartState::Waiting { .. } => badge(Tone::Bad, "starting again"),
        PartState::Stopped => badge(Tone::Plain, "stopped"),
        PartState::GaveUp(_) => badge(Tone::Bad, "gave up"),
    }
}

fn why(state: &PartState) -> Option<String> {
    match state {
        PartState::Waiting { retry_ms, why } => {
            Some(format!("it ended: {why}; it is started again in {} s", retry_ms.div_ceil(1000)))
        }
        PartState::GaveUp(why) => Some(why.clone()),
        _ => None,
    }
}

fn restarts(part: &PartStatus) -> Markup {
    html! {
        @match part.restarts {
            0 => {},
            1 => " · started again once",
            n => { " · started again " (n) " times" },
        }
    }
}

fn runs_card(runs: &[Run]) -> Markup {
    let (going, over): (Vec<&Run>, Vec<&Run>) =
        runs.iter().partition(|run| run.state == RunState::Running);
    html! {
        section.card {
            h2 { "Imports and changes" }
            @if runs.is_empty() { (empty("Nothing was changed since the box started.")) }
            @for run in going { (run_line(run)) }
            @for run in over.iter().take(4) { (run_line(run)) }
        }
    }
}

fn door_card(part: &PartStatus, gateway: &Gateway) -> Markup {
    html! {
        section.card {
            div.row.spread { h2 { "The door" } (state_badge(&part.state)) }
            p.soft.small { "Serves these pages and the API" (restarts(part)) "." }
            p.soft.small {
                "Its certificate is signed by the box itself, SHA-256 " code { (gateway.ca().fingerprint) } ". "
                a href="/ca" { "How a device is told to trust it" }
            }
            (certificate::line(gateway))
            p.soft.small { a href="/shell" { "Open a remote shell for a while" } }
        }
    }
}

fn audit_card(entries: &[AuditEntry]) -> Markup {
    html! {
        section.card {
            div.row.spread { h2 { "Who did what" } a href="/audit" { "All of it" } }
            @if entries.is_empty() { (empty("Nothing yet.")) } @else { (audit_table(entries)) }
        }
    }
}
