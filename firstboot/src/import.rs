//! Step 4: the model comes in; how far it is, and what to do when it does not come.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{Plan, Progress, Run, RunState, StepState, Unit};
use polder_page::{ProgressView, StepMark, bytes, card, count, per_second, steps};
use polder_site::{RecipeName, Site, SiteChange};

use crate::catalogue;
use crate::host::{Host, SetupError};
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step, Wizard};

/// The slot that the wizard fills: the box's first engine, the one that answers at once.
const SLOT: &str = "fast";

/// The header by which `page.js` learns that there is another page to show.
pub(crate) const NEXT: &str = "x-polder-next";

/// How the import of the chosen model is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum View {
    /// Nothing works on it.
    NotBegun,
    /// Something does.
    Running(Run),
    /// Something did; one sentence.
    Failed(Run, String),
    /// The model is there and runs.
    There,
}

/// How the import is, going by the supervisor's runs, and what the wizard should note of it.
pub(crate) fn look(wizard: &Wizard, runs: &[Run]) -> (View, Option<Event>) {
    if wizard.is_served() {
        return (View::There, None);
    }
    let Some(id) = wizard.run() else { return (View::NotBegun, None) };
    let Some(run) = runs.iter().find(|run| run.id == id) else {
        // The supervisor was restarted and has forgotten it.
        return (View::NotBegun, Some(Event::ImportStopped(id)));
    };
    match &run.state {
        RunState::Running => (View::Running(run.clone()), None),
        RunState::Done => (View::There, Some(Event::ImportDone(id))),
        RunState::Failed(why) => (View::Failed(run.clone(), why.clone()), None),
        RunState::Cancelled => (View::NotBegun, Some(Event::ImportStopped(id))),
    }
}

/// A run that does what the wizard would begin now, by the title of its plan: it was begun, and a
/// crash kept the wizard from noting it.
pub(crate) fn adopt(runs: &[Run], title: &str) -> Option<(View, Event)> {
    let ours = |run: &&Run| run.state == RunState::Running && run.plan.title == title;
    let run = runs.iter().find(ours)?;
    Some((View::Running(run.clone()), Event::ImportBegan(run.id)))
}

/// What has to be different for this model to be served. What else the slot says stays.
pub(crate) fn change(site: &Site, recipe: RecipeName) -> SiteChange {
    let name = SLOT.parse().expect("the literal is a valid name");
    let slot = site.slot_with(&name, recipe);
    SiteChange::Engine { name, slot }
}

/// What serving this model would do.
pub(crate) async fn preview<H: Host>(
    setup: &Setup<H>,
    recipe: RecipeName,
) -> Result<Plan, SetupError> {
    let site = setup.host().status().await?.site;
    setup.host().preview(change(&site, recipe)).await
}

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Import) {
        return elsewhere;
    }
    let (wizard, view) = match setup.look_at_import().await {
        Ok(seen) => seen,
        Err(error) => return refuse(error),
    };
    let Some(recipe) = wizard.recipe() else { return go(wizard.step()) };
    let title = catalogue::title(recipe);
    let page = Page::new(Step::Import).notice(who.notice.as_deref());
    match view {
        // It came just now: there is nothing to read here any more.
        View::There if who.wizard.run().is_some() => go(wizard.step()),
        View::There => page.body(there(&title)).into_response(),
        View::Running(run) => page
            .body(running(&title, &run))
            .next("the box gets its name. This page moves on by itself; you may also close it and come back.")
            .script("/setup/import.js")
            .reload(2)
            .into_response(),
        View::Failed(run, why) => page.body(failed(&title, &run, &why)).into_response(),
        View::NotBegun => match preview(&setup, recipe.clone()).await {
            Ok(plan) => page.body(not_begun(&title, &plan)).into_response(),
            Err(error) => page.body(cannot(&error)).into_response(),
        },
    }
}

/// The moving part of the page, for the script; 204 when there is something else to show.
pub(crate) async fn progress<H: Host>(State(setup): State<Setup<H>>, _who: Claimer) -> Response {
    match setup.look_at_import().await {
        Ok((_, View::Running(run))) => Html(moving(&run).into_string()).into_response(),
        Ok(_) => ([(NEXT, "/setup")], StatusCode::NO_CONTENT).into_response(),
        Err(error) => refuse(error),
    }
}

/// Begins, or tries again: what was fetched before is not fetched anew.
pub(crate) async fn begin<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Import) {
        return elsewhere;
    }
    match setup.begin_import().await {
        Ok(()) => go(Step::Import),
        Err(error) => Page::new(Step::Import).body(cannot(&error)).into_response(),
    }
}

/// Stops it; what was fetched stays.
pub(crate) async fn stop<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    let stopped = match who.wizard.run() {
        Some(run) => setup.host().cancel(run).await,
        None => Ok(()),
    };
    match stopped {
        Ok(()) => go(Step::Import),
        Err(error) => Page::new(Step::Import).body(cannot(&error)).into_response(),
    }
}

fn running(title: &str, run: &Run) -> Markup {
    html! {
        p { strong { (title) } " is being brought in. Every byte is checked before it is used." }
        section .card aria-label="How far it is" {
            #progress .stack data-refresh="/setup/import/progress" data-every="1000" { (moving(run)) }
            p #say .hidden-visually role="status" {}
            form .row method="post" action="/setup/import/stop" {
                button .quiet type="submit" { "Stop" }
                span .hint { "What was fetched is kept." }
            }
        }
    }
}

fn there(title: &str) -> Markup {
    html! {
        p { strong { (title) } " is on this box, was checked, and runs." }
        p { a .button href=(Step::Address.path()) { "Go on" } }
        p { (another()) }
    }
}

fn failed(title: &str, run: &Run, why: &str) -> Markup {
    html! {
        (page::error(&format!("{title} could not be brought in: {why}")))
        (card("How far it came", moving(run)))
        (begin_form("Try again", "What was fetched and checked is not fetched again."))
        p { (another()) }
    }
}

fn not_begun(title: &str, plan: &Plan) -> Markup {
    html! {
        p { "To run " strong { (title) } ", the box will do this:" }
        (card(&plan.title, html! {
            ol { @for step in &plan.steps { li { (step.title) } } }
            @if plan.steps.is_empty() { p { "Nothing: it is there already." } }
        }))
        (begin_form("Begin", "If it was begun before, it goes on where it stopped."))
        p { (another()) }
    }
}

fn cannot(error: &SetupError) -> Markup {
    html! {
        (page::error(&error.to_string()))
        (begin_form("Try again", "Nothing is lost."))
        p { (another()) }
    }
}

fn begin_form(label: &str, hint: &str) -> Markup {
    html! {
        form .row method="post" action=(Step::Import.path()) {
            button type="submit" { (label) }
            span .hint { (hint) }
        }
    }
}

fn another() -> Markup {
    html! { a href=(Step::Model.path()) { "Choose another model" } }
}

/// The steps of a run, and how far the present one is.
pub(crate) fn moving(run: &Run) -> Markup {
    let all = run.plan.steps.iter().zip(&run.steps);
    let marks: Vec<_> =
        all.clone().map(|(step, state)| (mark(state), step.title.as_str())).collect();
    html! {
        (steps("What the box does", &marks))
        @for (step, state) in all {
            @if let StepState::Running(progress) = state {
                div data-say=(spoken(&step.title, progress.as_ref())) {
                    (polder_page::progress(&view(progress.as_ref())))
                }
            }
        }
    }
}

const fn mark(state: &StepState) -> StepMark {
    match state {
        StepState::Waiting => StepMark::Later,
        StepState::Running(_) => StepMark::Now,
        StepState::Done => StepMark::Done,
        StepState::Failed(_) => StepMark::Failed,
    }
}

fn view(progress: Option<&Progress>) -> ProgressView {
    let Some(progress) = progress else {
        // The step itself stands above it.
        return ProgressView { what: "Just a moment".to_owned(), ..ProgressView::default() };
    };
    let amount = |n: u64| match progress.unit {
        Unit::Bytes => bytes(n),
        Unit::Items => count(n),
    };
    let rate = progress.rate.filter(|rate| rate.is_finite() && *rate >= 1.0);
    ProgressView {
        what: capital(&progress.phase),
        fraction: progress.fraction(),
        amount: match progress.total {
            Some(total) => format!("{} of {}", amount(progress.done), amount(total)),
            None => amount(progress.done),
        },
        rate: match (rate, progress.unit) {
            (Some(rate), Unit::Bytes) => per_second(rate),
            (Some(rate), Unit::Items) => format!("{} a second", count(rate as u64)),
            (None, _) => String::new(),
        },
        eta: progress.eta_seconds,
    }
}

/// What a screen reader says: it changes with each step and each tenth, not with each byte.
fn spoken(title: &str, progress: Option<&Progress>) -> String {
    match progress.and_then(Progress::fraction) {
        Some(fraction) => format!("{title}: {} percent", (fraction * 10.0).floor() * 10.0),
        None => title.to_owned(),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use polder_control::{RunId, Step as PlanStep};

    fn importing() -> Wizard {
        [Event::Claimed, Event::MachineSeen, Event::Chose("small".parse().unwrap())]
            .into_iter()
            .chain([Event::ImportBegan(RunId(7))])
            .fold(Wizard::new(), |wizard, event| wizard.next(event).unwrap())
    }

    fn run(id: u64, state: RunState) -> Run {
        let steps = vec![PlanStep { id: "import-model".into(), title: "Import small".into() }];
        let plan = Plan { title: "Serve small".into(), steps };
        Run { id: RunId(id), plan, steps: vec![StepState::Waiting], state }
    }

    #[test]
    fn only_our_own_run_counts() {
        let runs = [run(9, RunState::Done), run(8, RunState::Failed("x".into()))];
        let (view, news) = look(&importing(), &runs);
        assert_eq!(view, View::NotBegun);
        assert_eq!(news, Some(Event::ImportStopped(RunId(7))));
        let (view, news) = look(&importing(), &[run(9, RunState::Running), run(7, RunState::Done)]);
        assert_eq!((view, news), (View::There, Some(Event::ImportDone(RunId(7)))));
    }

    #[test]
    fn a_run_that_was_begun_but_not_noted_is_ours_while_it_runs_and_does_what_we_would() {
        let runs = [run(9, RunState::Done), run(8, RunState::Running)];
        let (view, event) = adopt(&runs, "Serve small").unwrap();
        assert_eq!((view, event), (View::Running(runs[1].clone()), Event::ImportBegan(RunId(8))));
        assert_eq!(adopt(&runs, "Serve large"), None);
        assert_eq!(adopt(&runs[..1], "Serve small"), None);
    }

    #[test]
    fn progress_without_a_total_or_with_odd_numbers_is_still_a_sentence() {
        let progress = Progress {
            phase: "fetching".into(),
            done: u64::MAX,
            total: Some(0),
            unit: Unit::Bytes,
            rate: Some(f64::NAN),
            eta_seconds: Some(u64::MAX),
        };
        let seen = view(Some(&progress));
        assert_eq!((seen.fraction, seen.rate.as_str()), (None, ""));
        assert_eq!(spoken("Import", Some(&progress)), "Import");
        assert!(!polder_page::progress(&seen).into_string().contains("NaN"));
    }

    #[test]
    fn what_is_said_aloud_changes_with_each_tenth_only() {
        let at = |done| Progress {
            phase: "fetching".into(),
            done,
            total: Some(1000),
            unit: Unit::Bytes,
            rate: None,
            eta_seconds: None,
        };
        let said: Vec<String> = (0..=1000).map(|done| spoken("Import", Some(&at(done)))).collect();
        let mut changes = said.clone();
        changes.dedup();
        assert_eq!(changes.len(), 11);
        assert_eq!(said[999], "Import: 90 percent");
    }
}
