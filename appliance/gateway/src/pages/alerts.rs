//! On the page Health: how stewards are told, and a test of each way.

use std::sync::Arc;

use axum::Form;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use polder_control::{
    AlertSecret, Channel, ChannelState, HealthReply, HealthReport, HealthRequest,
};
use polder_page::{Choice, Field, Tone, badge, banner, field, hidden, select, tick, when};
use polder_site::{Alerts, AlertsFrom, MailSecurity, MailServer, SiteChange};
use serde::Deserialize;

use crate::Gateway;
use crate::health::ask;
use crate::pages::apps::change_site;
use crate::pages::frame::{self, Trouble, sentence, with_status};
use crate::pages::health;
use crate::pages::who::Steward;

/// The form, as it was filled in. Secrets are never filled in again.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Wish {
    from: String,
    server: String,
    port: String,
    security: String,
    sender: String,
    user: String,
    password: String,
    webhook: String,
    webhook_url: String,
    ntfy: String,
    ntfy_url: String,
    ntfy_token: String,
    dead_man: String,
    dead_man_url: String,
}

#[derive(Deserialize)]
pub(super) struct Test {
    channel: String,
}

/// Sends a test, and says how it went.
pub(super) async fn test(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(Test { channel }): Form<Test>,
) -> Result<Response, Trouble> {
    let channel =
        Channel::of(&channel).ok_or_else(|| Trouble::not_found("there is no such way"))?;
    let top = match ask(&gateway, HealthRequest::Test(channel)).await {
        Ok(_) => banner(
            Tone::Good,
            html! { p { "A test was sent by " (words(channel)) ". It has worked if it arrives." } },
        ),
        Err(why) => banner(
            Tone::Bad,
            html! { p { "A test by " (words(channel)) " did not work. " (sentence(&why)) } },
        ),
    };
    Ok(health::page(&gateway, &who, top, &Wish::default()).await)
}

/// Keeps what the form says: secrets where they are kept, the rest in the site.
pub(super) async fn save(
    State(gateway): State<Arc<Gateway>>,
    Steward(who): Steward,
    Form(wish): Form<Wish>,
) -> Result<Response, Trouble> {
    let before = gateway.status().site.alerts.clone().unwrap_or_default();
    let kept = kept(&gateway).await;
    let mut read = read(&wish, &before, &kept);
    for (secret, value) in secrets(&wish) {
        if read.is_err() {
            break;
        }
        match ask(&gateway, HealthRequest::Keep { secret, value: value.to_owned() }).await {
            Ok(_) => who.record(&gateway, "changed, to tell stewards,", name(secret)).await,
            Err(why) => read = Err(format!("{}: {why}", name(secret))),
        }
    }
    match read {
        Ok(alerts) => {
            change_site(&gateway, &who, SiteChange::Alerts(alerts)).await?;
            Ok(Redirect::to("/issues?said=alerts").into_response())
        }
        Err(why) => {
            let wrong = banner(Tone::Bad, html! { p { (sentence(&why)) } });
            let page = health::page(&gateway, &who, wrong, &wish).await;
            Ok(with_status(StatusCode::BAD_REQUEST, page))
        }
    }
}

async fn kept(gateway: &Gateway) -> Vec<AlertSecret> {
    match ask(gateway, HealthRequest::Kept).await {
        Ok(HealthReply::Kept(kept)) => kept,
        _ => Vec::new(),
    }
}

/// Those that were typed; an empty field leaves a secret as it is.
fn secrets(wish: &Wish) -> Vec<(AlertSecret, &str)> {
    let all = [
        (AlertSecret::MailPassword, &wish.password),
        (AlertSecret::WebhookUrl, &wish.webhook_url),
        (AlertSecret::NtfyUrl, &wish.ntfy_url),
        (AlertSecret::NtfyToken, &wish.ntfy_token),
        (AlertSecret::DeadManUrl, &wish.dead_man_url),
    ];
    let typed = all.into_iter().map(|(secret, value)| (secret, value.trim()));
    typed.filter(|(_, value)| !value.is_empty()).collect()
}

fn name(secret: AlertSecret) -> &'static str {
    match secret {
        AlertSecret::MailPassword => "the mail password",
        AlertSecret::WebhookUrl => "the webhook",
        AlertSecret::NtfyUrl => "the ntfy topic",
        AlertSecret::NtfyToken => "the ntfy token",
        AlertSecret::DeadManUrl => "the address for \"all is well\"",
    }
}

fn read(wish: &Wish, before: &Alerts, kept: &[AlertSecret]) -> Result<Alerts, String> {
    let from = match wish.from.as_str() {
        "notice" => AlertsFrom::Notice,
        "urgent" => AlertsFrom::Urgent,
        _ => AlertsFrom::Warning,
    };
    let on = |ticked: &str, url: &str, secret| match ticked == "yes" {
        true if url.trim().is_empty() && !kept.contains(&secret) => {
            Err(format!("{} is not known yet; type it once, the box keeps it", name(secret)))
        }
        ticked => Ok(ticked),
    };
    Ok(Alerts {
        from,
        mail: mail(wish, before)?,
        webhook: on(&wish.webhook, &wish.webhook_url, AlertSecret::WebhookUrl)?,
        ntfy: on(&wish.ntfy, &wish.ntfy_url, AlertSecret::NtfyUrl)?,
        dead_man: on(&wish.dead_man, &wish.dead_man_url, AlertSecret::DeadManUrl)?,
    })
}

/// An empty server means no mail. What the form has no field for stays.
fn mail(wish: &Wish, before: &Alerts) -> Result<Option<MailServer>, String> {
    let server = wish.server.trim();
    if server.is_empty() {
        return Ok(None);
    }
    let (security, usual) = match wish.security.as_str() {
        "starttls" => (MailSecurity::Starttls, 587),
        "none" => (MailSecurity::None, 25),
        _ => (MailSecurity::Tls, 465),
    };
    let port = match wish.port.trim() {
        "" => usual,
        port => port.parse().map_err(|_| format!("{port} is not a port"))?,
    };
    let say = |error: polder_site::MailError| error.to_string();
    let user = Some(wish.user.trim().to_owned()).filter(|user| !user.is_empty());
    let authority = before.mail.as_ref().and_then(|mail| mail.authority.clone());
    let (server, sender) = (server.parse().map_err(say)?, wish.sender.trim().parse().map_err(say)?);
    let server = MailServer { server, port, security, sender, user, authority };
    server.check().map_err(say)?;
    Ok(Some(server))
}

/// The site as the form would say it.
fn filled(alerts: &Alerts) -> Wish {
    let from = match alerts.from {
        AlertsFrom::Notice => "notice",
        AlertsFrom::Warning => "warning",
        AlertsFrom::Urgent => "urgent",
    };
    let yes = |on: bool| if on { "yes".to_owned() } else { String::new() };
    let mut wish = Wish {
        from: from.to_owned(),
        webhook: yes(alerts.webhook),
        ntfy: yes(alerts.ntfy),
        dead_man: yes(alerts.dead_man),
        ..Wish::default()
    };
    if let Some(mail) = &alerts.mail {
        let security = match mail.security {
            MailSecurity::Tls => "tls",
            MailSecurity::Starttls => "starttls",
            MailSecurity::None => "none",
        };
        wish.server = mail.server.to_string();
        wish.port = mail.port.to_string();
        wish.security = security.to_owned();
        wish.sender = mail.sender.to_string();
        wish.user = mail.user.clone().unwrap_or_default();
    }
    wish
}

pub(super) async fn section(
    gateway: &Gateway,
    report: Option<&HealthReport>,
    typed: &Wish,
) -> Markup {
    let known = filled(&gateway.status().site.alerts.clone().unwrap_or_default());
    // Whoever filled in the form wrong sees it as it was filled in.
    let wish = if typed.from.is_empty() { &known } else { typed };
    let kept = kept(gateway).await;
    let states = report.map(|report| &report.channels[..]).unwrap_or_default();
    let text = |name, label, hint, value: &str| {
        field(&Field { name, label, hint, value, ..Field::default() })
    };
    let secret = |name, label, which, otherwise| {
        let hint = match kept.contains(&which) {
            true => "Kept; type another one to change it",
            false => otherwise,
        };
        field(&Field { name, label, kind: "password", hint, ..Field::default() })
    };
    let yes = |value: &str| value == "yes";
    html! {
        section.card {
            h2 { "Telling stewards" }
            p.soft { "Every steward who gave an e-mail address is told by mail; a webhook and ntfy tell whoever listens there. Nothing is told twice, and when it is over that is told too." }
            @for state in states.iter().filter(|state| state.on) { (how(state)) }
            form.stack method="post" action="/issues/alerts" {
                (select("from", "What is told", "", &[
                    Choice { value: "notice", label: "Everything, also updates" },
                    Choice { value: "warning", label: "What is to be looked at within days, and worse" },
                    Choice { value: "urgent", label: "Only what is urgent" },
                ], &wish.from))
                div.fields {
                    (text("server", "Mail server", "smtp.example.org; empty: no mail", &wish.server))
                    (select("security", "Secured by", "", &[
                        Choice { value: "tls", label: "TLS (usually port 465)" },
                        Choice { value: "starttls", label: "STARTTLS (usually port 587)" },
                        Choice { value: "none", label: "Nothing: a server on this machine" },
                    ], &wish.security))
                    (text("port", "Port", "Empty: the usual one", &wish.port))
                    (text("sender", "From", "box@example.org", &wish.sender))
                    (text("user", "User", "Empty: the server takes mail without", &wish.user))
                    (secret("password", "Password", AlertSecret::MailPassword, "Only this box keeps it, in a file of its own"))
                }
                (tick("webhook", "A webhook", "A JSON document is sent there", yes(&wish.webhook)))
                (secret("webhook_url", "Its web address", AlertSecret::WebhookUrl, "Begins with https://"))
                (tick("ntfy", "ntfy", "A message to telephones that follow a topic", yes(&wish.ntfy)))
                (secret("ntfy_url", "The topic's web address", AlertSecret::NtfyUrl, "https://ntfy.sh/a-name-that-nobody-guesses"))
                (secret("ntfy_token", "Its access token", AlertSecret::NtfyToken, "If it needs one"))
                (tick("dead_man", "Say every five minutes that all is well", "Somebody elsewhere then notices silence: a box without power can tell nobody", yes(&wish.dead_man)))
                (secret("dead_man_url", "To this web address", AlertSecret::DeadManUrl, "From a service such as healthchecks.io, or one of your own"))
                button type="submit" { "Keep this" }
            }
        }
    }
}

fn how(state: &ChannelState) -> Markup {
    html! {
        div.row.spread {
            p {
                (words(state.channel)) ": "
                @match (&state.failed, state.worked) {
                    (Some(why), _) => { (badge(Tone::Bad, "does not work")) " " (sentence(why)) },
                    (None, Some(at)) => { (badge(Tone::Good, "works")) " " span.soft { (when(at, frame::now())) } },
                    (None, None) => { (badge(Tone::Plain, "not used yet")) },
                }
            }
            form method="post" action="/issues/test" {
                (hidden("channel", state.channel.word()))
                button.quiet type="submit" { "Send a test" }
            }
        }
    }
}

fn words(channel: Channel) -> &'static str {
    match channel {
        Channel::Mail => "mail",
        Channel::Webhook => "webhook",
        Channel::Ntfy => "ntfy",
        Channel::DeadMan => "the sign that all is well",
    }
}
