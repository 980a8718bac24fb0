//! Step 6: whether the box lives off a battery (a UPS) when the mains is away: what was found, and one button to use it.
//!
//! The same finder is on the page Power, for whoever said "later" or bought one since: [`Offers`].

use std::net::IpAddr;

use axum::Form;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{Plan, Run, RunState, SecretText, Supply};
use polder_page::{Field, field};
use polder_power::around::{Heard, is_here};
use polder_power::find::Found;
use polder_site::{PowerPlan, Site, SiteChange, UpsAddressError, UpsLine, UpsLineError, UpsRole};
use serde::Deserialize;

use crate::host::Host;
use crate::import::{NEXT, moving};
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step, Wizard};

/// Where "go on" leads.
pub(crate) const ON: &str = "/setup/power/on";
/// The moving part, for the script.
pub(crate) const PROGRESS: &str = "/setup/power/progress";

/// Where else to look; nothing yet, where the one that the box has is not the right one.
#[derive(Deserialize, Default)]
pub(crate) struct Asked {
    at: Option<String>,
}

/// What a button of [`Offers`] says.
#[derive(Deserialize, Default)]
pub struct Chosen {
    /// `usb`, `snmp:10.0.0.9`, `ups@10.0.0.2`.
    #[serde(default)]
    pub ups: String,
    /// What the box says to that upsd; empty leaves it as it is.
    #[serde(default)]
    pub password: String,
}

impl Chosen {
    /// What the box does from then on. Everything else that was decided about its power stays. A UPS of another machine's is that
    /// machine's to look after.
    pub fn plan(&self, before: Option<PowerPlan>) -> Result<PowerPlan, String> {
        let fresh = match self.ups.contains('@') {
            true => {
                let ups = self.ups.parse().map_err(|e: UpsAddressError| e.to_string())?;
                let role = if is_here(&ups) { UpsRole::Primary } else { UpsRole::Secondary };
                PowerPlan { role, ..PowerPlan::of(ups) }
            }
            false => PowerPlan::attached(
                self.ups.parse::<UpsLine>().map_err(|e: UpsLineError| e.to_string())?,
            ),
        };
        Ok(match before {
            Some(plan) => {
                let PowerPlan { ups, attached, role, battery_since, .. } =
                    fresh.with_battery_of(Some(&plan));
                PowerPlan { ups, attached, role, battery_since, ..plan }
            }
            None => fresh,
        })
    }

    /// The password, if one was typed.
    pub fn password(&self) -> Option<SecretText> {
        let password = self.password.trim();
        (!password.is_empty()).then(|| SecretText::new(password))
    }
}

/// Every UPS that was found, each with a button to live off it.
pub struct Offers {
    /// Plugged in by USB.
    pub usb: Vec<Found>,
    /// What NUT on this machine listens to.
    pub here: Vec<Heard>,
    /// What using the one on USB would do, or why Polder cannot listen to it by itself.
    pub own: Result<Plan, String>,
    /// Where somebody asked to look, and what is there.
    pub asked: Option<(String, Result<Vec<Heard>, String>)>,
}

impl Offers {
    /// The change that asks whether Polder can listen to a UPS of this machine's own.
    pub fn own_change() -> SiteChange {
        SiteChange::Power(PowerPlan::attached(UpsLine::Usb))
    }

    /// As part of a page whose address is `path`, which takes [`Chosen`] at `to`.
    pub fn render(&self, path: &str, to: &str) -> Markup {
        let place = self.asked.as_ref().map_or("", |(place, _)| place);
        let where_ = Field {
            name: "at",
            label: "Its address",
            value: place,
            hint: "Of the machine that it is plugged into and that runs NUT, such as 10.0.0.2; or of the UPS's own network card",
            required: true,
            ..Field::default()
        };
        html! {
            section .card {
                h2 { "Plugged into this machine" }
                @for found in &self.usb {
                    div .stack {
                        p { (found.words()) }
                        @match &self.own {
                            Ok(plan) => {
                                (does(plan))
                                form method="post" action=(to) { button type="submit" name="ups" value="usb" { "Live off it" } }
                                p .hint { "How long its battery holds, the box says as soon as it listens to it." }
                            }
                            Err(why) => { p { (page::sentence(why)) } }
                        }
                    }
                }
                @for heard in &self.here { (offer(heard, to)) }
                @if self.usb.is_empty() && self.here.is_empty() {
                    p { "The box looked and found none: nothing on USB says that it is a UPS." }
                    p .hint { "Put its USB cable into this machine, wait ten seconds, and look again." }
                }
                p { a .button.quiet href=(path) { "Look again" } }
            }
            section .card {
                h2 { "In the network" }
                @match &self.asked {
                    Some((_, Ok(heard))) => { @for heard in heard { (offer(heard, to)) } }
                    Some((place, Err(why))) => {
                        (page::error(why))
                        @if let (Ok(address), Ok(_)) = (place.trim().parse::<IpAddr>(), &self.own) {
                            form method="post" action=(to) { button .quiet type="submit" name="ups" value=(format!("snmp:{address}")) { "It is the UPS's own network card" } }
                            p .hint { "The box then asks the card itself (SNMP 1, community public), and takes it back if it is not heard within a minute." }
                        }
                    }
                    None => { p .soft { "Another machine's, which tells this box when to stop; or one with a network card of its own." } }
                }
                form .stack method="get" action=(path) {
                    (field(&where_))
                    div { button .quiet type="submit" { "Look there" } }
                }
            }
        }
    }
}

/// One that somebody's NUT listens to.
fn offer(heard: &Heard, to: &str) -> Markup {
    let ups = heard.address.to_string();
    let id: String = ups.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let id = format!("password-{id}");
    html! {
        div .stack {
            p { (heard.words()) }
            form .stack method="post" action=(to) {
                details {
                    summary { "With a password" }
                    div .field {
                        label for=(id) { "This box's password at that NUT" }
                        input type="password" name="password" id=(id) autocomplete="off" aria-describedby=(format!("{id}-hint"));
                        div .hint id=(format!("{id}-hint")) {
                            "It is in upsd.users there, for the user polder. Without it the box hears when the mains goes and stops in time; "
                            @if heard.is_here() { "but it can tell no other machine, and test no battery." } @else { "but the other machine does not wait for it." }
                        }
                    }
                }
                div { button type="submit" name="ups" value=(ups) { "Live off it" } }
            }
        }
    }
}

/// The plan, for whoever wants to know before they press.
fn does(plan: &Plan) -> Markup {
    html! {
        details {
            summary { "What the box will do" }
            p { (plan.title) }
            ol { @for step in &plan.steps { li { (step.title) } } }
        }
    }
}

/// How far the step is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum View {
    /// Nothing is decided; perhaps what was tried did not work.
    Open(Option<String>),
    /// The box begins to listen.
    Listening(Run),
    /// It listens.
    Heard,
}

/// How far it is, going by the site and the supervisor's runs. One that was begun and, for a crash, not noted is known by what it does.
pub(crate) fn look(wizard: &Wizard, site: &Site, runs: &[Run]) -> View {
    let listens = |run: &&Run| {
        run.state == RunState::Running && run.plan.steps.iter().any(|step| step.id == "watch-ups")
    };
    if let Some(run) = runs.iter().find(listens) {
        return View::Listening(run.clone());
    }
    let ours = runs.iter().find(|run| Some(run.id) == wizard.power_run()).map(|run| &run.state);
    match (ours, &site.power) {
        (Some(RunState::Failed(why)), _) => View::Open(Some(why.clone())),
        (_, Some(_)) => View::Heard,
        (_, None) => View::Open(None),
    }
}

/// The page.
pub(crate) async fn show<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Query(asked): Query<Asked>,
) -> Response {
    match who.elsewhere_before(Step::Power) {
        Some(elsewhere) => elsewhere,
        None => page(&setup, &who, asked.at, None).await,
    }
}

/// Takes a button, and has the box listen.
pub(crate) async fn choose<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(chosen): Form<Chosen>,
) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Power) {
        return elsewhere;
    }
    let site = match setup.host().status().await {
        Ok(status) => status.site,
        Err(error) => return refuse(error),
    };
    let begun = match chosen.plan(site.power) {
        Ok(plan) => setup.live_off(plan, chosen.password()).await.map_err(|e| e.to_string()),
        Err(why) => Err(why),
    };
    match begun {
        Ok(()) => go(Step::Power),
        Err(why) => {
            (StatusCode::BAD_REQUEST, page(&setup, &who, None, Some(&why)).await).into_response()
        }
    }
}

/// On to the next step: it listens, or there is none.
pub(crate) async fn on<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Power) {
        return elsewhere;
    }
    match setup.happen(Event::PowerSettled).await {
        Ok(wizard) => go(wizard.step()),
        Err(error) => refuse(error),
    }
}

/// The moving part of the page, for the script; 204 when there is something else to show.
pub(crate) async fn progress<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match seen(&setup, &who.wizard).await {
        Ok((View::Listening(run), _)) => Html(moving(&run).into_string()).into_response(),
        Ok(_) => ([(NEXT, Step::Power.path())], StatusCode::NO_CONTENT).into_response(),
        Err(response) => response,
    }
}

async fn seen<H: Host>(
    setup: &Setup<H>,
    wizard: &Wizard,
) -> Result<(View, Option<Supply>), Response> {
    match tokio::join!(setup.host().status(), setup.host().runs()) {
        (Ok(status), Ok(runs)) => Ok((look(wizard, &status.site, &runs), status.supply)),
        (Err(error), _) | (_, Err(error)) => Err(refuse(error)),
    }
}

async fn page<H: Host>(
    setup: &Setup<H>,
    who: &Claimer,
    at: Option<String>,
    wrong: Option<&str>,
) -> Response {
    let (view, supply) = match seen(setup, &who.wizard).await {
        Ok(seen) => seen,
        Err(response) => return response,
    };
    let next = "you say whether there is a second way to the internet.";
    let page = Page::new(Step::Power).notice(who.notice.as_deref());
    match view {
        View::Listening(run) => {
            let title = run.plan.title.clone();
            let body = html! {
                p { (title) ". The box looks whether it is really heard; that may take a minute. If not, it takes it back." }
                section .card aria-label="How far it is" {
                    div .stack data-refresh=(PROGRESS) data-every="1000" { (moving(&run)) }
                }
            };
            page.body(body).reload(2).into_response()
        }
        View::Heard if at.is_none() && wrong.is_none() => {
            page.body(heard(supply.as_ref())).next(next).into_response()
        }
        View::Heard => page.body(open(setup, at, wrong, true).await).next(next).into_response(),
        View::Open(failed) => {
            let wrong = wrong.or(failed.as_deref().filter(|_| at.is_none()));
            // Another one that was tried in vain leaves the one before.
            let has_one = supply.is_some();
            page.body(open(setup, at, wrong, has_one).await).next(next).into_response()
        }
    }
}

async fn open<H: Host>(
    setup: &Setup<H>,
    at: Option<String>,
    wrong: Option<&str>,
    has_one: bool,
) -> Markup {
    let host = setup.host();
    let asked = async {
        let place = at.filter(|place| !place.trim().is_empty())?;
        let heard = host.batteries_at(place.clone()).await;
        Some((place, heard))
    };
    let (around, own, asked) =
        tokio::join!(host.batteries(), host.preview(Offers::own_change()), asked);
    let own = own.map_err(|error| error.to_string());
    let offers = Offers { usb: around.usb, here: around.here, own, asked };
    html! {
        @if let Some(why) = wrong { (page::error(why)) }
        p { "With a UPS the box outlives a power cut: answers come to their end, everything is written down, and the machine turns itself off before the battery is empty. When the mains is back it goes on." }
        p { "Without one a power cut ends it in the middle of what it does. What members have, and what was decided, stays either way." }
        (offers.render(Step::Power.path(), Step::Power.path()))
        form .card method="post" action=(ON) {
            h2 { @if has_one { "The one it has is the right one" } @else { "None, or not now" } }
            p .hint { "The page Power looks for it in the same way, whenever you like." }
            div { button .quiet type="submit" { @if has_one { "Go on" } @else { "Go on without one" } } }
        }
    }
}

fn heard(supply: Option<&Supply>) -> Markup {
    let lasts = supply.and_then(|supply| supply.runtime);
    let charge = supply.and_then(|supply| supply.charge);
    html! {
        section .card {
            h2 { "The box listens to its UPS" }
            p role="status" { (supply.map_or("It was not heard yet.", |supply| supply.words.as_str())) }
            p {
                @if let Some(charge) = charge { "Its battery has " (charge) " %. " }
                @match lasts {
                    Some(seconds) => { "By its own count it holds " (polder_power::words::say(std::time::Duration::from_secs(seconds))) " with what hangs on it now." }
                    None => { "How long it holds, it does not say; the box goes by the charge." }
                }
            }
            p .soft { "At which charge the box stops, and what else it does, is on the page Power." }
        }
        form method="post" action=(ON) { button type="submit" { "Go on" } }
        p { a href=(format!("{}?at=", Step::Power.path())) { "It is another one" } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polder_control::{RunId, Step as PlanStep};

    fn run(id: u64, step: &str, state: RunState) -> Run {
        let steps = vec![PlanStep { id: step.into(), title: "A step".into() }];
        let plan = Plan { title: "A run".into(), steps };
        Run { id: RunId(id), plan, steps: Vec::new(), state }
    }

    #[test]
    fn what_is_so_counts_and_not_what_was_noted_of_it() {
        let mut site = Site::unclaimed(8443);
        let wizard = Wizard::new();
        assert_eq!(look(&wizard, &site, &[]), View::Open(None));
        let others = [run(3, "import-model", RunState::Running)];
        assert_eq!(look(&wizard, &site, &others), View::Open(None));
        let unnoted = [run(4, "watch-ups", RunState::Running)];
        assert_eq!(look(&wizard, &site, &unnoted), View::Listening(unnoted[0].clone()));
        site.power = Some(PowerPlan::attached(UpsLine::Usb));
        assert_eq!(look(&wizard, &site, &[]), View::Heard);
    }

    #[test]
    fn a_button_says_which_ups_and_the_rest_stays_as_it_was() {
        let plan = |ups: &str, before| {
            Chosen { ups: ups.to_owned(), password: String::new() }.plan(before)
        };
        let own = plan("usb", None).unwrap();
        assert_eq!((own.attached, own.role), (Some(UpsLine::Usb), UpsRole::Primary));
        assert_eq!(plan("ups@localhost", None).unwrap().role, UpsRole::Primary);
        let before = PowerPlan { low_charge: 45, ..PowerPlan::attached(UpsLine::Usb) };
        let other = plan("cellar@10.0.0.2", Some(before)).unwrap();
        assert_eq!((other.role, other.low_charge), (UpsRole::Secondary, 45));
        assert_eq!((other.attached, other.ups.to_string().as_str()), (None, "cellar@10.0.0.2"));
        for bad in ["", "serial:sda", "@", "ups@", "a b@c", "snmp:here"] {
            assert!(plan(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn where_polder_cannot_listen_by_itself_there_is_no_button_that_could_not_work() {
        let found = Found { name: "Eaton 5E".into(), driver: "usbhid-ups", id: "0463:ffff".into() };
        let mut offers = Offers {
            usb: vec![found],
            here: Vec::new(),
            own: Err("set NUT up".to_owned()),
            asked: Some(("10.0.0.9".to_owned(), Err("nobody answers".to_owned()))),
        };
        let page = offers.render("/p", "/p").into_string();
        assert!(
            page.contains("An Eaton 5E is plugged in") && page.contains("Set NUT up."),
            "{page}"
        );
        assert!(!page.contains("Live off it") && !page.contains("snmp:"), "{page}");
        offers.own = Ok(Plan { title: "Live off it".into(), steps: Vec::new() });
        let page = offers.render("/p", "/p").into_string();
        assert!(page.contains("value=\"usb\"") && page.contains("value=\"snmp:10.0.0.9\""));
    }
}
