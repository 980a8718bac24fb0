//! Step 5: what the box is called, and from where it can be reached.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Form;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{RunId, RunState};
use polder_page::{Field, field};
use polder_site::{BoxName, Site, SiteChange};

use crate::host::{Distance, Host, Interface, SetupError, Trust, Visitor};
use crate::import::NEXT;
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step};

/// How long one change may hold up the next.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the person filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Answer {
    name: String,
    network: bool,
    addresses: Vec<String>,
}

impl Answer {
    fn of(fields: Vec<(String, String)>) -> Self {
        let mut answer = Self::default();
        for (field, value) in fields {
            match field.as_str() {
                "name" => answer.name = value.trim().to_ascii_lowercase(),
                "reach" => answer.network = value == "network",
                "address" => answer.addresses.push(value),
                _ => {}
            }
        }
        answer
    }

    /// The box as it stands, as if somebody had filled it in; with every address ticked, for whoever
    /// then chooses the network.
    fn now(site: &Site, interfaces: &[Interface]) -> Self {
        let open: Vec<String> = site.door.listen.iter().map(IpAddr::to_string).collect();
        let every = interfaces.iter().map(|i| i.address.to_string());
        let network = !site.is_trial();
        Self {
            name: site.name.to_string(),
            network,
            addresses: if network { open } else { every.collect() },
        }
    }
}

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Err(elsewhere) = who.reached(Step::Address) {
        return elsewhere;
    }
    page(&setup, &who, None, None).await
}

/// Takes the answer and makes it true.
pub(crate) async fn decide<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    if let Err(elsewhere) = who.reached(Step::Address) {
        return elsewhere;
    }
    let answer = Answer::of(fields);
    let (status, interfaces) = match tokio::join!(setup.host().status(), setup.host().interfaces())
    {
        (Ok(status), Ok(interfaces)) => (status, interfaces),
        (Err(error), _) | (_, Err(error)) => return refuse(error),
    };
    let (name, listen) = match decided(&answer, &status.site, &interfaces, &who.visitor) {
        Ok(decided) => decided,
        Err(why) => {
            let page = page(&setup, &who, Some(answer), Some(&why)).await;
            return (StatusCode::BAD_REQUEST, page).into_response();
        }
    };
    let opens_anew = listen != status.site.door.listen;
    if let Err(error) = make_true(&setup, &status.site, &name, listen).await {
        return page(&setup, &who, Some(answer), Some(&error.to_string())).await;
    }
    match setup.happen(Event::Addressed(name)).await {
        Ok(wizard) if opens_anew => {
            let on = wizard.step();
            Page::new(Step::Address).body(door_opens(on)).into_response()
        }
        Ok(wizard) => go(wizard.step()),
        Err(error) => refuse(error),
    }
}

/// The name and the addresses that the answer means. This machine itself can always reach the box,
/// and so can the person who fills this in.
fn decided(
    answer: &Answer,
    site: &Site,
    interfaces: &[Interface],
    visitor: &Visitor,
) -> Result<(BoxName, Vec<IpAddr>), String> {
    let name: BoxName = answer.name.parse().map_err(|e: polder_site::NameError| e.to_string())?;
    let mut listen: Vec<IpAddr> =
        site.door.listen.iter().copied().filter(IpAddr::is_loopback).collect();
    if listen.is_empty() {
        listen.push(Ipv4Addr::LOCALHOST.into());
    }
    if answer.network {
        let before = listen.len();
        for text in &answer.addresses {
            let address: Option<IpAddr> = text.parse().ok();
            let real = interfaces.iter().map(|i| i.address).find(|a| Some(*a) == address);
            let real = real.ok_or_else(|| {
                let text: String = text.chars().take(60).collect();
                format!("{text:?} is not an address of this machine any more; pick from the list")
            })?;
            if !listen.contains(&real) {
                listen.push(real);
            }
        }
        if listen.len() == before {
            return Err(
                "no address is picked; pick at least one, or choose \"only this machine\"".into()
            );
        }
    }
    if visitor.distance != Distance::ThisMachine && !listen.contains(&visitor.reached) {
        return Err(format!(
            "you are using this page through {}, so without that address you would lock yourself out; pick it too",
            visitor.reached
        ));
    }
    Ok((name, listen))
}

/// Applies what differs; the door last, because it may open anew.
async fn make_true<H: Host>(
    setup: &Setup<H>,
    site: &Site,
    name: &BoxName,
    listen: Vec<IpAddr>,
) -> Result<(), SetupError> {
    let host = setup.host();
    if *name != site.name {
        let run = host.apply(SiteChange::Rename(name.clone())).await?;
        finished(host, run).await?;
    }
    if listen != site.door.listen {
        let names = site.door.names.clone();
        host.apply(SiteChange::Door { listen, names }).await?;
    }
    Ok(())
}

/// Waits until a run is over, within reason: a change is only taken once the one before is done.
async fn finished<H: Host>(host: &H, run: RunId) -> Result<(), SetupError> {
    let over = async {
        loop {
            let runs = host.runs().await?;
            match runs.iter().find(|r| r.id == run).map(|r| &r.state) {
                Some(RunState::Running) => tokio::time::sleep(Duration::from_millis(100)).await,
                Some(RunState::Failed(why)) => return Err(SetupError::Refused(why.clone())),
                Some(RunState::Done | RunState::Cancelled) | None => return Ok(()),
            }
        }
    };
    // Too slow is no failure: the next change says so if it cannot begin.
    tokio::time::timeout(PATIENCE, over).await.unwrap_or(Ok(()))
}

async fn page<H: Host>(
    setup: &Setup<H>,
    who: &Claimer,
    answer: Option<Answer>,
    error: Option<&str>,
) -> Response {
    let host = setup.host();
    let asked = tokio::join!(host.status(), host.interfaces(), host.trust());
    let (status, interfaces, trust) = match asked {
        (Ok(status), Ok(interfaces), Ok(trust)) => (status, interfaces, trust),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return refuse(error),
    };
    let answer = answer.unwrap_or_else(|| Answer::now(&status.site, &interfaces));
    let next = if who.wizard.is_reopened() {
        "that is all: the members and the models stay as they are."
    } else {
        "you make the first member: yourself."
    };
    Page::new(Step::Address)
        .notice(who.notice.as_deref())
        .body(body(&answer, &status.site, &interfaces, &trust, error))
        .next(next)
        .into_response()
}

fn body(
    answer: &Answer,
    site: &Site,
    interfaces: &[Interface],
    trust: &Trust,
    error: Option<&str>,
) -> Markup {
    let hint = format!(
        "Small letters, digits and dashes. On most home and office networks others then find it as \
         https://NAME.local:{}.",
        site.door.port
    );
    let name = Field {
        name: "name",
        label: "What is the box called?",
        value: &answer.name,
        hint: &hint,
        required: true,
        ..Field::default()
    };
    html! {
        @if let Some(error) = error { (page::error(error)) }
        form .card method="post" action=(Step::Address.path()) {
            (field(&name))
            fieldset {
                legend { "Who can reach it?" }
                (reach("here", "Only this machine", "For a trial. You can let others in later.", !answer.network))
                @if interfaces.is_empty() {
                    p .soft { "This machine is on no network just now, so nobody else could reach it." }
                } @else {
                    (reach(
                        "network",
                        "Others on these networks too",
                        "Whoever is on them can open the sign-in page; only members get further. \
                         Pick the addresses at which the box answers:",
                        answer.network,
                    ))
                    @for (index, interface) in interfaces.iter().enumerate() {
                        @let id = format!("address-{index}");
                        @let text = interface.address.to_string();
                        div .field.tick {
                            input type="checkbox" name="address" id=(id) value=(text)
                                checked[answer.addresses.contains(&text)];
                            label for=(id) { (text) span .soft { " (" (interface.name) ")" } }
                        }
                    }
                }
            }
            button type="submit" { "Go on" }
        }
        (how_to_trust(trust))
    }
}

fn reach(value: &str, label: &str, hint: &str, checked: bool) -> Markup {
    let id = format!("reach-{value}");
    html! {
        div .field.tick {
            input type="radio" name="reach" id=(id) value=(value) required checked[checked]
                aria-describedby=(format!("{id}-hint"));
            label for=(id) { (label) }
            p .hint id=(format!("{id}-hint")) { (hint) }
        }
    }
}

/// Why browsers complain about a box of one's own, and what to do about it.
pub(crate) fn how_to_trust(trust: &Trust) -> Markup {
    html! {
        details {
            summary { "Why a browser may warn about this box" }
            div .stack {
                p {
                    "The box vouches for itself: no company knows it. So each computer is told once to trust it. "
                    a href=(trust.page) { "Here is how" } "."
                }
                p { "To be sure that it is your box and not somebody in between, compare this fingerprint:" }
                p { code { (trust.fingerprint) } }
            }
        }
    }
}

fn door_opens(on: Step) -> Markup {
    html! {
        p { "The box opens its door anew, which takes a few seconds." }
        div role="status" data-refresh="/setup/address/opening" data-every="2000" {
            p .soft { "Wait a moment, then go on. You stay signed in to the set-up." }
        }
        p { a .button href=(on.path()) { "Go on" } }
        p .hint { "If your browser says that it cannot reach the box, wait a moment and load the page again." }
    }
}

/// For the script on that page: leads on once the door is open and nothing moves any more.
pub(crate) async fn opening<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match setup.host().runs().await {
        Ok(runs) if runs.iter().all(|run| run.state != RunState::Running) => {
            ([(NEXT, who.wizard.step().path())], StatusCode::NO_CONTENT).into_response()
        }
        Ok(_) => Html(html! { p .soft { "It is being opened…" } }.into_string()).into_response(),
        Err(error) => refuse(error),
    }
}
