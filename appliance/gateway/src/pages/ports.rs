//! Addresses of the machine's own network ports: by DHCP, or fixed. A part of the page Uplinks; every change is undone unless it is
//! confirmed.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Machine, Reply, Request};
use polder_page::{Field, Tone, badge, banner, empty, field};
use polder_site::{InterfaceName, InterfaceNameError, PortAddress, Site, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};
use crate::pages::{dynamic_dns, uplinks};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    port: String,
    #[serde(default)]
    addresses: String,
    #[serde(default)]
    gateways: String,
    #[serde(default)]
    dns: String,
}

/// Gives a port fixed addresses.
pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    match read(&wish, &gateway.status().site) {
        Ok(wanted) => change(&gateway, &who, wanted).await,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why)) } });
            let dns = dynamic_dns::Wish::of(&gateway.status().site);
            let none = uplinks::Wish::default();
            let page = uplinks::page(&gateway, &who, wrong, &none, &dns, &wish).await;
            Ok(with_status(StatusCode::BAD_REQUEST, page))
        }
    }
}

/// Has a port ask a router.
pub(super) async fn by_dhcp(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(port): Path<String>,
) -> Result<Response, Trouble> {
    let port = port.parse().map_err(|_| Trouble::not_found("there is no such network port"))?;
    change(&gateway, &who, SiteChange::Port { port, address: PortAddress::default() }).await
}

async fn change(
    gateway: &Gateway,
    who: &SignedIn,
    change: SiteChange,
) -> Result<Response, Trouble> {
    match gateway.ask(Request::Apply { change, by: who.actor() }).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

fn read(wish: &Wish, site: &Site) -> Result<SiteChange, String> {
    let port = wish.port.trim().parse().map_err(|e: InterfaceNameError| e.to_string())?;
    let address = PortAddress::typed(&wish.addresses, &wish.gateways, &wish.dns);
    let address = address.map_err(|fault| fault.to_string())?;
    if address.by_dhcp() {
        return Err(format!(
            "{port} needs an address here, such as 192.168.1.10/24; the button \"Ask a router\" beside the port has it ask for one"
        ));
    }
    let change = SiteChange::Port { port, address };
    let wanted = change.applied_to(site).check();
    wanted.map_err(|error| error.to_string().replacen("site.toml: ports: ", "", 1))?;
    Ok(change)
}

/// The part of the page.
pub(super) async fn section(gateway: &Gateway, wish: &Wish) -> Markup {
    let machine = match gateway.ask(Request::Machine).await {
        Ok(Reply::Machine(machine)) => Some(machine),
        _ => None,
    };
    let seeded = std::fs::read_to_string(gateway.state.join(polder_seed::BOUND)).ok();
    let seeded = seeded.and_then(|name| name.trim().parse().ok());
    shown(&gateway.status().site, machine.as_ref(), seeded.as_ref(), wish)
}

/// `seeded`: the port that the seed of the first start gave an address.
fn shown(
    site: &Site,
    machine: Option<&Machine>,
    seeded: Option<&InterfaceName>,
    wish: &Wish,
) -> Markup {
    // Only an image knows about its driver.
    let image = machine.filter(|machine| machine.driver.is_some());
    let Some(machine) = image else {
        return html! {
            section.card id="ports" {
                h2 { "Addresses of this machine" }
                p { "Polder is a program on this machine, whose own system gives its network ports their addresses: by DHCP, or as it is set there. On Polder's own image they are set here." }
            }
        };
    };
    let here = |name: &InterfaceName| machine.ports.iter().any(|port| port.name == name.as_str());
    html! {
        section.card id="ports" {
            h2 { "Addresses of this machine" }
            p.soft { "Each network port asks the router for an address (DHCP), unless it has one of its own here. What is plugged into the others is left alone." }
            @if machine.ports.is_empty() { (empty("This machine has no network port.")) }
            @for port in &machine.ports {
                @let name = port.name.parse::<InterfaceName>().ok();
                @let fixed = name.as_ref().and_then(|name| site.ports.get(name));
                @let of_seed = fixed.is_none() && name.as_ref() == seeded;
                div.stack {
                    div.row.spread {
                        strong { code { (port.name) } }
                        div.row {
                            @if of_seed || fixed.is_some_and(|fixed| !fixed.by_dhcp()) { (badge(Tone::Plain, "fixed")) }
                            @if port.connected { (badge(Tone::Good, "connected")) } @else { (badge(Tone::Warn, "no cable")) }
                        }
                    }
                    p.soft.small { (how(fixed, of_seed)) }
                    @if of_seed || fixed.is_some_and(|fixed| !fixed.by_dhcp()) {
                        form method="post" action=(format!("/uplinks/ports/{}/dhcp", port.name))
                            data-confirm=(format!("Have {} ask a router for its address?", port.name)) {
                            button.quiet type="submit" { "Ask a router" }
                        }
                    }
                }
            }
            @for (name, port) in site.ports.iter().filter(|(name, _)| !here(name)) {
                p.soft.small { code { (name) } " is not in this machine now. It would have " (port) "." }
            }
            h3 { "Give a port a fixed address" }
            form.stack method="post" action="/uplinks/ports" {
                div.fields {
                    (field(&Field { name: "port", label: "Network port", hint: &ports_hint(machine), value: &wish.port, required: true, ..Field::default() }))
                    (field(&Field { name: "addresses", label: "Address and length of the network", hint: "192.168.1.10/24. One of IPv4, one of IPv6, or both with a space between", value: &wish.addresses, required: true, ..Field::default() }))
                    (field(&Field { name: "gateways", label: "Router", hint: "Its own address, as 192.168.1.1. Empty: this port leads nowhere else", value: &wish.gateways, ..Field::default() }))
                    (field(&Field { name: "dns", label: "Name servers", hint: "Usually the router: 192.168.1.1", value: &wish.dns, ..Field::default() }))
                }
                p.soft { "If this is the port that you use now, open the box at its new address within a minute and confirm. Without that the change is undone. Whoever stands at the machine can do all of this on its screen, too: key n." }
                button type="submit" { "Do it" }
            }
        }
    }
}

fn how(fixed: Option<&PortAddress>, of_seed: bool) -> String {
    match fixed {
        Some(port) if !port.by_dhcp() => format!("It always has {port}."),
        Some(_) => "It asks a router.".to_owned(),
        None if of_seed => {
            "It has the address that the seed of the first start gave it. What you say here counts from then on."
                .to_owned()
        }
        None => "It asks a router.".to_owned(),
    }
}

fn ports_hint(machine: &Machine) -> String {
    let names: Vec<&str> = machine.ports.iter().map(|port| port.name.as_str()).collect();
    match names[..] {
        [] => "As the system calls it: enp1s0".to_owned(),
        _ => format!("This machine has: {}", names.join(", ")),
    }
}

/// For the page Moving house: what is so now, in a few words.
pub(super) fn in_short(site: &Site, here: &[IpAddr]) -> Option<String> {
    let fixed = site.ports.iter().filter(|(_, port)| !port.by_dhcp());
    let lines: Vec<String> = fixed
        .map(|(name, port)| {
            let there = port.addresses.iter().any(|own| here.contains(&own.ip));
            let word = if there { "" } else { " (not there now)" };
            format!("{name}: {port}{word}")
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(image: bool) -> Machine {
        let port = |name: &str, connected| polder_control::Port { name: name.into(), connected };
        Machine {
            cpu: "A processor".into(),
            threads: 2,
            memory: 1 << 30,
            disk_free: 0,
            disk_total: 0,
            gpus: Vec::new(),
            driver: image.then(|| "no card".into()),
            idle_cards: 0,
            ports: vec![port("enp1s0", true), port("enp2s0", false)],
        }
    }

    #[test]
    fn elsewhere_than_on_the_image_the_machines_own_system_has_the_addresses() {
        let site = Site::unclaimed(8443);
        for machine in [Some(machine(false)), None] {
            let page = shown(&site, machine.as_ref(), None, &Wish::default()).into_string();
            assert!(page.contains("whose own system gives its network ports their addresses"));
            assert!(!page.contains("<form"), "{page}");
        }
    }

    #[test]
    fn each_port_is_shown_with_how_it_gets_its_address() {
        let mut site = Site::unclaimed(8443);
        let second: InterfaceName = "enp2s0".parse().unwrap();
        let words = |site: &Site, seeded: Option<&InterfaceName>| {
            shown(site, Some(&machine(true)), seeded, &Wish::default()).into_string()
        };
        let page = words(&site, None);
        assert_eq!(page.matches("It asks a router.").count(), 2, "{page}");
        assert!(!page.contains("/dhcp"), "{page}");
        let page = words(&site, Some(&second));
        assert!(page.contains("the seed of the first start"), "{page}");
        assert!(page.contains("/uplinks/ports/enp2s0/dhcp"), "{page}");
        site.ports.insert(second.clone(), PortAddress::default());
        let page = words(&site, Some(&second));
        assert!(!page.contains("the seed of the first start"), "the site wins: {page}");
        let fixed = PortAddress::line("10.0.0.5/8").unwrap();
        site.ports = [("gone0".parse().unwrap(), fixed.clone()), (second, fixed)].into();
        let page = words(&site, None);
        assert!(page.contains("It always has 10.0.0.5/8."), "{page}");
        assert!(page.contains("is not in this machine now"), "{page}");
        assert_eq!(
            in_short(&site, &["10.0.0.5".parse().unwrap()]).as_deref(),
            Some("enp2s0: 10.0.0.5/8; gone0: 10.0.0.5/8")
        );
        assert!(in_short(&site, &[]).unwrap().contains("not there now"));
    }

    #[test]
    fn what_cannot_work_is_said_before_anybody_is_asked() {
        let site = Site::unclaimed(8443);
        let wish = |port: &str, addresses: &str, gateways: &str| Wish {
            port: port.into(),
            addresses: addresses.into(),
            gateways: gateways.into(),
            dns: String::new(),
        };
        assert!(read(&wish(" enp1s0 ", "10.0.0.5/8", "10.0.0.1"), &site).is_ok());
        for (wish, says) in [
            (wish("en p1", "10.0.0.5/8", ""), "not the name of a network interface"),
            (wish("enp1s0", "", ""), "Ask a router"),
            (wish("enp1s0", "10.0.0.5", ""), "with the length of its network"),
            (wish("enp1s0", "10.0.0.5/8", "192.168.1.1"), "not in the box's own network"),
        ] {
            let why = read(&wish, &site).unwrap_err();
            assert!(why.contains(says) && !why.contains("site.toml"), "{why}");
        }
    }
}
