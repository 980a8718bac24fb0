//! Where the collective's people sign in already: for stewards to name, to try and to remove. The way there is on the page Apps.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_members::Secret;
use polder_page::{Field, Page, Tone, banner, copyable, field, tick};
use polder_pki::PkiError;
use polder_site::{SignIn, SignInError, Site, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    name: String,
    issuer: String,
    client: String,
    secret: String,
    groups_claim: String,
    members: String,
    stewards: String,
    new_people: String,
    tell_email: String,
    root: String,
}

impl Wish {
    fn of(site: &Site) -> Self {
        let Some(sign_in) = &site.sign_in else { return Self::default() };
        let ticked = |yes: bool| if yes { "yes".to_owned() } else { String::new() };
        Self {
            name: sign_in.name.clone(),
            issuer: sign_in.issuer.to_string(),
            client: sign_in.client.clone(),
            secret: String::new(),
            groups_claim: sign_in.groups_claim.clone(),
            members: sign_in.members.join("\n"),
            stewards: sign_in.stewards.join("\n"),
            new_people: ticked(sign_in.new_people),
            tell_email: ticked(sign_in.tell_email),
            root: sign_in.root.clone().unwrap_or_default(),
        }
    }
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Response {
    let wish = Wish::of(&gateway.status().site);
    page(&gateway, &who, frame::said(&said.said), &wish).await
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let sign_in = match read(&wish) {
        Ok(sign_in) => sign_in,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why.to_string())) } });
            let page = page(&gateway, &who, wrong, &wish).await;
            return Ok(with_status(StatusCode::BAD_REQUEST, page));
        }
    };
    let (of, secret) = (sign_in.clone(), wish.secret.trim().to_owned());
    // First what may be refused: the secret of the service that stays is not overwritten for nothing.
    change_site(&gateway, &who, SiteChange::SignIn(Box::new(sign_in))).await?;
    if !secret.is_empty() {
        let identities = gateway.identities.clone();
        keep(move || identities.keep_secret(&of, &Secret::new(secret))).await?;
        who.record(&gateway, "entered", "the secret for where people sign in").await;
    }
    Ok(Redirect::to("/identity?said=identity").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    if !who.member.has_password {
        let why = "you have no password on this box and could not sign in any more; set one for yourself first";
        let wrong = banner(Tone::Bad, html! { p { (sentence(why)) } });
        let wish = Wish::of(&gateway.status().site);
        let page = page(&gateway, &who, wrong, &wish).await;
        return Ok(with_status(StatusCode::BAD_REQUEST, page));
    }
    change_site(&gateway, &who, SiteChange::RemoveSignIn).await?;
    let identities = gateway.identities.clone();
    keep(move || identities.forget_secret()).await?;
    Ok(Redirect::to("/identity?said=identity-removed").into_response())
}

/// Asks the service what it says of itself, so that a mistake shows before people meet it.
pub(super) async fn look(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    let site = &gateway.status().site;
    let Some(sign_in) = &site.sign_in else {
        return Err(Trouble::not_found("no service is named yet"));
    };
    let top = match gateway.identities.look(sign_in).await {
        Ok(()) => banner(
            Tone::Good,
            html! { p { (sign_in.name) " answers, and describes itself as it should. Whether it takes the client's number and secret shows when somebody signs in: try it in a private window." } },
        ),
        Err(error) => banner(Tone::Bad, html! { p { (sentence(&error.to_string())) } }),
    };
    Ok(page(&gateway, &who, top, &Wish::of(site)).await)
}

async fn keep(work: impl FnOnce() -> Result<(), PkiError> + Send + 'static) -> Result<(), Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    let why = match done {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it broke down".to_owned(),
    };
    let why = format!("the secret could not be written down ({why}); is the disk full?");
    Err(Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, why))
}

fn read(wish: &Wish) -> Result<SignIn, SignInError> {
    let lines = |text: &str| {
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
    };
    let mut sign_in = SignIn::at(wish.name.trim(), wish.issuer.trim().parse()?, wish.client.trim());
    if !wish.groups_claim.trim().is_empty() {
        sign_in.groups_claim = wish.groups_claim.trim().to_owned();
    }
    sign_in.members = lines(&wish.members);
    sign_in.stewards = lines(&wish.stewards);
    sign_in.new_people = !wish.new_people.is_empty();
    sign_in.tell_email = !wish.tell_email.is_empty();
    sign_in.root =
        Some(wish.root.trim()).filter(|pem| !pem.is_empty()).map(|pem| format!("{pem}\n"));
    sign_in.check()?;
    Ok(sign_in)
}

/// What has to be written down at the service: one address for each name that the box is called by.
fn addresses(site: &Site, base: &str) -> Vec<String> {
    let port = Some(site.door.port).filter(|port| *port != 443);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let usual = site.host_names().into_iter().filter(|name| name.contains('.'));
    let usual = usual.map(|name| format!("https://{name}{port}"));
    let mut all = vec![base.to_owned()];
    all.extend(usual.filter(|known| known != base));
    all.iter().map(|base| format!("{base}/sign-in/back")).collect()
}

async fn page(gateway: &Arc<Gateway>, who: &SignedIn, top: Markup, wish: &Wish) -> Response {
    let status = gateway.status();
    let site = &status.site;
    let kept = match site.sign_in.clone() {
        Some(sign_in) => {
            let identities = gateway.identities.clone();
            let kept = tokio::task::spawn_blocking(move || identities.secret(&sign_in));
            matches!(kept.await, Ok(Ok(Some(_))))
        }
        None => false,
    };
    let secret = match kept {
        true => "Kept already; empty leaves it as it is",
        false => "As the service shows it; empty if it gives none",
    };
    let text = |name, label, hint, value, required| {
        field(&Field { name, label, hint, value, required, ..Field::default() })
    };
    let lines = |name: &str, label: &str, hint: &str, value: &str| {
        html! {
            div.field {
                label for=(name) { (label) }
                p.hint id=(format!("{name}-hint")) { (hint) }
                textarea id=(name) name=(name) rows="3" aria-describedby=(format!("{name}-hint")) { (value) }
            }
        }
    };
    let body = html! {
        (top)
        @if let Some(sign_in) = &site.sign_in {
            section.card {
                h2 { (sign_in.name) }
                p { "People can sign in with " strong { (sign_in.name) } " at " code { (sign_in.issuer) } ". "
                    @if sign_in.new_people { "Who is new becomes a member." } @else { "Who is new needs an invite first." } }
                form method="post" action="/identity/look" { button.quiet type="submit" { "See whether it answers" } }
                form method="post" action="/identity/remove"
                    data-confirm="Let people sign in with the box's own passwords only? Who has none needs one from a steward then." {
                    button.danger type="submit" { "Remove it" }
                }
            }
        }
        section.card {
            h2 { "Write the box down there first" }
            p.soft { "The service must know where it may send people back to. Give it each of these addresses under which people use the box:" }
            @for (number, address) in addresses(site, &who.base).iter().enumerate() {
                (copyable(&format!("back-{number}"), "Address", address))
            }
        }
        section.card {
            h2 { @if site.sign_in.is_some() { "Change it" } @else { "Name the service" } }
            form.stack method="post" action="/identity" {
                div.fields {
                    (text("name", "What you call it", "The button says “Sign in with …”", &wish.name, true))
                    (text("issuer", "Its address (issuer)", "https://sso.example.org, exactly as it says it", &wish.issuer, true))
                    (text("client", "The client's number (client id)", "What it knows the box by", &wish.client, true))
                    (field(&Field { name: "secret", label: "The client's secret", kind: "password", hint: secret, ..Field::default() }))
                }
                (tick("new_people", "Make members of people who are new here", "Otherwise only those come in who linked themselves on their account page.", !wish.new_people.is_empty()))
                div.fields {
                    (text("groups_claim", "Claim with the groups", "groups, unless the service is set otherwise", if wish.groups_claim.is_empty() { "groups" } else { &wish.groups_claim }, false))
                    (lines("members", "Groups that may come in", "One a line. Empty: whoever the service knows. The box looks when somebody signs in; to shut somebody out at once, disable them on the page Members.", &wish.members))
                    (lines("stewards", "Groups of stewards", "One a line. Empty: it makes nobody a steward. Who leaves them is a member again the next time they sign in there; to shut somebody out at once, disable them on the page Members. Stewards whom you made here stay.", &wish.stewards))
                }
                (tick("tell_email", "Tell other apps the addresses that it has proven", "Instead of member-1@… Apps tell people apart by their address: for one that is in use already everybody is somebody new.", !wish.tell_email.is_empty()))
                (lines("root", "Certificate of its authority", "Only if browsers do not know the authority that signed its certificate. Then no other is trusted for it.", &wish.root))
                button type="submit" { "Keep this" }
            }
        }
        p { a href="/apps" { "Back to Apps" } }
    };
    let lead = "Let people sign in with what your collective has already. The box's own passwords go on working, also when the service is away.";
    let page =
        Page { title: "Sign-in with your own identity", lead: Some(lead), ..Page::default() };
    answer(&page, &nav(gateway, &who.member, "/identity"), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_told_every_name_that_people_call_the_box_by() {
        let mut site = Site::unclaimed(443);
        site.name = "oak".parse().unwrap();
        site.door.names = vec!["gpu.example.org".into()];
        let all = addresses(&site, "https://oak.local");
        assert_eq!(all, ["https://oak.local/sign-in/back", "https://gpu.example.org/sign-in/back"]);
        site.door.port = 8443;
        let all = addresses(&site, "https://192.168.1.7:8443");
        assert_eq!(all[0], "https://192.168.1.7:8443/sign-in/back");
        assert_eq!(all[1], "https://oak.local:8443/sign-in/back");
    }

    #[test]
    fn groups_are_read_line_by_line_and_what_cannot_be_is_refused() {
        let wish = Wish {
            name: " House ".into(),
            issuer: "https://sso.example.org".into(),
            client: "box".into(),
            members: " a b \n\n/c\n".into(),
            ..Wish::default()
        };
        let read = read(&wish).unwrap();
        assert_eq!(read.members, ["a b", "/c"]);
        assert_eq!((read.name.as_str(), read.groups_claim.as_str()), ("House", "groups"));
        assert!(super::read(&Wish { issuer: "sso".into(), ..wish }).is_err());
    }
}
