//! Step 2: what this machine is, and what it can run.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use polder_control::Machine;
use polder_page::{bytes, card, facts};

use crate::catalogue;
use crate::host::Host;
use crate::page::Page;
use crate::setup::{Claimer, Setup, go, refuse};
use crate::wizard::{Event, Step};

/// The page.
pub(crate) async fn show<H: Host>(State(setup): State<Setup<H>>, who: Claimer) -> Response {
    match setup.host().machine().await {
        Ok(machine) => Page::new(Step::Machine)
            .notice(who.notice.as_deref())
            .body(body(&machine))
            .next("you choose a model. Nothing is fetched before you say so.")
            .into_response(),
        Err(error) => refuse(error),
    }
}

/// The person has seen it.
pub(crate) async fn seen<H: Host>(State(setup): State<Setup<H>>, _who: Claimer) -> Response {
    match setup.happen(Event::MachineSeen).await {
        Ok(_) => go(Step::Model),
        Err(error) => refuse(error),
    }
}

fn body(machine: &Machine) -> Markup {
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
    rows.push(("Second internet line", missing()));
    rows.push(("Battery (UPS)", missing()));
    rows.push(("Spare box for backups", missing()));
    html! {
        (card("What is in it", facts(&rows)))
        (card("What it can run", catalogue::summary(machine)))
        form method="post" action=(Step::Machine.path()) {
            button type="submit" { "Go on: choose a model" }
        }
    }
}
