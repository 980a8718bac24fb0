//! Step 2: what this machine is, and what it can run.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{Machine, Port};
use polder_page::{bytes, card, facts};
use polder_power::around::Around;

use crate::catalogue;
use crate::disk;
use crate::host::Host;
use crate::page::Page;
use crate::restore;
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step};

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    let host = setup.host();
    let (machine, disk, ups) = match tokio::join!(host.machine(), host.disk(), host.batteries()) {
        (Ok(machine), Ok(disk), ups) => (machine, disk, ups),
        (Err(error), ..) | (_, Err(error), _) => return refuse(error),
    };
    let (button, next) = match disk {
        None => {
            ("Go on: choose a model", "you choose a model. Nothing is fetched before you say so.")
        }
        Some(_) => ("Go on: what opens the disk", "you say what opens this machine's disk."),
    };
    Page::new(Step::Machine)
        .notice(who.notice.as_deref())
        .body(body(&machine, &ups, button))
        .next(next)
        .into_response()
}

/// The person has seen it. Where the disk is the box's own affair, they decide about that first.
pub(crate) async fn seen<H: Host>(State(setup): State<Setup<H>>, _who: Claimer) -> Response {
    match setup.host().disk().await {
        Ok(Some(_)) => return Redirect::to(disk::PATH).into_response(),
        Ok(None) => {}
        Err(error) => return refuse(error),
    }
    match setup.happen(Event::MachineSeen).await {
        Ok(_) => go(Step::Model),
        Err(error) => refuse(error),
    }
}

/// What is plugged in; whether the box lives off it is a step of its own.
fn battery(ups: &Around) -> Markup {
    html! {
        @for ups in &ups.usb { (ups.name) ", plugged in by USB. " }
        @for ups in &ups.here { (ups.name) ", to which NUT on this machine listens. " }
        @if ups.usb.is_empty() && ups.here.is_empty() { span .soft { "none found; a later step looks again, in the network too" } }
        @else { span .soft { "A later step puts it to use." } }
    }
}

/// Where a line to the internet may be plugged in. Which of them is used, and in which order, a steward says on the page Uplinks.
fn lines(ports: &[Port]) -> Markup {
    let list = |connected| {
        let names = ports.iter().filter(|port| port.connected == connected);
        names.map(|port| port.name.as_str()).collect::<Vec<_>>().join(" and ")
    };
    let (with, without) = (list(true), list(false));
    html! {
        @if !with.is_empty() { "a cable is in " (with) ". " }
        @if !without.is_empty() { "No cable in " (without) ", or what it leads to is off. " }
        span .soft {
            @match ports.len() {
                0 => "This machine does not show its network ports. ",
                1 => "A second line, such as a 5G modem that shows itself as a network card, takes over when the first fails. ",
                _ => "With a line in two of them, one takes over when the other fails. ",
            }
            "You name them on the page Uplinks when the box is set up. A line that wants a name and a password (PPPoE) gets them in its modem."
        }
    }
}

fn body(machine: &Machine, ups: &Around, button: &str) -> Markup {
    let missing = || html! { span .soft { "not on this machine" } };
    let mut rows = vec![
        ("Processor", html! { (machine.cpu) ", " (machine.threads) " threads" }),
        ("Memory", html! { (bytes(machine.memory)) }),
        ("Disk", html! { (bytes(machine.disk_free)) " free of " (bytes(machine.disk_total)) }),
    ];
    if machine.gpus.is_empty() {
        rows.push(("Graphics processor", missing()));
    }
    for gpu in &machine.gpus {
        let memory = gpu.memory.map(|n| format!(", {} of its own memory", bytes(n)));
        rows.push(("Graphics processor", html! { (gpu.name) (memory.unwrap_or_default()) }));
    }
    if let Some(driver) = &machine.driver {
        rows.push(("Its driver", html! { (driver) }));
    }
    rows.push(("Internet lines", lines(&machine.ports)));
    rows.push(("Battery (UPS)", battery(ups)));
    rows.push((
        "Backups",
        html! { span .soft { "at the end you print the sheet that brings everything back, and say where backups go" } },
    ));
    html! {
        (card("What is in it", facts(&rows)))
        (card("What it can run", catalogue::summary(machine)))
        form method="post" action=(Step::Machine.path()) {
            button type="submit" { (button) }
        }
        p { a href=(restore::PATH) { "Restore a box from its backups instead" } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_line_is_asked_for_where_there_is_none_and_put_to_use_where_there_is() {
        let port = |name: &str, connected| Port { name: name.to_owned(), connected };
        let one = lines(&[port("enp1s0", true)]).into_string();
        assert!(one.contains("a cable is in enp1s0") && one.contains("5G modem"), "{one}");
        let two = lines(&[port("enp1s0", true), port("enp2s0", false)]).into_string();
        assert!(two.contains("No cable in enp2s0") && two.contains("PPPoE"), "{two}");
        assert!(lines(&[]).into_string().contains("does not show"));
    }

    #[test]
    fn a_ups_that_is_plugged_in_is_named_and_none_is_said_too() {
        let (name, driver, id) =
            ("Back-UPS ES 700".to_owned(), "usbhid-ups", "051d:0002".to_owned());
        let usb = vec![polder_power::find::Found { name, driver, id }];
        let shown = battery(&Around { usb, here: Vec::new() }).into_string();
        assert!(shown.contains("Back-UPS ES 700") && shown.contains("puts it to use"), "{shown}");
        assert!(battery(&Around::default()).into_string().contains("none found"));
    }
}
