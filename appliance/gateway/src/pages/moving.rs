//! Moving house: what depends on where the box is, a sheet to take along, and what the box found when it was switched on elsewhere;
//! for stewards.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Reply, Request};
use polder_page::{Page, StepMark, Tone, badge, banner, facts, hidden, steps, table};
use polder_pki::machine_addresses;
use polder_site::{Site, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::house::{Fate, Item, host, inventory, settled};
use crate::pages::frame::{Trouble, answer, nav, sentence};
use crate::pages::ports;
use crate::pages::who::{SignedIn, Steward};

#[derive(Deserialize)]
pub(super) struct Seen {
    #[serde(default)]
    seen: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    Ok(page(&gateway, &who, html! {}))
}

/// Makes the addresses of the new house those of the door: first the steps are shown, then they are done.
pub(super) async fn settle(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Seen { seen }): Form<Seen>,
) -> Result<Response, Trouble> {
    let door = gateway.status().site.door.clone();
    let Some(listen) = settled(&door.listen, &machine_addresses()) else {
        let why = "the addresses of the door are here, so there is nothing to settle";
        return Ok(page(&gateway, &who, banner(Tone::Bad, html! { p { (sentence(why)) } })));
    };
    let change = SiteChange::Door { listen, names: door.names };
    if seen.is_empty() {
        let Reply::Preview { plan, .. } = gateway.ask(Request::Preview(change)).await? else {
            return Err(Trouble::odd_answer());
        };
        let body = html! {
            section.card {
                h2 { (plan.title) }
                (steps("Steps", &plan.steps.iter().map(|s| (StepMark::Later, s.title.as_str())).collect::<Vec<_>>()))
                form.row method="post" action="/moving" {
                    (hidden("seen", "yes"))
                    button type="submit" { "Do it" }
                    a.button.quiet href="/moving" { "Back" }
                }
            }
        };
        let page = Page { title: "Moving house", narrow: true, ..Page::default() };
        return Ok(answer(&page, &nav(&gateway, &who.member, "/moving"), body));
    }
    match gateway.ask(Request::Apply { change, by: who.actor() }).await? {
        Reply::Accepted(run) => Ok(Redirect::to(&format!("/runs/{}", run.0)).into_response()),
        _ => Err(Trouble::odd_answer()),
    }
}

/// The sheet for the new house, to be printed.
pub(super) async fn sheet(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let site = gateway.status().site.clone();
    let fingerprint = gateway.ca().fingerprint;
    let items = all(&gateway, &site);
    let body = html! {
        section.card {
            h2 { "The box " (site.name) ", in its new house" }
            (facts(&[
                ("Link, by its name", html! { code { (link(&site)) } }),
                ("Link, by its address", html! { "https://" span { "______________________" } ":" (site.door.port) " (the box's screen shows it)" }),
                ("Its authority", html! { code { (fingerprint) } }),
            ]))
            ol {
                li { "Before: finish here what the list below says, make a backup, and turn the box off on its own screen or on the dashboard." }
                li { "Carry the box, its UPS and its backup disk. Keep this sheet and the emergency kit with somebody else than the box." }
                li { "There: mains, then the network cable into the router. The router should give addresses by itself (DHCP); if it does not, press n at the machine, then the number of the port, and type one. Where the box had a fixed address, have that port ask the router in the same way." }
                li { "Wait five minutes. The screen shows the new link. Nobody can claim the box: it has its owner." }
                li { "If the name is not found, write it into the router beside the address, or use the address once." }
                li { "Sign in, open Dashboard, Moving house, and press \"Keep these addresses\" if the page offers it." }
                li { "Look at each line below." }
            }
        }
        section.card {
            h2 { "To be looked at" }
            (lines(items.iter().filter(|item| item.fate == Fate::Look)))
        }
    };
    let page = Page { title: "Sheet for the new house", narrow: true, ..Page::default() };
    Ok(answer(&page, &nav(&gateway, &who.member, "/moving"), body))
}

fn all(gateway: &Gateway, site: &Site) -> Vec<Item> {
    let relay = gateway.outside.relay().map(|(host, _)| host);
    inventory(site, &machine_addresses(), relay.as_deref())
}

fn link(site: &Site) -> String {
    format!("https://{}.local:{}", site.name, site.door.port)
}

fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Response {
    let site = gateway.status().site.clone();
    let stand_ins = gateway.stand_ins.borrow().clone();
    let items = all(gateway, &site);
    let body = html! {
        (top)
        @if !stand_ins.is_empty() { (arrived(&site, &stand_ins)) }
        section.card {
            h2 { "Before the move" }
            p { "Nothing is set up anew in another house: members, keys, names and the certificate authority go along on the box's own disk, and nobody can claim it there." }
            p { a.button href="/moving/sheet" { "Sheet for the new house, to print" } }
        }
        section.card {
            h2 { "Addresses of the machine" }
            p { (match ports::in_short(&site, &machine_addresses()) { Some(fixed) => format!("Fixed here: {fixed}. In a network that has other addresses nobody reaches the box at these: have the port ask the router before the move, or there on the machine's own screen (key n)."), None => "Every port asks the router, unless a seed or this machine's own system says otherwise. Where no router gives addresses, one is typed on the machine's own screen (key n).".to_owned() }) }
            p { a href="/uplinks#ports" { "Addresses of this machine" } }
        }
        section.card { h2 { "To be looked at" } (lines(items.iter().filter(|item| item.fate == Fate::Look))) }
        section.card { h2 { "What the box does by itself" } (lines(items.iter().filter(|item| item.fate == Fate::Follows))) }
        section.card { h2 { "What stays as it is" } (lines(items.iter().filter(|item| item.fate == Fate::Stays))) }
    };
    let page = Page {
        title: "Moving house",
        lead: Some(
            "The box is carried to another network. What goes on working there, and what has to be looked at.",
        ),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/moving"), body)
}

/// The box was switched on where its addresses are not.
fn arrived(site: &Site, stand_ins: &[IpAddr]) -> Markup {
    html! {
        section.card {
            div.row.spread { h2 { "The box is elsewhere" } (badge(Tone::Warn, "for the time being")) }
            p { "The addresses that it was told to answer on are gone. It answers on those that it has now, with the same members, keys, names and certificate authority:" }
            ul {
                li { code { (link(site)) } }
                @for ip in stand_ins { li { code { "https://" (host(*ip)) ":" (site.door.port) } } }
            }
            form.row method="post" action="/moving" { button type="submit" { "Keep these addresses" } }
            p.soft { "Without that it goes on so, and goes back to its former addresses when they are there again." }
        }
    }
}

fn lines<'a>(items: impl Iterator<Item = &'a Item>) -> Markup {
    let rows: Vec<Vec<Markup>> = items
        .map(|item| {
            vec![
                html! { (item.what) },
                html! { code { (item.now) } },
                html! { (item.then) @if let Some(page) = item.page { " " a href=(page) { "Where it is set" } } },
            ]
        })
        .collect();
    html! {
        @if rows.is_empty() { p.soft { "Nothing." } }
        @else { (table("What depends on the house", &["What", "Now", "In the new house"], &rows)) }
    }
}
