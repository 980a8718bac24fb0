//! Step 8: the first member, and what they get: a key, and how to use it.

use axum::Form;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use maud::{Markup, html};
use polder_page::{Field, copyable, field};
use serde::Deserialize;

use crate::address::how_to_trust;
use crate::host::{Host, Newcomer, SetupError, Trust};
use crate::page::{self, Page};
use crate::setup::{Claimer, Setup, no_cookie, refuse};
use crate::wizard::Step;

#[derive(Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    again: String,
}

/// The page.
pub(crate) async fn show<H: Host>(State(_): State<Setup<H>>, who: Claimer) -> Response {
    match who.elsewhere_before(Step::Member) {
        None => page(&who, "", None).into_response(),
        Some(elsewhere) => elsewhere,
    }
}

/// Makes the member, and shows the key: the only time.
pub(crate) async fn make<H: Host>(
    State(setup): State<Setup<H>>,
    who: Claimer,
    Form(answer): Form<Answer>,
) -> Response {
    if let Some(elsewhere) = who.elsewhere_before(Step::Member) {
        return elsewhere;
    }
    let name = answer.name.trim().to_owned();
    if answer.password != answer.again {
        let why = "the two passwords are not the same; type both again";
        return (StatusCode::BAD_REQUEST, page(&who, &name, Some(why))).into_response();
    }
    let made =
        setup.make_member(who.token.clone(), name.clone(), answer.password, who.visitor.tls).await;
    let newcomer = match made {
        Ok(newcomer) => newcomer,
        Err(SetupError::Refused(why)) => {
            return (StatusCode::BAD_REQUEST, page(&who, &name, Some(&why))).into_response();
        }
        Err(error) => return refuse(error),
    };
    let model = who.wizard.recipe().map(ToString::to_string).unwrap_or_default();
    let trust = setup.host().trust().await.ok();
    let done = done(&who, &name, &model, &newcomer, trust.as_ref());
    let mut response = Page::new(Step::Done).body(done).into_response();
    for cookie in newcomer.cookies.into_iter().chain([no_cookie(who.visitor.tls)]) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn page(who: &Claimer, name: &str, error: Option<&str>) -> Page {
    let called = who.wizard.name().map(ToString::to_string).unwrap_or_default();
    let fields = [
        Field {
            name: "name",
            label: "Your name",
            value: name,
            hint: "With it you sign in, and the others see it.",
            autocomplete: "username",
            required: true,
            ..Field::default()
        },
        Field {
            name: "password",
            label: "A password",
            kind: "password",
            hint: "Ten signs or more, any you like: four words that only you put together are good.",
            autocomplete: "new-password",
            required: true,
            ..Field::default()
        },
        Field {
            name: "again",
            label: "The same password again",
            kind: "password",
            autocomplete: "new-password",
            required: true,
            ..Field::default()
        },
    ];
    Page::new(Step::Member)
        .notice(who.notice.as_deref())
        .body(html! {
            p {
                "You become the first steward of " strong { (called) } ": stewards invite others, "
                "choose models and look after the box. Later you can make others stewards too."
            }
            @if let Some(error) = error { (page::error(error)) }
            form .card method="post" action=(Step::Member.path()) {
                @for each in &fields { (field(each)) }
                button type="submit" { "Make me the first steward" }
            }
        })
        .next("you get a key for your programs, and can ask the model something right away.")
}

fn done(
    who: &Claimer,
    name: &str,
    model: &str,
    newcomer: &Newcomer,
    trust: Option<&Trust>,
) -> Markup {
    let base = format!("https://{}/v1", who.host);
    let ca_file = trust.map(|t| t.ca_file.display().to_string()).unwrap_or_default();
    let key = &newcomer.api_key;
    html! {
        p role="status" { "Welcome, " strong { (name) } ". The box is yours, and you are signed in." }
        p .row {
            a .button href="/chat" { "Ask the model something" }
            a .button.quiet href="/dashboard" { "See how the box is" }
        }
        section .card {
            h2 { "Your key" }
            p { "Your programs show it to the box. It is shown only now: keep it where you keep passwords." }
            div .wrap { (copyable("key", "Your key", key)) }
        }
        section .card {
            h2 { "The emergency kit" }
            p {
                "One sheet of paper brings the collective's members, keys and settings back when this machine burns or is stolen: on another one, from a backup. "
                "Print it now; then type its key back, so that you know that it can be read."
            }
            div .row {
                // Beside this page: the key above is shown only once.
                form method="post" action="/backup/kit" target="_blank" { button type="submit" { "Show the sheet, to be printed" } }
                a .button.quiet href="/backup" target="_blank" { "Type its key back, and say where backups go" }
            }
        }
        section .card {
            h2 { "Try it" }
            h3 { "With curl" }
            (copyable("curl", "A question with curl", curl(&base, &ca_file, key, model)))
            h3 { "With Python and the openai package" }
            (copyable("python", "A question with Python", python(&base, &ca_file, key, model)))
            p .hint {
                "The file " code { (ca_file) } " is on this machine. On another computer, first fetch it from the box"
                @if let Some(trust) = trust { " (" a href=(trust.page) { "how" } ")" }
                " and write down its place there."
            }
        }
        @if let Some(trust) = trust { (how_to_trust(trust)) }
    }
}

fn curl(base: &str, ca_file: &str, key: &str, model: &str) -> String {
    let question = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": true,
    });
    [
        format!("curl -N {} \\", quoted(&format!("{base}/chat/completions"))),
        format!("  --cacert {} \\", quoted(ca_file)),
        format!("  -H {} \\", quoted(&format!("Authorization: Bearer {key}"))),
        "  -H 'Content-Type: application/json' \\".to_owned(),
        format!("  -d {}", quoted(&question.to_string())),
    ]
    .join("\n")
}

fn python(base: &str, ca_file: &str, key: &str, model: &str) -> String {
    // JSON's strings are Python's.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    [
        "import ssl".to_owned(),
        "from openai import DefaultHttpxClient, OpenAI".to_owned(),
        String::new(),
        "trust = ssl.create_default_context(".to_owned(),
        format!("    cafile={})", text(ca_file)),
        "box = OpenAI(".to_owned(),
        format!("    base_url={},", text(base)),
        format!("    api_key={},", text(key)),
        "    http_client=DefaultHttpxClient(verify=trust))".to_owned(),
        "for piece in box.chat.completions.create(".to_owned(),
        format!("        model={}, stream=True,", text(model)),
        "        messages=[{\"role\": \"user\",".to_owned(),
        "                   \"content\": \"Say hello.\"}]):".to_owned(),
        "    for choice in piece.choices:".to_owned(),
        "        print(choice.delta.content or \"\", end=\"\", flush=True)".to_owned(),
    ]
    .join("\n")
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
