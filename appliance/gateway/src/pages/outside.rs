//! How members outside reach the box, for stewards: the relay's pass, how the lines to it are, and under which names.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{PortState, Request, Sockets, WanStatus, wan_status};
use polder_page::{Field, Page, Tone, badge, banner, empty, field, hidden};
use polder_reach::dial::{LineState, Tried, Via};
use polder_reach::{Pass, PassError, Place};
use polder_site::SiteChange;
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, piece, sentence, with_status};
use crate::pages::models;
use crate::pages::who::{SignedIn, Steward};

#[derive(Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    pass: String,
}

#[derive(Deserialize)]
pub(super) struct Name {
    name: String,
}

/// Whether a router is asked.
#[derive(Deserialize)]
pub(super) struct Port {
    uplink: String,
    #[serde(default)]
    ask: Option<String>,
}

pub(super) async fn show(State(gateway): State<Arc<Gateway>>, Steward(who): Steward) -> Response {
    page(&gateway, &who, html! {}).await
}

pub(super) async fn live(State(gateway): State<Arc<Gateway>>, Steward(_): Steward) -> Response {
    piece(html! { (now(&gateway)) (ports(&gateway).await) })
}

/// Has the router of an uplink asked to let callers in, or asked no more.
pub(super) async fn port(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Port { uplink, ask }): Form<Port>,
) -> Result<Response, Trouble> {
    let site = gateway.status().site.clone();
    let known = site.uplinks.keys().find(|name| name.as_str() == uplink);
    let uplink = known.cloned().ok_or_else(|| Trouble::not_found("there is no such uplink"))?;
    let change = SiteChange::AskRouter { uplink, ask: ask.is_some() };
    models::accepted(gateway.ask(Request::Apply { change, by: who.actor() }).await?)
}

/// Takes a pass. It is a secret: what was pasted is shown to nobody again.
pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let pass = match wish.pass.parse::<Pass>() {
        Ok(pass) => pass,
        Err(why @ PassError) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why.to_string())) } });
            return Ok(with_status(StatusCode::BAD_REQUEST, page(&gateway, &who, wrong).await));
        }
    };
    let relay = format!("{}:{}", pass.host, pass.port);
    keep(&gateway, Some(pass)).await?;
    who.record(&gateway, "gave the box a relay's pass", &relay).await;
    Ok(Redirect::to("/outside").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let Some((host, port)) = gateway.outside.relay() else {
        return Ok(Redirect::to("/outside").into_response());
    };
    keep(&gateway, None).await?;
    who.record(&gateway, "took the relay's pass away", &format!("{host}:{port}")).await;
    Ok(Redirect::to("/outside").into_response())
}

/// Lets the box answer to a name that the relay passes on.
pub(super) async fn answer_to(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Name { name }): Form<Name>,
) -> Result<Response, Trouble> {
    if !names(&gateway).contains(&name) {
        return Err(Trouble::not_found("the relay passes on no such name"));
    }
    let door = gateway.status().site.door.clone();
    let names = [door.names, vec![name]].concat();
    let change = SiteChange::Door { listen: door.listen, names };
    models::accepted(gateway.ask(Request::Apply { change, by: who.actor() }).await?)
}

async fn keep(gateway: &Arc<Gateway>, pass: Option<Pass>) -> Result<(), Trouble> {
    let gateway = gateway.clone();
    let kept = tokio::task::spawn_blocking(move || gateway.outside.keep(pass)).await;
    match kept {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Trouble::Say(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the pass could not be kept: {error}"),
        )),
        Err(error) => Err(Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// What the relay passes on, as it said to any line.
fn names(gateway: &Gateway) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for state in gateway.outside.lines().into_values() {
        if let LineState::Held { names, .. } = state {
            all.extend(names);
        }
    }
    all.sort();
    all.dedup();
    all
}

/// For the dashboard: one card, where there is a relay.
pub(super) fn card(gateway: &Gateway) -> Markup {
    if gateway.outside.relay().is_none() {
        return html! {};
    }
    html! {
        section.card {
            div.row.spread { h2 { "Members outside" } a href="/outside" { "Change" } }
            (now(gateway))
        }
    }
}

fn now(gateway: &Gateway) -> Markup {
    let Some((host, port)) = gateway.outside.relay() else {
        return html! {
            (empty("Members outside reach the box only where its router lets them in. A relay needs no router that does."))
            p.soft { "Without a relay nobody knocks from outside: the box cannot tell whether callers get through to it, whatever its router says. Try it from a telephone that is not in this network." }
        };
    };
    let (lines, status) = (gateway.outside.lines(), gateway.status());
    html! {
        p { "The box holds lines to the relay " code { (host) ":" (port) } "." }
        @for (via, state) in &lines {
            div.row.spread {
                div {
                    strong { (match via { Via::Any => "The way out", Via::Interface(name) => name.as_str() }) }
                    p.soft.small { (words(state)) }
                }
                (mark(state))
            }
        }
        @for name in names(gateway) {
            div.row.spread {
                p { "Outside it is called " code { "https://" (name) } }
                @if status.site.answers_to(&name) { (badge(Tone::Good, "the box answers")) }
                @else {
                    form method="post" action="/outside/name"
                        data-confirm="Answer to it? The box makes a new certificate authority for this name, which every device has to be told to trust once more. With a public certificate for the name none has to." {
                        (hidden("name", &name))
                        button.quiet type="submit" { "Answer to it" }
                    }
                }
            }
        }
    }
}

fn words(state: &LineState) -> String {
    match state {
        LineState::Calling => "It is calling the relay.".to_owned(),
        LineState::Broken { why } => sentence(why),
        LineState::Held { seen, place, tried, .. } => {
            let how = match (place, tried) {
                (Place::Provider, _) => {
                    "its provider lets nobody in, so members need the relay".to_owned()
                }
                (Place::Public, None) => "it has a public address of its own".to_owned(),
                (Place::Public, Some(Tried { port, open: true })) => {
                    format!("it is public: the relay knocked at port {port}, and this box answered")
                }
                (Place::Public, Some(Tried { port, open: false })) => format!(
                    "it has a public address of its own, but nobody answered when the relay knocked at port {port}: a firewall is before it, or the box does not listen there"
                ),
                (Place::Router, None) => {
                    "a router is before it, which could be told to let members in".to_owned()
                }
                (Place::Router, Some(Tried { port, open: true })) => format!(
                    "it is public through a mapped port: the relay knocked at port {port}, and this box answered"
                ),
                (Place::Router, Some(Tried { port, open: false })) => format!(
                    "a router is before it, and nobody answered when the relay knocked at port {port}; members need the relay until it lets them in"
                ),
            };
            format!("The internet sees it as {}; {how}.", seen.ip())
        }
    }
}

fn mark(state: &LineState) -> Markup {
    match state {
        LineState::Calling => badge(Tone::Warn, "calling"),
        LineState::Held { .. } => badge(Tone::Good, "line held"),
        LineState::Broken { .. } => badge(Tone::Bad, "no line"),
    }
}

/// What the router of each uplink is asked for, and what it said.
async fn ports(gateway: &Gateway) -> Markup {
    let site = gateway.status().site.clone();
    let mut uplinks: Vec<_> = site.uplinks.iter().collect();
    uplinks.sort_by_key(|(_, uplink)| uplink.order);
    let asked = uplinks.iter().any(|(_, uplink)| uplink.ask_router);
    let said = match asked {
        true => wan_status(&Sockets::of(&gateway.state)).await.unwrap_or_default(),
        false => WanStatus::default(),
    };
    let port = site.door.port;
    html! {
        @if !uplinks.is_empty() {
            h3 { "Through a router" }
            p.soft { "A router may be asked to pass callers at port " (port) " on to this box (PCP, NAT-PMP or UPnP). Anybody on the internet can then knock at the box's sign-in page and its API, and at nothing else. It is asked again every minute, and the port is given back when you switch this off." }
        }
        @for (name, uplink) in uplinks {
            @let state = said.uplinks.iter().find(|u| u.name == *name).and_then(|u| u.port.as_ref());
            div.row.spread {
                div {
                    strong { (name) }
                    p.soft.small { (port_words(uplink.ask_router, state)) }
                }
                form method="post" action="/outside/port"
                    data-confirm=(if uplink.ask_router { format!("Give the port back? Callers who come by the router of “{name}” are cut off.") } else { format!("Ask the router of “{name}” for port {port}? Anybody on the internet can then knock at the box's sign-in page and its API.") }) {
                    (hidden("uplink", name.as_str()))
                    @if !uplink.ask_router { (hidden("ask", "on")) }
                    button.quiet type="submit" { (if uplink.ask_router { "Give the port back" } else { "Ask its router" }) }
                }
            }
        }
    }
}

fn port_words(asked: bool, state: Option<&PortState>) -> String {
    match (asked, state) {
        (false, _) => "Its router is not asked.".to_owned(),
        (true, Some(state)) => sentence(&state.sentence()),
        (true, None) => {
            "It is to be asked; whoever looks after the uplinks does not say anything yet."
                .to_owned()
        }
    }
}

async fn page(gateway: &Gateway, who: &SignedIn, top: Markup) -> Response {
    let (now, ports) = (now(gateway), ports(gateway).await);
    let body = html! {
        (top)
        section.card {
            h2 { "Now" }
            div.stack data-refresh="/outside/live" data-every="2000" { (now) (ports) }
            @if gateway.outside.relay().is_some() {
                form method="post" action="/outside/remove"
                    data-confirm="Hang up? Members outside then cannot come in by the relay." {
                    button.danger type="submit" { "Use no relay" }
                }
            }
        }
        section.card {
            h2 { "A relay" }
            p { "A small server with a public address, of your own or of somebody whom you trust to be there. It passes on what members' programs send and understands none of it: the keys are this box's. Whoever runs it sees who calls and when, and can hang up." }
            ol {
                li { "On the server: " code { "polder relay run --listen 0.0.0.0:443 --listen '[::]:443'" } }
                li { "There, once for each box: " code { "polder relay add oak --at relay.example.org:443 oak.relay.example.org" } }
                li { "It prints one line, the pass. Paste it here." }
            }
            form.stack method="post" action="/outside" {
                (field(&Field { name: "pass", label: "Pass", kind: "password", hint: "polder-relay://…", required: true, ..Field::default() }))
                button type="submit" { "Call the relay" }
            }
        }
    };
    let page = Page {
        title: "Outside",
        lead: Some("How members who are not at the box's own network reach it."),
        narrow: true,
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/outside"), body)
}
