//! Whether the models answer, in words, for every member. It needs no engine, and says what it knows while other parts are
//! away.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use polder_control::{BoxStatus, Check, EngineStatus, HealthReport, PartState, Severity};
use polder_page::{Page, Tone, badge, banner};

use crate::Gateway;
use crate::health::report;
use crate::pages::dashboard::state_badge;
use crate::pages::frame::{answer, nav, sentence};
use crate::pages::models::title;
use crate::pages::succession;
use crate::pages::who::SignedIn;

pub(super) async fn show(State(gateway): State<Arc<Gateway>>, who: SignedIn) -> Response {
    let (status, report) = (gateway.status(), report(&gateway).await);
    let body = html! {
        (overall(&status, gateway.supervisor_answers()))
        (succession::told(&gateway, &who.member))
        @for engine in seen(&status, gateway.members.trying(who.member.id).is_some() || who.member.is_steward()) {
            section.card {
                div.row.spread { h2 { (title(&engine.recipe)) } (state_badge(&engine.part.state)) }
                p { (words(&engine.part.state)) }
            }
        }
        (known(report.as_ref()))
    };
    let page = Page {
        title: "Status",
        lead: Some("Whether the models answer, and what is going on if they do not."),
        reload: Some(15),
        narrow: true,
        ..Page::default()
    };
    answer(&page, &nav(&gateway, &who.member, "/status"), body)
}

/// Engines that somebody may use, or look after.
fn seen(status: &BoxStatus, all: bool) -> impl Iterator<Item = &EngineStatus> {
    let on_trial = status.site.succession.as_ref().and_then(|s| s.on_trial());
    status.engines.iter().filter(move |engine| all || Some(&engine.name) != on_trial)
}

/// The whole box in one sentence.
fn overall(status: &BoxStatus, supervised: bool) -> Markup {
    let ready = status.engines.iter().filter(|e| e.part.state == PartState::Ready).count();
    let (tone, text) = match (ready, status.engines.len()) {
        _ if status.safe => (
            Tone::Warn,
            "The box was started without its models, on purpose. A steward is looking after it.",
        ),
        (_, 0) => (Tone::Plain, "No model was chosen yet. A steward does that."),
        (0, _) => (
            Tone::Bad,
            "No model answers just now. What you ask waits for half a minute at most, and then says so.",
        ),
        (ready, all) if ready < all => (Tone::Warn, "Some models answer, and some do not."),
        _ => (Tone::Good, "The models answer."),
    };
    html! {
        (banner(tone, html! { p { (text) } }))
        @if !supervised {
            (banner(Tone::Warn, html! { p { "The part that keeps everything running is being started again. What is shown here may be a little old." } }))
        }
    }
}

/// How a model is, for somebody who waits for it.
fn words(state: &PartState) -> String {
    match state {
        PartState::Ready => "It answers.".to_owned(),
        PartState::Starting => {
            "It is being loaded. A large one takes minutes; questions wait for a while.".to_owned()
        }
        PartState::Draining => {
            "It finishes what it has, because something about it is being changed.".to_owned()
        }
        PartState::Stopped => {
            "It does not run. A steward knows why, or should hear of it.".to_owned()
        }
        PartState::Waiting { retry_ms, .. } => format!(
            "It broke down and is started again in {} s. Ask once more after that.",
            retry_ms.div_ceil(1000)
        ),
        PartState::GaveUp(_) => {
            "It broke down again and again, and is not started until a steward has looked."
                .to_owned()
        }
    }
}

/// What of everything that is wrong matters to somebody who waits for an answer.
fn known(report: Option<&HealthReport>) -> Markup {
    let matters = |check: Check| {
        use Check as C;
        matches!(
            check,
            C::Queue
                | C::Battery
                | C::Uplink
                | C::DiskSpace
                | C::GpuFault
                | C::GpuHeat
                | C::GpuSlow
        )
    };
    let standing = report.map(|report| &report.standing[..]).unwrap_or_default();
    let told: Vec<_> = standing.iter().map(|s| &s.issue).filter(|i| matters(i.id.check)).collect();
    let urgent = standing.iter().any(|s| s.issue.severity == Severity::Urgent);
    html! {
        @if !told.is_empty() || urgent {
            section.card {
                div.row.spread { h2 { "What the box knows" } @if urgent { (badge(Tone::Bad, "urgent")) } }
                @for issue in &told { p { (sentence(&issue.what)) } }
                @if urgent { p.soft { "The stewards see this on their pages; if it lasts, ask one of them whether they know." } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_model_has_a_sentence_without_a_word_that_only_engineers_know() {
        let waiting = PartState::Waiting { retry_ms: 250, why: "SIGSEGV in a kernel".into() };
        let states = [
            PartState::Ready,
            PartState::Starting,
            PartState::Draining,
            PartState::Stopped,
            waiting,
            PartState::GaveUp("SIGSEGV".into()),
        ];
        for state in states {
            let said = words(&state);
            assert!(said.ends_with('.') && !said.contains("SIG"), "{said}");
        }
    }
}
