//! How to reach the box from one's own tools, and how to trust it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use polder_control::{EngineStatus, PartState};
use polder_page::{Page, Tone, banner, card, copyable, facts};
use polder_recipes::Recipe;

use crate::Gateway;
use crate::host::parse_host;
use crate::naming;
use crate::pages::certificate;
use crate::pages::chat::trial_banner;
use crate::pages::frame::{answer, nav, plain_nav};
use crate::pages::who::{Caller, SignedIn};

pub(super) async fn show(State(gateway): State<Arc<Gateway>>, who: SignedIn) -> Response {
    let (status, trying) = (gateway.status(), gateway.members.trying(who.member.id));
    // A name of the collective's own, where there is one: it stays when the model changes.
    let first = naming::names(&status, trying).into_iter().next();
    let (model, engine) = first.map(|(name, engine)| (name, engine.clone())).unzip();
    let name = model.as_deref().unwrap_or("MODEL");
    let recipe = engine.as_ref().map(|engine| engine.recipe.as_str());
    let made_for = recipe.and_then(|name| Recipe::find(name).ok()?.context);
    let here = match &engine {
        Some(engine) => holds(&gateway, engine).await,
        None => None,
    };
    let context = made_for.into_iter().chain(here).min();
    // What the world trusts nobody has to be told to trust.
    let own = who.peer.tls && !certificate::trusts_by_itself(&gateway, &who.base);
    let at = Address { base: format!("{}/v1", who.base), tls: own };
    let body = html! {
        (trial_banner(&gateway, &who.member))
        @if model.is_none() { (banner(Tone::Warn, html! { p { "This box serves no model yet; write its name in place of MODEL once it does." } })) }
        (card("What every tool asks for", html! {
            (facts(&[
                ("Address (base URL)", copyable("base", "the address", &at.base)),
                ("Model", copyable("model", "the model's name", name)),
                ("API key", html! { "one of yours: " a href="/" { "make one" } " and put it in place of YOUR_KEY" }),
            ]))
            @if at.tls {
                p { "Your computer must trust this box once: " a href="/ca" { "how to" } ". The commands below expect its certificate in a file:" }
                (copyable("fetch-ca", "fetch the certificate", format!("curl -k -o ~/polder-ca.crt {}/ca.crt", who.base)))
                p.soft.small { "Then compare its fingerprint with the one on " a href="/ca" { "that page" } ", seen at the box itself: " code { "openssl x509 -in ~/polder-ca.crt -noout -fingerprint -sha256" } }
            }
        }))
        (card("curl", copyable("curl", "curl", curl(&at, name))))
        (card("OpenAI SDK for Python", html! {
            (copyable("python", "Python", python(&at, name)))
        }))
        (card("Aider", html! { (copyable("aider", "Aider", aider(&at, name))) }))
        (card("Claude Code", html! {
            @if by_address(&at.base) && at.tls { (banner(Tone::Warn, html! { p { "Claude Code takes the box by its name only, not by its address: open this page at one of its names, such as " code { (gateway.status().site.name) ".local" } ", and copy from there." } })) }
            @if context.is_some_and(|tokens| tokens < LEAST_FOR_CLAUDE_CODE) { (banner(Tone::Warn, html! { p { "This model holds too little for it." } })) }
            (copyable("claude-code", "Claude Code", claude_code(&at, name, context)))
            p.soft.small { "It sends some 16,000 tokens before your first word, and calls tools all the time: it needs a model that was made for that, and " @if context.is_none() { "you must say how much the model can hold in " code { "CLAUDE_CODE_MAX_CONTEXT_TOKENS" } "." } @else { "the line with the number says " @if here.is_some() { "how much this one holds on this machine." } @else { "for how much this one was made; on a machine with little memory it holds less." } } }
        }))
        (card("Anything else that speaks the OpenAI API", html! {
            p { "Give it the address, the model and a key from above. Answered are " code { "/v1/chat/completions" } ", " code { "/v1/responses" } ", " code { "/v1/completions" } ", " code { "/v1/embeddings" } ", " code { "/v1/models" } " and, for Anthropic's SDK with the address without " code { "/v1" } ", " code { "/v1/messages" } ". A field that the box does not know is named in the answer's header " code { "x-polder-ignored" } "." }
        }))
    };
    let page = Page {
        title: "Connect your tools",
        lead: Some("Settings to copy. Nothing here is secret except your key."),
        ..Page::default()
    };
    answer(&page, &nav(&gateway, &who.member, "/connect"), body)
}

/// Most tokens of a conversation on this machine, where the engine answers at once.
async fn holds(gateway: &Gateway, engine: &EngineStatus) -> Option<u32> {
    if engine.part.state != PartState::Ready {
        return None;
    }
    let said = gateway.engines.hear(&engine.socket, "/v1/models");
    let (status, said) = tokio::time::timeout(AT_ONCE, said).await.ok()?.ok()?;
    let said: serde_json::Value =
        serde_json::from_slice(&said.filter(|_| status.is_success())?).ok()?;
    u32::try_from(said["data"][0]["max_model_len"].as_u64()?).ok()
}

/// So long the page waits for an engine.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Claude Code's own instructions, and room for a little work.
const LEAST_FOR_CLAUDE_CODE: u32 = 24_000;

/// Whether an address leads to the box by number.
fn by_address(base: &str) -> bool {
    let host = base.split_once("://").map_or(base, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    parse_host(host.as_bytes()).is_ok_and(|host| !host.is_name())
}

struct Address {
    base: String,
    /// Over TLS, with the box's own certificate.
    tls: bool,
}

fn curl(at: &Address, model: &str) -> String {
    let ca = if at.tls { " --cacert ~/polder-ca.crt" } else { "" };
    format!(
        "curl -N{ca} {}/chat/completions \\\n  -H \"Authorization: Bearer YOUR_KEY\" \\\n  -H \"Content-Type: application/json\" \\\n  -d '{{\"model\": \"{model}\", \"stream\": true,\n       \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'",
        at.base
    )
}

fn python(at: &Address, model: &str) -> String {
    let (imports, client) = if at.tls {
        (
            "import os, ssl\nfrom openai import DefaultHttpxClient, OpenAI\n\nbox = ssl.create_default_context()\nbox.load_verify_locations(os.path.expanduser(\"~/polder-ca.crt\"))\n",
            ",\n    http_client=DefaultHttpxClient(verify=box)",
        )
    } else {
        ("from openai import OpenAI\n\n", "")
    };
    format!(
        "{imports}client = OpenAI(\n    base_url=\"{}\",\n    api_key=\"YOUR_KEY\"{client},\n)\nstream = client.chat.completions.create(\n    model=\"{model}\",\n    messages=[{{\"role\": \"user\", \"content\": \"Hello!\"}}],\n    stream=True,\n)\nfor chunk in stream:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)",
        at.base
    )
}

fn aider(at: &Address, model: &str) -> String {
    let ca = if at.tls { "export SSL_CERT_FILE=~/polder-ca.crt\n" } else { "" };
    format!(
        "{ca}export OPENAI_API_BASE={}\nexport OPENAI_API_KEY=YOUR_KEY\naider --model openai/{model}",
        at.base
    )
}

fn claude_code(at: &Address, model: &str, context: Option<u32>) -> String {
    let base = at.base.trim_end_matches("/v1");
    let ca = if at.tls { "export NODE_EXTRA_CA_CERTS=~/polder-ca.crt\n" } else { "" };
    let context = context
        .map(|tokens| format!("export CLAUDE_CODE_MAX_CONTEXT_TOKENS={tokens}\n"))
        .unwrap_or_default();
    format!(
        "{ca}export ANTHROPIC_BASE_URL={base}\nexport ANTHROPIC_AUTH_TOKEN=YOUR_KEY\nexport ANTHROPIC_MODEL={model}\nexport ANTHROPIC_DEFAULT_HAIKU_MODEL={model}\n{context}export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1   # nothing to anybody but the box\nclaude"
    )
}

/// The box's own certificate, and what to do with it. For strangers too: it is what they need
/// before their browser shows the sign-in page without a warning.
pub(super) async fn ca(State(gateway): State<Arc<Gateway>>, caller: Caller) -> Response {
    let ca = gateway.ca();
    let host = caller.base.split_once("://").map_or("", |(_, host)| host);
    let body = html! {
        @if !caller.peer.tls {
            (banner(Tone::Plain, html! { p { "You are at the machine itself, on an address that needs no certificate. This page is for everyone who comes over the network." } }))
        }
        section.card {
            p { "This box makes its own certificate, so that nobody else is needed. Your browser does not know it yet and warns. Tell your device once that you trust it, and the warning is gone." }
            p { "The certificate is good for this box's own names and addresses and for nothing else: even somebody who stole the box could not pose as another site with it." }
            p { a.button href="/ca.crt" { "Download the certificate" } }
            (facts(&[("Fingerprint (SHA-256)", html! { code { (ca.fingerprint) } })]))
            p.soft.small { "Compare it with the fingerprint on the box's own screen. If they differ, somebody is in between: stop, and tell a steward." }
        }
        section.card {
            h2 { "On your device" }
            (steps_for("macOS", &[
                "Download the certificate and open it: Keychain Access opens.",
                "Find it (its name begins with Polder) and open it with a double click.",
                "Under Trust, choose “Always Trust”, close the window, type your password.",
            ]))
            (steps_for("iPhone, iPad", &[
                "Open this page in Safari and download the certificate; allow the profile.",
                "Settings, “Profile Downloaded”, Install.",
                "Settings, General, About, Certificate Trust Settings: switch it on.",
            ]))
            (steps_for("Windows", &[
                "Download the certificate and open it, then “Install Certificate”.",
                "Choose “Current User”, then “Place all certificates in the following store”.",
                "Choose “Trusted Root Certification Authorities” and finish.",
            ]))
            (steps_for("Android", &[
                "Download the certificate.",
                "Settings, Security, More, “Install from storage” (the names differ a little), “CA certificate”.",
                "Choose the file. Browsers use it; some apps do not, by Android's rule.",
            ]))
            details {
                summary { "Linux" }
                div.stack {
                    p { "Debian, Ubuntu:" }
                    (copyable("linux-debian", "Debian, Ubuntu", "sudo cp ca.crt /usr/local/share/ca-certificates/polder.crt && sudo update-ca-certificates"))
                    p { "Fedora:" }
                    (copyable("linux-fedora", "Fedora", "sudo trust anchor ca.crt"))
                    p { "Chromium keeps its own list: Settings, Privacy and security, Security, Manage certificates, and import it there." }
                }
            }
            (steps_for("Firefox", &[
                "Firefox on macOS and Windows uses what the system trusts. Otherwise:",
                "Settings, Privacy & Security, Certificates, View Certificates, Authorities, Import.",
                "Tick “Trust this CA to identify websites”.",
            ]))
            details {
                summary { "Python, Node and other programs" }
                div.stack {
                    p { "Programs often bring their own list. Tell them the file:" }
                    (copyable("programs", "Python and Node", "export SSL_CERT_FILE=~/polder-ca.crt        # Python, curl, many others\nexport REQUESTS_CA_BUNDLE=~/polder-ca.crt   # Python requests\nexport NODE_EXTRA_CA_CERTS=~/polder-ca.crt  # Node"))
                    p.soft.small { "The first two replace the usual list for that program; Node adds to it." }
                }
            }
        }
        p { a href="/" { "To the first page" } @if !host.is_empty() { " of " (host) } }
    };
    let page = Page { title: "Trust this box", narrow: true, ..Page::default() };
    answer(&page, &plain_nav(&gateway), body)
}

fn steps_for(platform: &str, steps: &[&str]) -> Markup {
    html! {
        details {
            summary { (platform) }
            ol { @for step in steps { li { (step) } } }
        }
    }
}

/// The certificate itself. The type makes phones offer to install it.
pub(super) async fn ca_file(State(gateway): State<Arc<Gateway>>) -> Response {
    ([(header::CONTENT_TYPE, "application/x-x509-ca-cert")], gateway.ca().pem).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_told_from_a_name() {
        for (base, number) in [
            ("https://192.168.1.20:8443/v1", true),
            ("https://[fd00::1]:8443/v1", true),
            ("https://oak.local:8443/v1", false),
            ("http://localhost/v1", false),
        ] {
            assert_eq!(by_address(base), number, "{base}");
        }
    }

    #[test]
    fn what_is_copied_has_the_address_and_the_certificate_where_it_is_needed() {
        let far = Address { base: "https://oak.local:8443/v1".into(), tls: true };
        let near = Address { base: "http://localhost:8443/v1".into(), tls: false };
        let claude = |at: &Address, model: &str| {
            let text = claude_code(at, model, Some(4096));
            assert!(!text.contains("/v1") && text.contains("TOKENS=4096"), "{text}");
            text.replace("8443\n", "8443/v1\n")
        };
        for make in [&curl as &dyn Fn(&Address, &str) -> String, &python, &aider, &claude] {
            assert!(
                make(&far, "m").contains(&far.base) && make(&far, "m").contains("polder-ca.crt")
            );
            assert!(
                make(&near, "m").contains(&near.base) && !make(&near, "m").contains("polder-ca")
            );
        }
    }
}
