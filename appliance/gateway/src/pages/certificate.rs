//! The certificate that the world trusts: for which names, who signs it, how it is proved, and how that goes; for stewards.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_acme::AcmeError;
use polder_control::{HeldCertificate, PublicStatus, SecretName, SecretText};
use polder_page::{Choice, Field, Page, Tone, badge, banner, empty, facts, field, select, when};
use polder_site::{
    CertificateError, DirectoryUrl, DnsHook, DnsUpdate, PublicCertificate, Site, SiteChange,
};
use serde::Deserialize;

use crate::door::secret_in_words;
use crate::host::parse_host;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, answer, nav, sentence, with_status};
use crate::pages::home::Said;
use crate::pages::who::{SignedIn, Steward};
use crate::{AskError, Gateway};

/// Authorities that a steward can choose by name: what the form calls them, their directory, what people read.
const AUTHORITIES: [(&str, &str, &str); 3] = [
    ("lets-encrypt", "https://acme-v02.api.letsencrypt.org/directory", "Let's Encrypt"),
    (
        "lets-encrypt-staging",
        "https://acme-staging-v02.api.letsencrypt.org/directory",
        "Let's Encrypt, for trying out (browsers warn)",
    ),
    ("zerossl", "https://acme.zerossl.com/v2/DV90", "ZeroSSL (needs an account there)"),
];

/// Nobody looks after a public certificate on this box just now.
const NO_ACME: &str = "the folder for public certificates (pki/public) could not be opened when the box started, so that none is asked for nor renewed; see whether the disk is full, then restart the box; its log says more";

/// The form, as it was filled in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    names: String,
    authority: String,
    directory: String,
    root: String,
    account: String,
    account_secret: String,
    contact: String,
    proof: String,
    server: String,
    zone: String,
    key: String,
    key_secret: String,
    hook: String,
    hook_secret: String,
    wait: String,
}

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Query(said): Query<Said>,
) -> Response {
    let wish = Wish::of(&gateway.status().site);
    page(&gateway, &who, frame::said(&said.said), &wish)
}

pub(super) async fn set(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let wrong = |why: &str| {
        let top = banner(Tone::Bad, html! { p { (sentence(why)) } });
        with_status(StatusCode::BAD_REQUEST, page(&gateway, &who, top, &wish))
    };
    let certificate = match wish.read() {
        Ok(certificate) => certificate,
        Err(why) => return Ok(wrong(&why)),
    };
    let change = SiteChange::Certificate(Box::new(certificate));
    if let Err(why) = change.applied_to(&gateway.status().site).check() {
        return Ok(wrong(&why.to_string()));
    }
    match change_with(&gateway, &who, change, wish.secrets()).await {
        Ok(()) => Ok(Redirect::to("/certificate?said=certificate").into_response()),
        Err(error) if error.status().is_server_error() => Err(error),
        Err(error) => {
            let again = match wish.secrets().is_empty() {
                true => "",
                false => " The secrets that you typed have to be typed again.",
            };
            let why = format!(
                "{} The certificate of now and its secrets stay as they were.{again}",
                sentence(&error.to_string())
            );
            Ok(wrong(&why))
        }
    }
}

/// Makes the change, with secrets that count when it is made and never if it is refused.
async fn change_with(
    gateway: &Gateway,
    who: &SignedIn,
    change: SiteChange,
    typed: Vec<(SecretName, SecretText)>,
) -> Result<(), Trouble> {
    let wanted = match &change {
        SiteChange::Certificate(wanted) => Some(wanted.as_ref().clone()),
        _ => None,
    };
    let mut secrets = typed.clone();
    // Whoever names another service does not thereby hand it what was meant for the one before.
    let moves = moves_the_hook(&gateway.status().site, &change);
    if moves && typed.iter().all(|(name, _)| *name != SecretName::Hook) {
        secrets.push((SecretName::Hook, SecretText::new("")));
    }
    let acme = match (&gateway.acme, typed.is_empty()) {
        (None, false) => return Err(no_acme()),
        (acme, _) => acme.as_ref(),
    };
    if let Some(acme) = acme {
        // Before the change, so that the first try has them.
        acme.keep_for(wanted.as_ref(), secrets).map_err(no_files)?;
    }
    let changed = change_site(gateway, who, change).await;
    match (&changed, acme) {
        (Ok(()), Some(acme)) => acme.look(),
        // Of a change whose answer was lost nobody knows whether it was made; they wait for it.
        (Err(Trouble::Ask(AskError::Away(_))), _) | (_, None) => {}
        (Err(_), Some(acme)) => acme.leave_waiting().map_err(no_files)?,
    }
    changed?;
    for (name, _) in typed {
        let (what, on) = secret_in_words(name, false);
        // It is changed already: who keeps the trail and is away or has no room hears of it later.
        who.record(gateway, what, on).await;
    }
    Ok(())
}

pub(super) async fn again(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    gateway.acme.as_ref().ok_or_else(no_acme)?.try_now().map_err(no_files)?;
    who.record(&gateway, "asked for a renewal of", "the public certificate").await;
    Ok(Redirect::to("/certificate?said=certificate-again").into_response())
}

pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
) -> Result<Response, Trouble> {
    change_with(&gateway, &who, SiteChange::RemoveCertificate, Vec::new()).await?;
    Ok(Redirect::to("/certificate?said=certificate-removed").into_response())
}

/// Is the web service that is asked now not asked any more?
fn moves_the_hook(site: &Site, change: &SiteChange) -> bool {
    let hook =
        |certificate: &PublicCertificate| certificate.dns_hook.as_ref().map(|h| h.url.clone());
    let next = match change {
        SiteChange::Certificate(certificate) => hook(certificate),
        _ => None,
    };
    let before = site.certificate.as_ref().and_then(hook);
    before.is_some() && next != before
}

fn no_acme() -> Trouble {
    Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, NO_ACME.to_owned())
}

fn no_files(error: AcmeError) -> Trouble {
    match error {
        AcmeError::NoneWanted => Trouble::Say(StatusCode::BAD_REQUEST, error.to_string()),
        AcmeError::Files(_) => Trouble::Say(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Wish {
    /// As the site has it; without secrets, which no page shows.
    fn of(site: &Site) -> Self {
        let Some(certificate) = &site.certificate else {
            let public = |name: &&String| name.parse::<polder_site::PublicName>().is_ok();
            let names: Vec<&str> =
                site.door.names.iter().filter(public).map(String::as_str).collect();
            return Self { names: names.join(" "), ..Self::default() };
        };
        let names: Vec<&str> = certificate.names.iter().map(|name| name.as_str()).collect();
        let directory = certificate.directory.as_str();
        let known = AUTHORITIES.iter().find(|(_, known, _)| *known == directory);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut wish = Self {
            names: names.join(" "),
            authority: known.map_or("other", |(name, ..)| name).to_owned(),
            directory: known.map_or(directory, |_| "").to_owned(),
            root: text(&certificate.root),
            account: text(&certificate.account),
            contact: text(&certificate.contact),
            proof: "http".to_owned(),
            ..Self::default()
        };
        if let Some(update) = &certificate.dns_update {
            wish.proof = "dns-update".to_owned();
            wish.server = update.server.to_string();
            (wish.zone, wish.key) = (update.zone.clone(), update.key.clone());
            wish.wait = update.wait.to_string();
        } else if let Some(hook) = &certificate.dns_hook {
            wish.proof = "dns-hook".to_owned();
            wish.hook = hook.url.to_string();
            wish.wait = hook.wait.to_string();
        }
        wish
    }

    /// Those that were typed.
    fn secrets(&self) -> Vec<(SecretName, SecretText)> {
        let all = [
            (SecretName::Account, &self.account_secret),
            (SecretName::DnsKey, &self.key_secret),
            (SecretName::Hook, &self.hook_secret),
        ];
        let typed = all.into_iter().filter(|(_, text)| !text.trim().is_empty());
        typed.map(|(name, text)| (name, SecretText::new(text))).collect()
    }

    fn read(&self) -> Result<PublicCertificate, String> {
        let said = |error: CertificateError| error.to_string();
        let names = self.names.split([',', ' ', '\n', '\r', '\t']).filter(|name| !name.is_empty());
        let names = names.map(|name| name.parse().map_err(said)).collect::<Result<_, _>>()?;
        let known = AUTHORITIES.iter().find(|(name, ..)| *name == self.authority);
        let directory: DirectoryUrl =
            known.map_or(self.directory.trim(), |(_, url, _)| url).parse().map_err(said)?;
        let some = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let wait = match self.wait.trim() {
            "" => 20,
            wait => wait.parse().map_err(|_| {
                format!("{wait:?} is not a number of seconds; write one up to 65535")
            })?,
        };
        let dns_update = match self.proof.as_str() {
            "dns-update" => Some(DnsUpdate {
                server: self.server.trim().parse().map_err(said)?,
                zone: self.zone.trim().to_owned(),
                key: self.key.trim().to_owned(),
                wait,
            }),
            _ => None,
        };
        let dns_hook = match self.proof.as_str() {
            "dns-hook" => Some(DnsHook { url: self.hook.trim().parse().map_err(said)?, wait }),
            _ => None,
        };
        let root = some(&self.root).map(|root| root.replace('\r', ""));
        Ok(PublicCertificate {
            names,
            directory,
            account: some(&self.account),
            contact: some(&self.contact),
            root,
            dns_update,
            dns_hook,
        })
    }
}

fn page(gateway: &Gateway, who: &SignedIn, top: Markup, wish: &Wish) -> Response {
    let status = gateway.acme.as_ref().map(|acme| acme.status()).unwrap_or_default();
    let site = gateway.status().site.clone();
    let body = html! {
        (top)
        @if gateway.acme.is_none() { (banner(Tone::Bad, html! { p { (sentence(NO_ACME)) } })) }
        (state(&status, site.certificate.is_some()))
        (form(wish, &status, site.certificate.is_some()))
    };
    let page = Page {
        title: "Certificate",
        lead: Some("A certificate that every device trusts, for names that the world knows."),
        reload: status.doing.is_some().then_some(3),
        ..Page::default()
    };
    answer(&page, &nav(gateway, &who.member, "/certificate"), body)
}

fn state(status: &PublicStatus, wanted: bool) -> Markup {
    let now = frame::now();
    html! {
        section.card {
            div.row.spread { h2 { "How it is" } (mark(status, wanted, now)) }
            @if !wanted {
                (empty("The box has only its own certificate. Members tell their devices once to trust it; that needs nothing from the internet, and it stays whatever is chosen here."))
            } @else {
                @if let Some(failed) = &status.failed {
                    (banner(Tone::Bad, html! {
                        p { (sentence(&failed.why)) }
                        p.small { "Tried " (when(failed.at, now)) @if failed.times > 1 { ", for the " (failed.times) "th time" } "." }
                    }))
                }
                @if let Some(held) = &status.held { (held_facts(held, now)) }
                @if !status.next.is_empty() || status.doing.is_some() { p { @match &status.doing {
                    Some(doing) => { "Just now the box " (doing) "." },
                    None => { "Next: " (status.next) "." },
                } } }
                div.row {
                    form method="post" action="/certificate/again" {
                        button.quiet type="submit" { @if status.failed.is_some() || status.held.is_none() { "Try now" } @else { "Renew now" } }
                    }
                    form method="post" action="/certificate/remove"
                        data-confirm="Have only the box's own certificate? Devices that do not trust it are warned then." {
                        button.danger type="submit" { "Do without" }
                    }
                }
            }
        }
    }
}

fn held_facts(held: &HeldCertificate, now: i64) -> Markup {
    facts(&[
        ("For", html! { @for name in &held.names { code { (name) } " " } }),
        ("Signed by", html! { (held.issuer) }),
        (
            "Good until",
            html! { (polder_acme::decide::date(held.until)) " (" (when(held.until, now)) ")" },
        ),
        ("Renewed", html! { (when(held.renews, now)) }),
    ])
}

fn mark(status: &PublicStatus, wanted: bool, now: i64) -> Markup {
    match (&status.held, wanted) {
        (_, false) => badge(Tone::Plain, "not wanted"),
        (Some(held), _) if held.until < now => badge(Tone::Bad, "over"),
        (Some(_), _) if status.failed.is_some() => badge(Tone::Warn, "renewal fails"),
        (Some(_), _) => badge(Tone::Good, "good"),
        (None, _) if status.failed.is_some() => badge(Tone::Bad, "none yet"),
        (None, _) => badge(Tone::Warn, "none yet"),
    }
}

fn form(wish: &Wish, status: &PublicStatus, wanted: bool) -> Markup {
    let kept = |name: SecretName, text: &'static str| match status.secrets.contains(&name) {
        true => "There is one. Empty: it stays.",
        false => text,
    };
    let authorities: Vec<Choice<'_>> = AUTHORITIES
        .iter()
        .map(|(value, _, label)| Choice { value, label })
        .chain([Choice { value: "other", label: "another one, by its address" }])
        .collect();
    html! {
        section.card {
            h2 { @if wanted { "Have another one" } @else { "Have one" } }
            p.soft { "The names must be yours in the DNS. The authority publishes every name that it signs, and by asking it the box agrees to its terms, in your collective's name." }
            form.stack method="post" action="/certificate" {
                div.fields {
                    (field(&Field { name: "names", label: "Names", hint: "gpu.example.org, and *.gpu.example.org for the apps below it (by a proof in the DNS only)", value: &wish.names, required: true, ..Field::default() }))
                    (select("authority", "Who signs", "", &authorities, &wish.authority))
                    (select("proof", "How the names are proved", "The DNS is possible wherever the box is; the other way needs a router that forwards port 80 to it.", &[
                        Choice { value: "dns-update", label: "the box writes into the DNS zone (RFC 2136)" },
                        Choice { value: "dns-hook", label: "a web service writes into the DNS zone" },
                        Choice { value: "http", label: "the authority asks the box at port 80" },
                    ], &wish.proof))
                }
                fieldset {
                    legend { "If the box writes into the DNS zone" }
                    div.fields {
                        (field(&Field { name: "server", label: "Primary server", hint: "Its name or address", value: &wish.server, ..Field::default() }))
                        (field(&Field { name: "zone", label: "Zone", hint: "example.org", value: &wish.zone, ..Field::default() }))
                        (field(&Field { name: "key", label: "Name of the key", hint: "hmac-sha256, allowed to change TXT records", value: &wish.key, ..Field::default() }))
                        (field(&Field { name: "key_secret", label: "Secret of the key", kind: "password", hint: kept(SecretName::DnsKey, "In base64, as tsig-keygen prints it"), ..Field::default() }))
                    }
                }
                fieldset {
                    legend { "If a web service does" }
                    div.fields {
                        (field(&Field { name: "hook", label: "Its address", hint: "It speaks as lego's httpreq: POST /present and /cleanup", value: &wish.hook, ..Field::default() }))
                        (field(&Field { name: "hook_secret", label: "Its secret", kind: "password", hint: kept(SecretName::Hook, "NAME:PASSWORD, or a token"), ..Field::default() }))
                    }
                }
                details {
                    summary { "More" }
                    div.fields {
                        (field(&Field { name: "directory", label: "Address of another authority", hint: "Its ACME directory", value: &wish.directory, ..Field::default() }))
                        (field(&Field { name: "account", label: "Number of an account's key there", hint: "Where the authority demands one (EAB)", value: &wish.account, ..Field::default() }))
                        (field(&Field { name: "account_secret", label: "Its secret", kind: "password", hint: kept(SecretName::Account, "In base64, as the authority shows it"), ..Field::default() }))
                        (field(&Field { name: "contact", label: "E-mail address for the authority", hint: "Empty: none", value: &wish.contact, ..Field::default() }))
                        (field(&Field { name: "wait", label: "Seconds until the whole DNS knows", hint: "Empty: 20", value: &wish.wait, ..Field::default() }))
                    }
                    div.field {
                        label for="root" { "Certificate of a private authority" }
                        p.hint id="root-hint" { "PEM, by which its directory is trusted" }
                        textarea #root name="root" rows="4" aria-describedby="root-hint" { (wish.root) }
                    }
                }
                button type="submit" { @if wanted { "Have this one instead" } @else { "Get it" } }
            }
        }
    }
}

/// On the dashboard: which names, until when, what comes next, what failed.
pub(super) fn line(gateway: &Gateway) -> Markup {
    let Some(acme) = &gateway.acme else {
        // Who wants none misses nothing.
        return html! {
            @if gateway.status().site.certificate.is_some() { (banner(Tone::Bad, html! { p { (sentence(NO_ACME)) } })) }
        };
    };
    let (status, now) = (acme.status(), frame::now());
    html! {
        @if status.wanted.is_empty() {
            p.soft.small { a href="/certificate" { "Get a certificate that every device trusts" } }
        } @else {
            @if let Some(failed) = &status.failed {
                (banner(if status.held.as_ref().is_some_and(|held| held.until > now) { Tone::Warn } else { Tone::Bad }, html! { p { (sentence(&failed.why)) } }))
            }
            p.soft.small {
                @for name in &status.wanted { code { (name) } " " }
                @match &status.held {
                    Some(held) => { "signed by " (held.issuer) ", good until " (polder_acme::decide::date(held.until)) ", renewed " (when(held.renews, now)) ". " },
                    None => { "not certified yet; next: " (status.next) ". " },
                }
                a href="/certificate" { "The public certificate" }
            }
        }
    }
}

/// Does every device trust the box where somebody calls it so?
pub(super) fn trusts_by_itself(gateway: &Gateway, base: &str) -> bool {
    let site = &gateway.status().site;
    let Some(certificate) = site.certificate.as_ref().filter(|c| c.root.is_none()) else {
        return false;
    };
    let held = gateway.acme.as_ref().and_then(|acme| acme.status().held);
    let host = base.split_once("://").and_then(|(_, host)| parse_host(host.as_bytes()).ok());
    let (Some(held), Some(host)) = (held, host) else { return false };
    let staging = certificate.directory.as_str() == AUTHORITIES[1].1;
    !staging && held.until > frame::now() && held.names.contains(&host.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_steward_enters_is_what_the_page_shows_again_without_secrets() {
        let wish = Wish {
            names: "gpu.example.org, *.gpu.example.org".into(),
            authority: "lets-encrypt".into(),
            proof: "dns-update".into(),
            server: " 192.0.2.1 ".into(),
            zone: "example.org".into(),
            key: "box".into(),
            key_secret: "never shown".into(),
            ..Wish::default()
        };
        let certificate = wish.read().unwrap();
        assert_eq!(certificate.directory.as_str(), AUTHORITIES[0].1);
        let site = SiteChange::Certificate(Box::new(certificate)).applied_to(&Site::unclaimed(1));
        site.check().unwrap();
        let again = Wish::of(&site);
        assert_eq!(again.names, "gpu.example.org *.gpu.example.org");
        assert_eq!(
            (again.authority.as_str(), again.proof.as_str()),
            ("lets-encrypt", "dns-update")
        );
        assert_eq!((again.server.as_str(), again.wait.as_str()), ("192.0.2.1", "20"));
        assert!(again.key_secret.is_empty());
        let shown = form(&again, &PublicStatus::default(), true).into_string();
        assert!(!shown.contains("never shown"));
    }

    #[test]
    fn a_hook_elsewhere_does_not_get_the_secret_of_the_one_before() {
        let to = |url: &str| {
            let wish = Wish {
                names: "gpu.example.org".into(),
                authority: "lets-encrypt".into(),
                proof: "dns-hook".into(),
                hook: url.into(),
                ..Wish::default()
            };
            SiteChange::Certificate(Box::new(wish.read().unwrap()))
        };
        let site = to("https://hook.example").applied_to(&Site::unclaimed(1));
        assert!(!moves_the_hook(&site, &to("https://hook.example")));
        assert!(moves_the_hook(&site, &to("https://elsewhere.example")));
        assert!(moves_the_hook(&site, &SiteChange::RemoveCertificate));
        // It may have been given at the machine before.
        assert!(!moves_the_hook(&Site::unclaimed(1), &to("https://hook.example")));
    }

    #[test]
    fn what_cannot_be_is_said_with_what_to_write_instead() {
        let of = |change: fn(&mut Wish)| {
            let mut wish = Wish {
                names: "gpu.example.org".into(),
                authority: "lets-encrypt".into(),
                ..Wish::default()
            };
            change(&mut wish);
            wish.read().unwrap_err()
        };
        assert!(of(|w| w.names = "box.local".into()).contains("write one as in gpu.example.org"));
        assert!(of(|w| w.authority = "other".into()).contains("write it whole"));
        assert!(of(|w| w.proof = "dns-update".into()).contains("DNS server"));
        assert!(of(|w| w.wait = "soon".into()).contains("number of seconds"));
    }
}
