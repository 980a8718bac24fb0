//! Step 5: what the box is called, and from where it can be reached.
//!
//! A change takes a moment, and the box may go down in it. So what the person wants is noted first, and
//! then made true a change at a time by whoever looks: the page that waits, its script, or the person
//! pressing "Go on".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::Form;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use maud::{Markup, html};
use polder_control::{Run, RunState};
use polder_page::{Field, field};
use polder_site::{BoxName, Site, SiteChange};

use crate::host::{Distance, Host, Trust};
use crate::import::NEXT;
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Address, Event, Step, Wizard};

/// How far the box is from what the person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Door {
    /// Nobody wants anything.
    Closed,
    /// Something is being done.
    Moving,
    /// This is the next thing to do.
    Move(SiteChange),
    /// What was begun failed; one sentence.
    Stuck(String),
    /// It is as wanted.
    Open,
}

/// How far the box is from what the person wants, going by the site and the supervisor's runs.
pub(crate) fn look(wizard: &Wizard, site: &Site, runs: &[Run]) -> Door {
    let Some(wanted) = wizard.wanted() else { return Door::Closed };
    if runs.iter().any(|run| run.state == RunState::Running) {
        return Door::Moving;
    }
    let ours = runs.iter().find(|run| Some(run.id) == wizard.door_run()).map(|run| &run.state);
    if let Some(RunState::Failed(why)) = ours {
        return Door::Stuck(why.clone());
    }
    // The addresses first: they may keep the old name, by which the person came here.
    if site.door.listen != wanted.listen || site.door.names != wanted.names {
        let (listen, names) = (wanted.listen.clone(), wanted.names.clone());
        return Door::Move(SiteChange::Door { listen, names });
    }
    if site.name != wanted.name {
        return Door::Move(SiteChange::Rename(wanted.name.clone()));
    }
    Door::Open
}

/// From where the box can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Reach {
    /// From this machine only.
    #[default]
    Here,
    /// At the addresses that are picked.
    Picked,
    /// At whatever addresses the machine has, now and later: a router may give it another one.
    Everywhere,
}

/// What the person filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Answer {
    name: String,
    reach: Reach,
    addresses: Vec<String>,
}

impl Answer {
    fn of(fields: Vec<(String, String)>) -> Self {
        let mut answer = Self::default();
        for (field, value) in fields {
            match field.as_str() {
                "name" => answer.name = value.trim().to_ascii_lowercase(),
                "reach" => {
                    answer.reach = match value.as_str() {
                        "everywhere" => Reach::Everywhere,
                        "network" => Reach::Picked,
                        _ => Reach::Here,
                    }
                }
                "address" => answer.addresses.push(value),
                _ => {}
            }
        }
        answer
    }

    /// The box as it stands, as if somebody had filled it in; with every address ticked, for whoever
    /// then chooses the network.
    fn now(site: &Site, addresses: &[IpAddr]) -> Self {
        let open: Vec<String> = site.door.listen.iter().map(IpAddr::to_string).collect();
        let every = addresses.iter().map(IpAddr::to_string);
        let reach = if site.door.listen.iter().any(IpAddr::is_unspecified) {
            Reach::Everywhere
        } else if site.is_trial() {
            Reach::Here
        } else {
            Reach::Picked
        };
        let addresses = if reach == Reach::Picked { open } else { every.collect() };
        Self { name: site.name.to_string(), reach, addresses }
    }
}

/// The page: the form, or the wait for what it asked.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Address) {
        return elsewhere;
    }
    match setup.open_door().await {
        Ok((_, Door::Closed)) => page(&setup, &who, None, None).await,
        Ok((_, Door::Stuck(why))) => match setup.happen(Event::DoorStuck).await {
            Ok(_) => page(&setup, &who, None, Some(&why)).await,
            Err(error) => refuse(error),
        },
        Ok((wizard, Door::Open)) => go(wizard.step()),
        Ok((_, Door::Moving | Door::Move(_))) => opening().reload(2).into_response(),
        Err(error) => refuse(error),
    }
}

/// Takes the answer and begins to make it true.
pub(crate) async fn decide<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Address) {
        return elsewhere;
    }
    let answer = Answer::of(fields);
    let asked = tokio::join!(setup.host().status(), setup.host().addresses());
    let (site, addresses) = match asked {
        (Ok(status), Ok(addresses)) => (status.site, addresses),
        (Err(error), _) | (_, Err(error)) => return refuse(error),
    };
    let wanted = match decided(&answer, &site, &addresses, &who) {
        Ok(wanted) => wanted,
        Err(why) => {
            let page = page(&setup, &who, Some(answer), Some(&why)).await;
            return (StatusCode::BAD_REQUEST, page).into_response();
        }
    };
    let begun = match setup.happen(Event::Wants(wanted)).await {
        Ok(_) => setup.open_door().await,
        Err(error) => Err(error),
    };
    match begun {
        Ok((wizard, Door::Open)) => go(wizard.step()),
        // Not a redirect: by the time the browser follows it, the box may have another certificate.
        Ok(_) => opening().into_response(),
        Err(error) => page(&setup, &who, Some(answer), Some(&error.to_string())).await,
    }
}

/// For the script on the page that waits: does the next thing, leads on when there is none.
pub(crate) async fn progress<H: Host>(State(setup): State<Setup<H>>, _who: Claimer) -> Response {
    match setup.open_door().await {
        Ok((_, Door::Moving | Door::Move(_))) => Html(waiting().into_string()).into_response(),
        Ok(_) => ([(NEXT, "/setup")], StatusCode::NO_CONTENT).into_response(),
        Err(error) => refuse(error),
    }
}

/// The name and the addresses that the answer means. This machine itself can always reach the box,
/// and so can the person who fills this in.
fn decided(
    answer: &Answer,
    site: &Site,
    addresses: &[IpAddr],
    who: &Claimer,
) -> Result<Address, String> {
    let name: BoxName = answer.name.parse().map_err(|e: polder_site::NameError| e.to_string())?;
    let mut listen: Vec<IpAddr> =
        site.door.listen.iter().copied().filter(IpAddr::is_loopback).collect();
    if listen.is_empty() {
        listen.push(Ipv4Addr::LOCALHOST.into());
    }
    if answer.reach == Reach::Everywhere {
        // This machine itself is among them.
        listen = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    }
    if answer.reach == Reach::Picked {
        let before = listen.len();
        for text in &answer.addresses {
            let given: Option<IpAddr> = text.parse().ok();
            let real = given.filter(|address| addresses.contains(address)).ok_or_else(|| {
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
    let visitor = &who.visitor;
    let covered = |own: &IpAddr| own.is_unspecified() || *own == visitor.reached;
    if visitor.distance != Distance::ThisMachine && !listen.iter().any(covered) {
        return Err(format!(
            "you are using this page through {}, so without that address you would lock yourself out; pick it too",
            visitor.reached
        ));
    }
    let mut names = site.door.names.clone();
    let old = format!("{}.local", site.name);
    let host = who.host.rsplit_once(':').map_or(who.host.as_str(), |(host, _)| host);
    if name != site.name && host == old && !names.contains(&old) {
        // The person came by the old name: it stays good.
        names.push(old);
    }
    Ok(Address { name, listen, names })
}

async fn page<H: Host>(
    setup: &Setup<H>,
    who: &Claimer,
    answer: Option<Answer>,
    error: Option<&str>,
) -> Response {
    let host = setup.host();
    let asked = tokio::join!(host.status(), host.addresses(), host.trust());
    let (site, addresses, trust) = match asked {
        (Ok(status), Ok(addresses), Ok(trust)) => (status.site, addresses, trust),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return refuse(error),
    };
    let answer = answer.unwrap_or_else(|| Answer::now(&site, &addresses));
    Page::new(Step::Address)
        .notice(who.notice.as_deref())
        .body(body(&answer, &site, &addresses, &trust, error))
        .next("what the box does when the mains goes away: it looks for a battery (UPS).")
        .into_response()
}

fn body(
    answer: &Answer,
    site: &Site,
    addresses: &[IpAddr],
    trust: &Trust,
    error: Option<&str>,
) -> Markup {
    // Browsers take 443 for granted.
    let port = if site.door.port == 443 { String::new() } else { format!(":{}", site.door.port) };
    let hint = format!(
        "Small letters, digits and dashes. On most home and office networks others then find it as \
         https://NAME.local{port}."
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
                (reach("here", "Only this machine", answer.reach == Reach::Here, html! {
                    p { "For a trial. You can let others in later." }
                }))
                @if addresses.is_empty() {
                    p .soft { "This machine is on no network just now, so nobody else could reach it." }
                } @else {
                    (reach("everywhere", "Others on its networks too", answer.reach == Reach::Everywhere, html! {
                        p {
                            "Whoever is on them can open the sign-in page; only members get further. It stays "
                            "so when your router gives the box another address."
                        }
                    }))
                    (reach("network", "Only at some of its addresses", answer.reach == Reach::Picked, html! {
                        p { "For a machine with several networks. Pick the addresses at which the box answers:" }
                        @for (index, address) in addresses.iter().enumerate() {
                            (tick(index, *address, &answer.addresses))
                        }
                    }))
                }
            }
            button type="submit" { "Go on" }
        }
        (before_it_is_named(trust))
    }
}

fn reach(value: &str, label: &str, checked: bool, more: Markup) -> Markup {
    let id = format!("reach-{value}");
    html! {
        div .field.tick {
            input type="radio" name="reach" id=(id) value=(value) required checked[checked]
                aria-describedby=(format!("{id}-hint"));
            label for=(id) { (label) }
            div .hint.stack id=(format!("{id}-hint")) { (more) }
        }
    }
}

fn tick(index: usize, address: IpAddr, picked: &[String]) -> Markup {
    let (id, text) = (format!("address-{index}"), address.to_string());
    html! {
        div .field.tick {
            input type="checkbox" name="address" id=(id) value=(text) checked[picked.contains(&text)];
            label for=(id) { (text) }
        }
    }
}

/// Why browsers complain, to somebody who must not trust the box's certificate on their computers
/// yet: with another name it gets another.
fn before_it_is_named(trust: &Trust) -> Markup {
    html! {
        details {
            summary { "Why a browser may warn about this box" }
            div .stack {
                p {
                    "The box vouches for itself: no company knows it. The last page says how a computer is told "
                    "to trust it: a box that gets another name vouches for itself anew, so that comes after."
                }
                p { "To be sure until then that it is your box and not somebody in between, compare this fingerprint with the one on its screen:" }
                p { code { (trust.fingerprint) } }
            }
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

/// The page that waits until the box is as wanted.
fn opening() -> Page {
    Page::new(Step::Address).body(html! {
        p { "The box takes its name and opens its addresses." }
        div role="status" data-refresh="/setup/address/opening" data-every="2000" { (waiting()) }
        p { a .button href=(Step::Address.path()) { "Go on" } }
        p .hint {
            "Your browser may warn about the certificate once more: a box that changes its name vouches for itself anew."
        }
    })
}

fn waiting() -> Markup {
    html! { p .soft { "Wait a moment. This page goes on by itself." } }
}
