//! Other web apps on this machine: the way into them, and opening and closing them for stewards. The
//! same page has the verifier that the box asks.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::header::HeaderName;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::Request;
use polder_members::Member;
use polder_page::{Choice, Field, Page, Tone, badge, banner, empty, field, select, table};
use polder_site::{App, AppName, Audience, NameError, Site, SiteChange, UpstreamError};
use serde::Deserialize;

use crate::Gateway;
use crate::host::{RequestHost, parse_host};
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward, own_path, percent};
use crate::pages::{client_apps, verifier};

/// How long the page waits to show what was changed.
const SOON: Duration = Duration::from_secs(2);

/// The form for an app, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    name: String,
    #[serde(default)]
    upstream: String,
    #[serde(default)]
    open_to: String,
}

#[derive(Deserialize)]
pub(super) struct Way {
    #[serde(default)]
    way: String,
    #[serde(default)]
    back: String,
}

pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Result<Response, Trouble> {
    page(&gateway, &who, frame::said(&said.said), Filled::default()).await
}

pub(super) async fn add(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let (name, app) = match read(&wish) {
        Ok(read) => read,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why)) } });
            let filled = Filled { app: Some(&wish), ..Filled::default() };
            let page = page(&gateway, &who, wrong, filled).await?;
            return Ok(with_status(StatusCode::BAD_REQUEST, page));
        }
    };
    change_site(&gateway, &who, SiteChange::App { name, app }).await?;
    Ok(Redirect::to("/apps?said=app").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    change_site(&gateway, &who, SiteChange::RemoveApp(known(&gateway, &name)?)).await?;
    Ok(Redirect::to("/apps?said=app-removed").into_response())
}

/// Sends somebody on to an app with a ticket. The page goes on by itself: a redirect would be
/// stopped by browsers after the form of the sign-in page, which may lead to no other site.
pub(super) async fn enter(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Path(name): Path<String>,
    Query(Way { way, back }): Query<Way>,
) -> Result<Response, Trouble> {
    let name = known(&gateway, &name)?;
    let status = gateway.status();
    if !status.site.apps.get(&name).is_some_and(|app| may_go(app, &who.member)) {
        let why = "this app is for stewards; ask one of them";
        return Err(Trouble::Say(StatusCode::FORBIDDEN, why.to_owned()));
    }
    let Some(app) = address(&status.site, &who.base, &name) else {
        let why = "an app has a name below the box's name: open the box by its name, not by its \
                   number, and then the app";
        return Err(Trouble::Say(StatusCode::BAD_REQUEST, why.to_owned()));
    };
    let plain = way.len() == 52 && way.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let to = match plain {
        true => {
            let ticket = gateway.tickets.issue(&name, &way, &who.token)?;
            let back = percent(own_path(&back));
            format!("{app}/.polder/enter?ticket={}&back={back}", ticket.expose())
        }
        // The app itself sends them here with a way.
        false => format!("{app}/"),
    };
    let body = html! { p { "You are signed in. " a href=(to) { "Go on to " (name) } } };
    let shown = Page { title: "On the way", narrow: true, ..Page::default() };
    let mut response = answer(&shown, &nav(&gateway, &who.member, ""), body);
    if let Ok(refresh) = HeaderValue::try_from(format!("0; url={to}")) {
        response.headers_mut().insert(HeaderName::from_static("refresh"), refresh);
    }
    Ok(response)
}

/// On a member's first page, where there are apps for them.
pub(super) fn card(gateway: &Gateway, who: &SignedIn) -> Markup {
    let status = gateway.status();
    let site = &status.site;
    let open = site.apps.iter().filter(|(_, app)| may_go(app, &who.member));
    let apps: Vec<_> =
        open.filter_map(|(name, _)| Some((name, address(site, &who.base, name)?))).collect();
    html! {
        @if !apps.is_empty() {
            section.card {
                h2 { "Other apps on this box" }
                ul { @for (name, address) in &apps { li { a href=(format!("{address}/")) { (name) } } } }
            }
        }
    }
}

fn may_go(app: &App, member: &Member) -> bool {
    app.open_to == Audience::Members || member.is_steward()
}

fn known(gateway: &Gateway, name: &str) -> Result<AppName, Trouble> {
    let status = gateway.status();
    let found = status.site.apps.keys().find(|app| app.as_str() == name);
    found.cloned().ok_or_else(|| Trouble::not_found("there is no such app on this box"))
}

fn read(wish: &Wish) -> Result<(AppName, App), String> {
    let name = wish.name.trim().parse().map_err(|e: NameError| e.to_string())?;
    let upstream = wish.upstream.trim().parse().map_err(|e: UpstreamError| e.to_string())?;
    let open_to = match wish.open_to.as_str() {
        "stewards" => Audience::Stewards,
        _ => Audience::Members,
    };
    Ok((name, App { upstream, open_to }))
}

pub(super) async fn change_site(
    gateway: &Gateway,
    who: &SignedIn,
    change: SiteChange,
) -> Result<(), Trouble> {
    let mut status = gateway.watch_status();
    let wanted = change.applied_to(&gateway.status().site);
    wanted.check().map_err(|e| Trouble::Say(StatusCode::BAD_REQUEST, e.to_string()))?;
    gateway.ask(Request::Apply { change, by: who.actor() }).await?;
    // So that the page that follows shows it; the box follows in any case.
    let known = status.wait_for(|status| status.site == wanted);
    let _ = tokio::time::timeout(SOON, known).await;
    Ok(())
}

/// Where an app is for somebody who calls the box so.
fn address(site: &Site, base: &str, app: &AppName) -> Option<String> {
    let (_, host) = base.split_once("://")?;
    let RequestHost { name, port } = parse_host(host.as_bytes()).ok()?;
    let name = format!("{app}.{name}");
    site.app_at(&name)?;
    // Plain HTTP, on this machine, has the same port as TLS.
    Some(format!("https://{}", RequestHost { name, port }))
}

/// The page's forms, as they were filled in.
#[derive(Default)]
pub(super) struct Filled<'a> {
    pub(super) app: Option<&'a Wish>,
    pub(super) verifier: Option<&'a verifier::Wish>,
    pub(super) client: Option<&'a client_apps::Wish>,
}

pub(super) async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    filled: Filled<'_>,
) -> Result<Response, Trouble> {
    let clients = gateway.members.ask(|m| m.client_apps()).await?;
    let (no_app, no_verifier, no_client) = Default::default();
    let wish: &Wish = filled.app.unwrap_or(&no_app);
    let status = gateway.status();
    let site = &status.site;
    let row = |(name, app): (&AppName, &App)| -> Vec<Markup> {
        vec![
            html! { div {
                strong { (name) }
                @for host in site.hosts_of(name) { div.soft.small { code { (host) } } }
            } },
            html! { code { (app.upstream) } },
            html! { @match app.open_to {
                Audience::Members => (badge(Tone::Plain, "members")),
                Audience::Stewards => (badge(Tone::Warn, "stewards only")),
            } },
            html! { form method="post" action=(format!("/apps/{name}/remove"))
                data-confirm=(format!("Close the app “{name}”? The box passes nothing on to it any more.")) {
                button.danger type="submit" aria-label=(format!("Close {name}")) { "Close" }
            } },
        ]
    };
    let rows: Vec<_> = site.apps.iter().map(row).collect();
    let body = html! {
        (top)
        section.card {
            @if rows.is_empty() { (empty("No app is behind the box's sign-in yet.")) }
            @else { (table("Apps", &["App", "Runs at", "Open to", ""], &rows)) }
        }
        section.card {
            h2 { "Open another one" }
            p.soft { "The app runs on this machine and listens only to this machine. It learns who its visitor is from the headers X-Auth-Request-User, -Email and -Groups. Its name goes before the box's name, so that name has to lead to the box too: on most networks somebody enters it in the router once." }
            form.stack method="post" action="/apps" {
                div.fields {
                    (field(&Field { name: "name", label: "Name", hint: "The first part of its address: “wiki”.", value: &wish.name, required: true, ..Field::default() }))
                    (field(&Field { name: "upstream", label: "Where it runs", hint: "http://127.0.0.1:3000, or unix:/run/wiki.sock", value: &wish.upstream, required: true, ..Field::default() }))
                    (select("open_to", "Open to", "", &[
                        Choice { value: "members", label: "everybody who may sign in" },
                        Choice { value: "stewards", label: "stewards only" },
                    ], &wish.open_to))
                }
                button type="submit" { "Open it" }
            }
        }
        (client_apps::section(&clients, filled.client.unwrap_or(&no_client)))
        section.card {
            h2 { "Sign in here with what you have" }
            p.soft { "Your collective has a place already where its people sign in? They can come in here with it." }
            @if let Some(sign_in) = &site.sign_in { p { "People can sign in with " strong { (sign_in.name) } "." } }
            p { a.button.quiet href="/identity" { "Sign-in with your own identity" } }
        }
        (verifier::section(site, filled.verifier.unwrap_or(&no_verifier)))
    };
    let lead = "Web apps on this machine that ask the box who their visitors are.";
    let page = Page { title: "Apps", lead: Some(lead), ..Page::default() };
    Ok(answer(&page, &nav(gateway, &who.member, "/apps"), body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(name: &str, upstream: &str) -> Wish {
        Wish { name: name.into(), upstream: upstream.into(), ..Wish::default() }
    }

    #[test]
    fn an_app_is_reached_by_the_name_that_the_box_is_reached_by() {
        let mut site = Site::unclaimed(8443);
        let app = "wiki".parse::<AppName>().unwrap();
        let (name, what) = read(&wish(" wiki ", "unix:/run/w.sock")).unwrap();
        site.apps.insert(name, what);
        let at = |base: &str| address(&site, base, &app);
        assert_eq!(at("https://polder.local:8443").unwrap(), "https://wiki.polder.local:8443");
        assert_eq!(at("http://localhost:8443").unwrap(), "https://wiki.localhost:8443");
        assert_eq!(at("https://192.168.1.7:8443"), None);
        assert_eq!(at("https://polder"), None);
    }

    #[test]
    fn an_app_elsewhere_is_refused_with_the_reason() {
        assert!(read(&wish("wiki", "http://10.0.0.1:80")).unwrap_err().contains("on this machine"));
        assert!(read(&wish("../x", "http://127.0.0.1:80")).unwrap_err().contains("app name"));
    }
}
