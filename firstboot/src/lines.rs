//! Step 7: whether there is a second way to the internet, and which of them is paid by its amount.
//!
//! What is said here is undone by itself unless the person confirms it within a minute, as on the page Uplinks, where everything else about them is.

use axum::Form;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{CONFIRM, Port, Run, RunState};
use polder_page::{Field, field, tick};
use polder_site::{
    InterfaceName, InterfaceNameError, Site, SiteChange, Uplink, UplinkName, Uplinks,
};
use serde::Deserialize;

use crate::host::Host;
use crate::import::{NEXT, moving};
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step, Wizard};

/// Where "go on" leads.
pub(crate) const ON: &str = "/setup/lines/on";
/// Where it is said that the box is still reached.
pub(crate) const CONFIRMED: &str = "/setup/lines/confirm";
/// The moving part, for the script.
pub(crate) const PROGRESS: &str = "/setup/lines/progress";

/// What they are called until somebody says something else on the page Uplinks.
const NAMES: [&str; 2] = ["main", "second"];

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(crate) struct Wish {
    #[serde(default)]
    first: String,
    first_metered: Option<String>,
    #[serde(default)]
    second: String,
    second_metered: Option<String>,
}

impl Wish {
    /// The uplinks that it names, in the order in which they are preferred.
    fn uplinks(&self) -> Result<Uplinks, String> {
        let lines = [(&self.first, &self.first_metered), (&self.second, &self.second_metered)];
        let mut uplinks = Uplinks::new();
        for (order, (name, (interface, metered))) in (1..).zip(NAMES.iter().zip(lines)) {
            let interface = interface.trim();
            // There may be no second one.
            if interface.is_empty() && order > 1 {
                continue;
            }
            let interface: InterfaceName =
                interface.parse().map_err(|e: InterfaceNameError| e.to_string())?;
            let metered = metered.is_some();
            let name: UplinkName = name.parse().expect("the names here are good ones");
            let targets = Vec::new();
            let uplink = Uplink { interface, order, metered, ask_router: false, targets };
            uplinks.insert(name, uplink);
        }
        Ok(uplinks)
    }

    fn change(&self, site: &Site) -> Result<SiteChange, String> {
        if !site.uplinks.is_empty() {
            return Err("the box knows its lines already; the page Uplinks changes them".to_owned());
        }
        let change = SiteChange::Uplinks(self.uplinks()?);
        let wanted = change.applied_to(site).check();
        wanted.map_err(|error| error.to_string().replacen("site.toml: ", "", 1))?;
        Ok(change)
    }
}

/// How far the step is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum View {
    /// Nothing is decided; perhaps what was tried was undone.
    Open(Option<String>),
    /// The box does it, and then waits to hear that it is good.
    Trying(Run),
    /// It looks after them.
    Set,
}

/// How far it is, going by the site and the supervisor's runs. One that was begun and, for a crash, not noted is known by what it waits for.
pub(crate) fn look(wizard: &Wizard, site: &Site, runs: &[Run]) -> View {
    let tries = |run: &&Run| {
        run.state == RunState::Running && run.plan.steps.iter().any(|step| step.id == CONFIRM)
    };
    if let Some(run) = runs.iter().find(tries) {
        return View::Trying(run.clone());
    }
    let ours = runs.iter().find(|run| Some(run.id) == wizard.lines_run()).map(|run| &run.state);
    match (ours, site.uplinks.is_empty()) {
        (_, false) => View::Set,
        (Some(RunState::Failed(why)), true) => View::Open(Some(why.clone())),
        (_, true) => View::Open(None),
    }
}

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match who.elsewhere_before(Step::Lines) {
        Some(elsewhere) => elsewhere,
        None => page(&setup, &who, &Wish::default(), None).await,
    }
}

/// Takes the form, and has the box look after these lines.
pub(crate) async fn choose<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(wish): Form<Wish>,
) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Lines) {
        return elsewhere;
    }
    let site = match setup.host().status().await {
        Ok(status) => status.site,
        Err(error) => return refuse(error),
    };
    let begun = match wish.change(&site) {
        Ok(change) => setup.go_out_by(change).await.map_err(|e| e.to_string()),
        Err(why) => Err(why),
    };
    match begun {
        Ok(()) => go(Step::Lines),
        Err(why) => {
            (StatusCode::BAD_REQUEST, page(&setup, &who, &wish, Some(&why)).await).into_response()
        }
    }
}

/// The person sees this page by the lines as they are now: they stay.
pub(crate) async fn confirm<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Lines) {
        return elsewhere;
    }
    let confirmed = match seen(&setup, &who.wizard).await {
        Ok((View::Trying(run), _)) => setup.host().confirm(run.id).await,
        // It is over already: the page says how.
        Ok(_) => Ok(()),
        Err(response) => return response,
    };
    match confirmed {
        Ok(()) => go(Step::Lines),
        Err(error) => refuse(error),
    }
}

/// On to the next step, unless something waits for a word that is only given here: another tab may still show the form.
pub(crate) async fn on<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Lines) {
        return elsewhere;
    }
    match seen(&setup, &who.wizard).await {
        Ok((View::Trying(_), _)) => return go(Step::Lines),
        Ok(_) => {}
        Err(response) => return response,
    }
    match setup.happen(Event::LinesSettled).await {
        Ok(wizard) => go(wizard.step()),
        Err(error) => refuse(error),
    }
}

/// The moving part of the page, for the script; 204 when there is something else to show.
pub(crate) async fn progress<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match seen(&setup, &who.wizard).await {
        Ok((View::Trying(run), _)) => Html(trying(&run).into_string()).into_response(),
        Ok(_) => ([(NEXT, Step::Lines.path())], StatusCode::NO_CONTENT).into_response(),
        Err(response) => response,
    }
}

async fn seen<H: Host>(setup: &Setup<H>, wizard: &Wizard) -> Result<(View, Site), Response> {
    match tokio::join!(setup.host().status(), setup.host().runs()) {
        (Ok(status), Ok(runs)) => Ok((look(wizard, &status.site, &runs), status.site)),
        (Err(error), _) | (_, Err(error)) => Err(refuse(error)),
    }
}

async fn page<H: Host>(
    setup: &Setup<H>,
    who: &Claimer,
    wish: &Wish,
    wrong: Option<&str>,
) -> Response {
    let (view, site) = match seen(setup, &who.wizard).await {
        Ok(seen) => seen,
        Err(response) => return response,
    };
    let next = match who.wizard.is_reopened() {
        true => "that is all: the members and the models stay as they are.",
        false => "you make the first member: yourself.",
    };
    let page = Page::new(Step::Lines).notice(who.notice.as_deref());
    match view {
        View::Trying(run) => {
            let body = html! {
                p { (run.plan.title) ". Without a word from you the box takes it back after a minute, so that a mistake locks nobody out." }
                section .card aria-label="How far it is" {
                    div .stack data-refresh=(PROGRESS) data-every="1000" { (trying(&run)) }
                }
            };
            page.body(body).reload(2).into_response()
        }
        View::Set => page.body(set(&site, wrong)).next(next).into_response(),
        View::Open(undone) => {
            let ports = setup.host().machine().await.map(|machine| machine.ports);
            let wrong = wrong.or(undone.as_deref());
            page.body(open(&ports.unwrap_or_default(), wish, wrong)).next(next).into_response()
        }
    }
}

fn trying(run: &Run) -> Markup {
    html! {
        (moving(run))
        @if let Some(seconds) = run.waits_for_confirmation() {
            form method="post" action=(CONFIRMED) {
                p { "You see this page, so the box is still reached. It waits " (seconds) " more seconds for your word." }
                button type="submit" { "Keep it" }
            }
        }
    }
}

fn open(ports: &[Port], wish: &Wish, wrong: Option<&str>) -> Markup {
    let names: Vec<String> = ports
        .iter()
        .map(|port| match port.connected {
            true => port.name.clone(),
            false => format!("{} (no cable)", port.name),
        })
        .collect();
    let hint = match names.is_empty() {
        true => "As the system calls it: enp1s0".to_owned(),
        false => format!("This machine has: {}", names.join(", ")),
    };
    let mut connected = ports.iter().filter(|port| port.connected);
    let only = connected.next().filter(|_| connected.next().is_none());
    let first = match wish.first.as_str() {
        "" => only.map_or("", |port| port.name.as_str()),
        first => first,
    };
    let first = Field {
        name: "first",
        label: "Network port of the usual line",
        hint: &hint,
        value: first,
        required: true,
        ..Field::default()
    };
    let second = Field {
        name: "second",
        label: "And of the second one",
        hint: "Empty where there is none",
        value: &wish.second,
        ..Field::default()
    };
    html! {
        @if let Some(why) = wrong { (page::error(why)) }
        p { "With a second line (another provider, or a 5G modem that shows itself as a network card) the box takes the other one by itself when the first fails, and members notice little." }
        form .card.stack method="post" action=(Step::Lines.path()) {
            h2 { "Two lines, or one that is paid by its amount" }
            (field(&first))
            (tick("first_metered", "The usual line is metered", "Large things wait while a metered line is used: models, backups to afar.", wish.first_metered.is_some()))
            (field(&second))
            (tick("second_metered", "The second line is metered", "For a mobile contract with so many gigabytes.", wish.second_metered.is_some()))
            p .hint { "What needs a name and a password to dial in (PPPoE) belongs into the modem. Until you say on the next page that it is good, it can be undone." }
            div { button type="submit" { "Look after these" } }
        }
        form .card method="post" action=(ON) {
            h2 { "One line, and nobody counts what goes through it" }
            p .hint { "The page Uplinks asks the same, whenever there is a second one." }
            div { button .quiet type="submit" { "Go on with one line" } }
        }
    }
}

fn set(site: &Site, wrong: Option<&str>) -> Markup {
    let mut lines: Vec<_> = site.uplinks.iter().collect();
    lines.sort_by_key(|(_, uplink)| uplink.order);
    html! {
        @if let Some(why) = wrong { (page::error(why)) }
        section .card {
            h2 { "The box looks after its lines" }
            ol {
                @for (name, uplink) in lines {
                    li { strong { (name) } ": port " code { (uplink.interface) } @if uplink.metered { ", metered" } }
                }
            }
            p .soft { "How each of them is, and everything else about them, is on the page Uplinks." }
        }
        form method="post" action=(ON) { button type="submit" { "Go on" } }
    }
}

#[cfg(test)]
mod tests {
    use polder_control::{Plan, RunId, Step as PlanStep, StepState};

    use super::*;

    fn run(id: u64, step: &str, state: RunState) -> Run {
        let steps = vec![PlanStep { id: step.into(), title: "A step".into() }];
        let plan = Plan { title: "A run".into(), steps };
        Run { id: RunId(id), plan, steps: vec![StepState::Running(None)], state }
    }

    #[test]
    fn what_is_so_counts_and_not_what_was_noted_of_it() {
        let mut site = Site::unclaimed(8443);
        let wizard = Wizard::new();
        assert_eq!(look(&wizard, &site, &[]), View::Open(None));
        let unnoted = [run(4, CONFIRM, RunState::Running)];
        assert_eq!(look(&wizard, &site, &unnoted), View::Trying(unnoted[0].clone()));
        assert!(trying(&unnoted[0]).into_string().contains("Keep it"));
        let others = [run(3, "import-model", RunState::Running)];
        assert_eq!(look(&wizard, &site, &others), View::Open(None));
        site.uplinks = Wish { first: "enp1s0".into(), ..Wish::default() }.uplinks().unwrap();
        assert_eq!(look(&wizard, &site, &[]), View::Set);
    }

    #[test]
    fn one_line_or_two_are_named_in_their_order_and_what_cannot_be_is_refused_in_words() {
        let site = Site::unclaimed(8443);
        let wish = |first: &str, second: &str| Wish {
            first: first.into(),
            second: second.into(),
            second_metered: Some("yes".into()),
            ..Wish::default()
        };
        let both = wish(" enp1s0 ", "wwan0").uplinks().unwrap();
        let said: Vec<_> = both.iter().map(|(n, u)| (n.as_str(), u.order, u.metered)).collect();
        assert_eq!(said, [("main", 1, false), ("second", 2, true)]);
        assert_eq!(wish("enp1s0", "").uplinks().unwrap().len(), 1);
        for bad in [wish("", "wwan0"), wish("enp1s0", "enp1s0"), wish("a/b", ""), wish("lo", "")] {
            let why = bad.change(&site).unwrap_err();
            assert!(!why.contains("site.toml"), "{why}");
        }
        let mut known = site;
        known.uplinks = both;
        assert!(wish("enp2s0", "").change(&known).unwrap_err().contains("page Uplinks"));
    }

    #[test]
    fn the_port_that_has_the_only_cable_is_filled_in() {
        let port = |name: &str, connected| Port { name: name.into(), connected };
        let ports = [port("enp1s0", false), port("enp2s0", true)];
        let page = open(&ports, &Wish::default(), None).into_string();
        assert!(page.contains("value=\"enp2s0\"") && page.contains("enp1s0 (no cable)"), "{page}");
        let both = [port("enp1s0", true), port("enp2s0", true)];
        assert!(!open(&both, &Wish::default(), None).into_string().contains("value=\"enp"));
        let unsafe_ = Wish { first: "<script>".into(), ..Wish::default() };
        assert!(!open(&both, &unsafe_, Some("<b>")).into_string().contains("<script>"));
    }
}
