//! Registries of container images that let not everybody in: for stewards, to keep a user and a password for one. A password is written and never
//! shown; the supervisor reads it when it fetches an image.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::SecretText;
use polder_page::{Field, Page, Tone, badge, banner, empty, field, hidden, table};
use polder_site::{EngineSlot, ImageName, Site};
use polder_upstream::{Holder, Secrets, SecretsError, login};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::frame::{Trouble, answer, nav, sentence, with_status};
use crate::pages::who::{SignedIn, Steward};

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    registry: String,
    user: String,
    password: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    page(&gateway, &who, html! {}, &Wish::default()).await
}

pub(super) async fn keep(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let read = registry(&wish.registry).and_then(|registry| {
        let login = login(wish.user.trim(), &SecretText::new(&wish.password));
        Ok((registry, login.map_err(|error| error.to_string())?))
    });
    let (registry, login) = match read {
        Ok(read) => read,
        Err(why) => return wrong(&gateway, &who, &why, &wish).await,
    };
    match write(&gateway, &registry, login).await {
        Ok(()) => {
            who.record(&gateway, "kept a user and a password for images of", &registry).await;
            Ok(Redirect::to("/registries?said=registry").into_response())
        }
        Err(error @ SecretsError::NoKey) => wrong(&gateway, &who, &error.to_string(), &wish).await,
        Err(error) => Err(broken(&error)),
    }
}

pub(super) async fn forget(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let registry =
        registry(&wish.registry).map_err(|why| Trouble::Say(StatusCode::BAD_REQUEST, why))?;
    // Pressed twice is done once.
    if kept(&gateway).await?.contains(&registry) {
        write(&gateway, &registry, SecretText::new("")).await.map_err(|error| broken(&error))?;
        who.record(&gateway, "forgot the user and the password for images of", &registry).await;
    }
    Ok(Redirect::to("/registries?said=registry-forgotten").into_response())
}

/// What is before the first slash of what images are called.
fn registry(given: &str) -> Result<String, String> {
    let given = given.trim().trim_start_matches("https://").trim_end_matches('/');
    let image = format!("{given}/image").parse::<ImageName>();
    match image.ok().filter(|image| image.registry() == given) {
        Some(image) => Ok(image.registry().to_owned()),
        None => Err(format!(
            "{given:?} is no registry; write what is before the first slash of an image's name, as in registry.example.org or registry.lan:5000"
        )),
    }
}

async fn write(gateway: &Gateway, registry: &str, login: SecretText) -> Result<(), SecretsError> {
    let (secrets, registry) = (Secrets::of(&gateway.state), registry.to_owned());
    gateway.members.ask(move |_| secrets.keep(Holder::Registry(&registry), &login)).await
}

async fn kept(gateway: &Gateway) -> Result<BTreeSet<String>, Trouble> {
    let secrets = Secrets::of(&gateway.state);
    gateway.members.ask(move |_| secrets.registries()).await.map_err(|error| broken(&error))
}

fn broken(error: &SecretsError) -> Trouble {
    Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Registries that images of slots are named from.
fn used(site: &Site) -> BTreeSet<String> {
    let images = site.engines.values().filter_map(|slot| slot.container.as_ref());
    images.map(|container| container.image.registry().to_owned()).collect()
}

async fn wrong(
    gateway: &Gateway,
    who: &SignedIn,
    why: &str,
    wish: &Wish,
) -> Result<Response, Trouble> {
    let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
    Ok(with_status(StatusCode::BAD_REQUEST, page(gateway, who, top, wish).await?))
}

async fn page(
    gateway: &Gateway,
    who: &SignedIn,
    top: Markup,
    wish: &Wish,
) -> Result<Response, Trouble> {
    let (kept, used) = (kept(gateway).await?, used(&gateway.status().site));
    let row = |registry: &String| {
        vec![
            html! { code { (registry) } },
            html! { @if used.contains(registry) { "yes" } @else { "no" } },
            html! { (state(kept.contains(registry))) },
            html! { @if kept.contains(registry) {
                form method="post" action="/registries/forget"
                    data-confirm=(format!("Forget the user and the password for {registry}? Images of it are then fetched as by a stranger.")) {
                    (hidden("registry", registry))
                    button.danger type="submit" aria-label=(format!("Forget {registry}")) { "Forget" }
                }
            } },
        ]
    };
    let rows: Vec<_> = kept.union(&used).map(row).collect();
    let titles = ["Registry", "A slot's image is from there", "User and password", ""];
    let body = html! {
        (top)
        section.card {
            h2 { "Registries" }
            @if rows.is_empty() { (empty("No slot is served by a container, and nothing is kept.")) }
            @else { (table("Registries of container images", &titles, &rows)) }
        }
        section.card {
            h2 { "Keep a user and a password" }
            p.soft { "For a registry that lets not everybody in. Before an image is fetched, the plan says whether something is kept for its registry." }
            (form(wish))
        }
    };
    let page = Page {
        title: "Registries of images",
        narrow: true,
        lead: Some(
            "A slot can be served by a program that comes as a container's image, from a registry.",
        ),
        ..Page::default()
    };
    Ok(answer(&page, &nav(gateway, &who.member, "/registries"), body))
}

fn state(kept: bool) -> Markup {
    match kept {
        true => badge(Tone::Good, "kept"),
        false => badge(Tone::Plain, "none"),
    }
}

fn form(wish: &Wish) -> Markup {
    let text = |name, label, hint, value| {
        field(&Field {
            name,
            label,
            hint,
            value,
            required: true,
            autocomplete: "off",
            ..Field::default()
        })
    };
    html! {
        form.stack method="post" action="/registries" {
            div.fields {
                (text("registry", "Registry", "What is before the first slash of the image's name", &wish.registry))
                (text("user", "User", "", &wish.user))
                (field(&Field { name: "password", label: "Password or token", kind: "password", hint: "Better a token that may only fetch. It is kept on this box and never shown", required: true, autocomplete: "off", ..Field::default() }))
            }
            button type="submit" { "Keep them" }
        }
    }
}

/// Beside the plan of a slot that a container serves: whether the box has what its registry may want, and where to give it.
pub(super) async fn beside_plan(gateway: &Gateway, slot: &EngineSlot) -> Result<Markup, Trouble> {
    let Some(container) = &slot.container else { return Ok(html! {}) };
    let registry = container.image.registry();
    let kept = kept(gateway).await?.contains(registry);
    Ok(html! {
        section.card {
            h2 { "Where its image comes from" }
            p { "From the registry " code { (registry) } ". User and password for it: " (state(kept)) "." }
            details {
                summary { @if kept { "Keep other ones" } @else { "It wants a user and a password" } }
                (form(&Wish { registry: registry.to_owned(), ..Wish::default() }))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_what_images_begin_with() {
        for (given, is) in [
            ("registry.lan:5000", "registry.lan:5000"),
            (" https://ghcr.io/ ", "ghcr.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
        ] {
            assert_eq!(registry(given).as_deref(), Ok(is));
        }
        for bad in ["", "a/b", "Registry.lan", "a b", "../x", "http://x", "x\r\ny"] {
            assert!(registry(bad).unwrap_err().contains("is no registry"), "{bad}");
        }
    }
}
