//! On the page of uplinks: who is told where the box is, whenever it goes out another way.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_page::{Field, Tone, banner, field};
use polder_site::{
    DnsName, DnsZone, DynamicDns, DynamicDnsError, HookUrl, Site, SiteChange, write_durably,
};
use serde::Deserialize;

use crate::Gateway;
use crate::pages::apps::change_site;
use crate::pages::frame::{Trouble, sentence, with_status};
use crate::pages::uplinks;
use crate::pages::who::Steward;

/// What only the service or the server may know; whoever looks after the uplinks reads it there.
const SECRET: &str = "uplinks/secret";

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
pub(super) struct Wish {
    #[serde(default)]
    hook: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    server: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    secret: String,
}

impl Wish {
    /// As the site has it.
    pub(super) fn of(site: &Site) -> Self {
        let dns = site.dynamic_dns.clone().unwrap_or_default();
        let hook = dns.hook.map(|hook| hook.to_string()).unwrap_or_default();
        let Some(zone) = dns.zone else { return Self { hook, ..Self::default() } };
        Self {
            hook,
            name: zone.name.to_string(),
            zone: zone.zone.to_string(),
            server: zone.server,
            key: zone.key.to_string(),
            secret: String::new(),
        }
    }
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let change = match read(&wish) {
        Ok(Some(dns)) => SiteChange::DynamicDns(dns),
        Ok(None) => SiteChange::RemoveDynamicDns,
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why.to_string())) } });
            let (up, port) = (Default::default(), Default::default());
            let page = uplinks::page(&gateway, &who, wrong, &up, &wish, &port).await;
            return Ok(with_status(StatusCode::BAD_REQUEST, page));
        }
    };
    let secret = wish.secret.trim();
    change.applied_to(&gateway.status().site).check().map_err(|error| {
        Trouble::Say(StatusCode::BAD_REQUEST, error.to_string().replacen("site.toml: ", "", 1))
    })?;
    if secret.is_empty()
        && who_is_told(gateway.status().site.dynamic_dns.as_ref()) != who_is_told(told(&change))
    {
        // It was meant for somebody else.
        let path = gateway.state.join(SECRET);
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
    }
    if !secret.is_empty() {
        let (path, text) = (gateway.state.join(SECRET), format!("{secret}\n"));
        let written = tokio::task::spawn_blocking(move || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            write_durably(&path, text.as_bytes())
        });
        let written = written.await.map_err(|_| std::io::Error::other("it broke down"));
        written.and_then(|done| done).map_err(|error| {
            let why = format!("the secret could not be written down ({error}); is the disk full?");
            Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, why)
        })?;
        who.record(&gateway, "entered", "the secret for who is told where the box is").await;
    }
    change_site(&gateway, &who, change).await?;
    Ok(Redirect::to("/uplinks").into_response())
}

fn told(change: &SiteChange) -> Option<&DynamicDns> {
    match change {
        SiteChange::DynamicDns(dns) => Some(dns),
        _ => None,
    }
}

/// The service or the zone's server that a secret is for.
fn who_is_told(dns: Option<&DynamicDns>) -> Option<String> {
    let dns = dns?;
    let zone = dns.zone.as_ref().map(|zone| format!("{} {} {}", zone.server, zone.zone, zone.key));
    dns.hook.as_ref().map(|hook| hook.parts().0.to_string()).or(zone)
}

/// Nobody where nothing was filled in.
fn read(wish: &Wish) -> Result<Option<DynamicDns>, DynamicDnsError> {
    let hook = match wish.hook.trim() {
        "" => None,
        hook => Some(hook.parse::<HookUrl>()?),
    };
    let filled = [&wish.name, &wish.zone, &wish.server, &wish.key];
    if filled.iter().all(|text| text.trim().is_empty()) {
        return Ok(hook.map(|hook| DynamicDns { hook: Some(hook), zone: None }));
    }
    let name = |text: &str| text.trim().parse::<DnsName>();
    let zone = DnsZone {
        name: name(&wish.name)?,
        zone: name(&wish.zone)?,
        server: wish.server.trim().to_owned(),
        key: name(&wish.key)?,
    };
    Ok(Some(DynamicDns { hook, zone: Some(zone) }))
}

pub(super) fn section(gateway: &Gateway, wish: &Wish) -> Markup {
    let kept = match gateway.state.join(SECRET).exists() {
        true => "Kept already; empty leaves it as it is",
        false => "For {secret}, or the key's, in base64 as tsig-keygen prints it",
    };
    let text =
        |name, label, hint, value| field(&Field { name, label, hint, value, ..Field::default() });
    html! {
        section.card {
            h2 { "Tell the world where the box is" }
            p.soft { "Whoever reaches the box from outside needs its address, which is another one over another uplink. Whenever that changes, the box tells a service that keeps a name up to date, or writes it into a zone of yours. Empty fields tell nobody." }
            form.stack method="post" action="/uplinks/dns" {
                div.fields {
                    (text("hook", "A service: its web address", "https://dyn.example.org/update?host=gpu&key={secret}; {ip4} and {ip6} stand for public addresses", &wish.hook))
                    (text("name", "Or a zone of yours (RFC 2136): the box's name in it", "gpu.example.org", &wish.name))
                    (text("zone", "The zone", "example.org", &wish.zone))
                    (text("server", "Its primary server", "ns1.example.org", &wish.server))
                    (text("key", "Name of the key", "An hmac-sha256 key that may change that name", &wish.key))
                    (field(&Field { name: "secret", label: "Secret of the service or of the key", kind: "password", hint: kept, autocomplete: "off", ..Field::default() }))
                }
                button.quiet type="submit" { "Keep this" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_steward_enters_is_what_the_page_shows_again_without_the_secret() {
        let mut site = Site::unclaimed(1);
        let wish = Wish {
            name: " gpu.example.org ".into(),
            zone: "example.org".into(),
            server: "ns1.example.org".into(),
            key: "box".into(),
            secret: "never shown".into(),
            ..Wish::default()
        };
        site.dynamic_dns = read(&wish).unwrap();
        site.check().unwrap();
        let again = Wish::of(&site);
        assert_eq!((again.name.as_str(), again.key.as_str()), ("gpu.example.org", "box"));
        assert!(again.secret.is_empty() && again.hook.is_empty());
        assert_eq!(read(&Wish::default()).unwrap(), None);
        let hook = Wish { hook: "https://dyn.example.org/".into(), ..Wish::default() };
        assert!(read(&hook).unwrap().unwrap().hook.is_some());
        assert!(read(&Wish { name: "gpu".into(), ..Wish::default() }).is_err());
    }
}
