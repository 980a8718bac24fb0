//! The ways to the internet: which one is used, how each is, and what stewards change about them. Every change is undone unless it
//! is confirmed: see the page of its run.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Reply, Request, Sockets, UplinkState, UplinkStatus, wan_status};
use polder_page::{Field, Page, Tone, badge, banner, empty, field, tick};
use polder_site::{
    InterfaceNameError, NameError, SiteChange, Target, TargetError, Uplink, UplinkName, Uplinks,
};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, piece, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};
use crate::pages::{dynamic_dns, ports};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    name: String,
    #[serde(default)]
    interface: String,
    #[serde(default)]
    order: String,
    #[serde(default)]
    metered: Option<String>,
    #[serde(default)]
    targets: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let dns = dynamic_dns::Wish::of(&gateway.status().site);
    Ok(page(&gateway, &who, html! {}, &Wish::default(), &dns, &ports::Wish::default()).await)
}

pub(super) async fn live(State(gateway): State<Arc<Gateway>>, Steward(_): Steward) -> Response {
    piece(now(&gateway).await)
}

/// Adds an uplink, or says something else about the one of that name.
pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let mut uplinks = gateway.status().site.uplinks.clone();
    match read(&wish, &uplinks) {
        Ok((name, uplink)) => {
            uplinks.insert(name, uplink);
            change(&gateway, &who, uplinks).await
        }
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why)) } });
            let dns = dynamic_dns::Wish::of(&gateway.status().site);
            let none = ports::Wish::default();
            let page = page(&gateway, &who, wrong, &wish, &dns, &none).await;
            Ok(with_status(StatusCode::BAD_REQUEST, page))
        }
    }
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let mut uplinks = gateway.status().site.uplinks.clone();
    let known = known(&uplinks, &name)?;
    uplinks.remove(&known);
    change(&gateway, &who, uplinks).await
}

/// Puts an uplink before all others.
pub(super) async fn prefer(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    let uplinks = gateway.status().site.uplinks.clone();
    let known = known(&uplinks, &name)?;
    change(&gateway, &who, first(uplinks, &known)).await
}

fn known(uplinks: &Uplinks, name: &str) -> Result<UplinkName, Trouble> {
    let found = uplinks.keys().find(|uplink| uplink.as_str() == name);
    found.cloned().ok_or_else(|| Trouble::not_found("there is no such uplink"))
}

fn first(mut uplinks: Uplinks, name: &UplinkName) -> Uplinks {
    let mut order: Vec<(bool, u8, UplinkName)> =
        uplinks.iter().map(|(n, uplink)| (n != name, uplink.order, n.clone())).collect();
    order.sort();
    for (place, (.., name)) in (1..).zip(order) {
        uplinks.entry(name).and_modify(|uplink| uplink.order = place);
    }
    uplinks
}

async fn change(gateway: &Gateway, who: &SignedIn, uplinks: Uplinks) -> Result<Response, Trouble> {
    let change = SiteChange::Uplinks(uplinks);
    let wanted = change.applied_to(&gateway.status().site);
    wanted.check().map_err(|e| Trouble::Say(StatusCode::BAD_REQUEST, e.to_string()))?;
    match gateway.ask(Request::Apply { change, by: who.actor() }).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

fn read(wish: &Wish, uplinks: &Uplinks) -> Result<(UplinkName, Uplink), String> {
    let name = wish.name.trim().parse().map_err(|e: NameError| e.to_string())?;
    let interface = wish.interface.trim().parse().map_err(|e: InterfaceNameError| e.to_string())?;
    let targets = wish.targets.split([' ', ',', '\n', '\r', '\t']).filter(|word| !word.is_empty());
    let targets: Result<Vec<Target>, TargetError> = targets.map(str::parse).collect();
    let last = uplinks.values().map(|uplink| uplink.order).max().unwrap_or(0);
    let order = match (wish.order.trim(), uplinks.get(&name)) {
        ("", Some(before)) => before.order,
        ("", None) => last.saturating_add(1),
        (number, _) => number
            .parse()
            .map_err(|_| format!("{number:?} is no place in an order; write 1 for the first"))?,
    };
    let metered = wish.metered.is_some();
    let ask_router = uplinks.get(&name).is_some_and(|before| before.ask_router);
    let targets = targets.map_err(|e| e.to_string())?;
    let uplink = Uplink { interface, order, metered, ask_router, targets };
    let mut all = uplinks.clone();
    all.insert(UplinkName::clone(&name), uplink.clone());
    let mut site = polder_site::Site::unclaimed(1);
    site.uplinks = all;
    site.check().map_err(|error| error.to_string().replacen("site.toml: ", "", 1))?;
    Ok((name, uplink))
}

/// For the dashboard: one card, where the site names uplinks.
pub(super) async fn card(gateway: &Gateway) -> Markup {
    if gateway.status().site.uplinks.is_empty() {
        return html! {};
    }
    html! {
        section.card {
            div.row.spread { h2 { "The internet" } a href="/uplinks" { "Uplinks" } }
            (now(gateway).await)
        }
    }
}

/// What is so now.
async fn now(gateway: &Gateway) -> Markup {
    if gateway.status().site.uplinks.is_empty() {
        return empty(
            "The box uses the network as this machine has it. Add an uplink, and it looks after them.",
        );
    }
    let Some(status) = wan_status(&Sockets::of(&gateway.state)).await else {
        return banner(
            Tone::Warn,
            html! { p { "Whoever looks after the uplinks does not answer just now. The way out stays as it was; the box's log says why." } },
        );
    };
    html! {
        p { (status.sentence())
            @if let Some(uplink) = status.in_use() { " " span.soft { "It is used because " (status.why) @if uplink.metered { "; large transfers wait, because it is metered" } "." } }
        }
        @if let Some((name, seconds)) = &status.back {
            p.soft { "Back to " (name) " in " (seconds) " s at most, if all stays as it is. Nobody is cut off by that." }
        }
        @if let Some(told) = &status.told { p.soft { (sentence(told)) } }
        @if let Some(trouble) = &status.trouble { (banner(Tone::Bad, html! { p { (sentence(trouble)) } })) }
        @for uplink in &status.uplinks {
            div.stack {
                div.row.spread {
                    strong { (uplink.name) }
                    div.row {
                        @if uplink.in_use { (badge(Tone::Good, "in use")) }
                        @if uplink.metered { (badge(Tone::Plain, "metered")) }
                        (state_badge(uplink.state))
                    }
                }
                p.soft.small { (sentence(&uplink.sentence())) " " code { (uplink.interface) } (addresses(uplink)) }
            }
        }
    }
}

fn addresses(uplink: &UplinkStatus) -> Markup {
    html! { @for address in &uplink.addresses { " " code { (address) } } }
}

fn state_badge(state: UplinkState) -> Markup {
    match state {
        UplinkState::Good => badge(Tone::Good, "works"),
        UplinkState::Poor => badge(Tone::Warn, "poor"),
        UplinkState::Returning => badge(Tone::Warn, "coming back"),
        UplinkState::Silent => badge(Tone::Bad, "silent"),
        UplinkState::NoAddress => badge(Tone::Bad, "no address"),
        UplinkState::NoCable => badge(Tone::Bad, "no cable"),
    }
}

/// Network interfaces of this machine, for whoever has to name one.
fn interfaces() -> Vec<String> {
    let list = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        list.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names
}

pub(super) async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    wish: &Wish,
    dns: &dynamic_dns::Wish,
    address: &ports::Wish,
) -> Response {
    let uplinks = gateway.status().site.uplinks.clone();
    let mut listed: Vec<(&UplinkName, &Uplink)> = uplinks.iter().collect();
    listed.sort_by_key(|(_, uplink)| uplink.order);
    let here = interfaces();
    let interface_hint = match here.is_empty() {
        true => "As the system calls it: enp1s0".to_owned(),
        false => format!("This machine has: {}", here.join(", ")),
    };
    let inside = now(gateway).await;
    let addresses = ports::section(gateway, address).await;
    let body = html! {
        (top)
        section.card {
            h2 { "Now" }
            div.stack data-refresh="/uplinks/live" data-every="2000" { (inside) }
        }
        @for (place, (name, uplink)) in listed.iter().enumerate() {
            section.card {
                div.row.spread {
                    h2 { (name) }
                    @if place == 0 { (badge(Tone::Plain, "preferred")) }
                }
                p.soft.small { "Interface " code { (uplink.interface) } @if uplink.metered { ", metered" } ". Asked whether it works: " @for target in uplink.probed() { code { (target) } " " } }
                div.row {
                    @if place > 0 {
                        form method="post" action=(format!("/uplinks/{name}/prefer")) {
                            button.quiet type="submit" { "Prefer this one" }
                        }
                    }
                    form method="post" action=(format!("/uplinks/{name}/remove"))
                        data-confirm=(format!("Look after “{name}” no more? Its interface stays as the machine has it.")) {
                        button.danger type="submit" { "Remove" }
                    }
                }
            }
        }
        section.card {
            h2 { "Members outside" }
            p { "A provider's network often lets nobody in. Then the box calls a relay, and members reach it there: " a href="/outside" { "Outside" } "." }
        }
        section.card {
            h2 { "Add an uplink, or change one" }
            p.soft { "An uplink is a network interface with an address, from a router or a modem or a fixed one (below): fibre, cable, or a 5G modem that shows itself as a network card. What needs a name and password to dial in (PPPoE) belongs into the modem. The name of one that is there changes that one." }
            form.stack method="post" action="/uplinks" {
                div.fields {
                    (field(&Field { name: "name", label: "Name", hint: "fibre, mobile", value: &wish.name, required: true, ..Field::default() }))
                    (field(&Field { name: "interface", label: "Network interface", hint: &interface_hint, value: &wish.interface, required: true, ..Field::default() }))
                    (field(&Field { name: "order", label: "Place in the order", hint: "1 is preferred. Empty: after all others", value: &wish.order, ..Field::default() }))
                    (field(&Field { name: "targets", label: "Whom to ask whether it works", hint: "Two or more addresses, as 9.9.9.9:443 or https://example.org/. Empty: public name servers", value: &wish.targets, ..Field::default() }))
                }
                (tick("metered", "Metered: imports wait while this one is used", "For a mobile contract with so many gigabytes.", wish.metered.is_some()))
                p.soft { "A change has to be confirmed within a minute, over the network as it is then. Without that it is undone, so that a mistake locks nobody out." }
                button type="submit" { "Do it" }
            }
        }
        (addresses)
        @if !uplinks.is_empty() { (dynamic_dns::section(gateway, dns)) }
    };
    let page = Page {
        title: "Uplinks",
        lead: Some(
            "The ways to the internet. When one fails, the box takes another one by itself.",
        ),
        reload: Some(20),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/uplinks"), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(name: &str, interface: &str) -> Wish {
        Wish { name: name.into(), interface: interface.into(), ..Wish::default() }
    }

    #[test]
    fn a_new_uplink_comes_last_and_one_that_is_there_keeps_its_place() {
        let mut uplinks = Uplinks::new();
        for (name, interface) in [("fibre", "enp1s0"), ("mobile", "wwan0")] {
            let (name, uplink) = read(&wish(name, interface), &uplinks).unwrap();
            uplinks.insert(name, uplink);
        }
        let orders = |uplinks: &Uplinks| uplinks.values().map(|u| u.order).collect::<Vec<_>>();
        assert_eq!(orders(&uplinks), [1, 2]);
        let again = Wish { metered: Some("on".into()), ..wish("fibre", "enp2s0") };
        let (_, fibre) = read(&again, &uplinks).unwrap();
        assert_eq!((fibre.order, fibre.metered, fibre.interface.as_str()), (1, true, "enp2s0"));
        let preferred = first(uplinks, &"mobile".parse().unwrap());
        assert_eq!(orders(&preferred), [2, 1]);
        for (bad, says) in [
            (wish("fibre", "wwan0"), "same interface"),
            (wish("a b", "x"), "uplink name"),
            (wish("a", "x/y"), "network interface"),
            (Wish { targets: "9.9.9.9:443".into(), ..wish("a", "x") }, "2 to 6"),
            (Wish { order: "first".into(), ..wish("a", "x") }, "write 1 for the first"),
        ] {
            let why = read(&bad, &preferred).unwrap_err();
            assert!(why.contains(says) && !why.contains("site.toml"), "{why}");
        }
        let both = Wish { targets: " 9.9.9.9:443,\r\n[::2]:443 ".into(), ..wish("a", "x") };
        assert_eq!(read(&both, &preferred).unwrap().1.targets.len(), 2);
    }
}
