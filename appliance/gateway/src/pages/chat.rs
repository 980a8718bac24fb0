//! A plain chat: the conversation lives in the browser, the answer streams, nothing is kept.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use http_body_util::BodyExt;
use maud::{Markup, PreEscaped, html};
use polder_control::EngineStatus;
use polder_members::{Member, MemberId};
use polder_page::{Asset, Choice, Page, Tone, asset, banner, hidden};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Gateway;
use crate::errors::ApiError;
use crate::naming;
use crate::pages::answer::Listener;
use crate::pages::frame::{Trouble, answer, nav, sentence};
use crate::pages::models::{better_one_runs, is_trial, title};
use crate::pages::who::SignedIn;
use crate::pages::{markdown, succession};
use crate::relay::{self, Question};

/// Bytes of a whole conversation, as it is sent with every question.
pub(super) const LONGEST_TALK: usize = 4 << 20;
/// Turns of a conversation.
const MOST_TURNS: usize = 2_000;
/// The answer so far is drawn anew at most this often.
const DRAW_EVERY: Duration = Duration::from_millis(60);
/// Without JavaScript the whole answer is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Bytes of an engine's refusal that are read.
const LONGEST_REFUSAL: usize = 64 << 10;

static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    asset("chat", "js", "text/javascript; charset=utf-8", include_str!("chat.js"))
});

/// The page's script, to be served.
pub(super) fn script() -> &'static Asset {
    &SCRIPT
}

/// One turn of a conversation.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Turn {
    role: Speaker,
    content: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    User,
    Assistant,
}

/// What the script sends.
#[derive(Deserialize)]
pub(super) struct Talk {
    #[serde(default)]
    model: String,
    messages: Vec<Turn>,
}

/// What the form sends without a script.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    model: String,
    /// JSON of the turns so far.
    #[serde(default)]
    conversation: String,
    #[serde(default)]
    message: String,
}

pub(super) async fn show(State(gateway): State<Arc<Gateway>>, who: SignedIn) -> Response {
    page(&gateway, &who.member, &[], "", None)
}

/// The answer as it comes, for the script.
pub(super) async fn stream(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Json(talk): Json<Talk>,
) -> Response {
    let asked = ask(&gateway, who.member.id, &talk.model, &talk.messages).await;
    let answer = match asked {
        Ok(asked) => asked,
        Err((status, why)) => {
            return (status, Json(json!({ "why": sentence(&why) }))).into_response();
        }
    };
    let (events, heard) = mpsc::channel(8);
    tokio::spawn(pass_on(answer, events));
    // A proxy in between must not collect the stream before it passes it on.
    let mut response =
        Sse::new(ReceiverStream::new(heard)).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// The whole answer on a new page, for browsers without JavaScript.
pub(super) async fn whole(
    State(gateway): State<Arc<Gateway>>,
    who: SignedIn,
    Form(asked): Form<Asked>,
) -> Result<Response, Trouble> {
    let mut turns: Vec<Turn> = match asked.conversation.as_str() {
        "" => Vec::new(),
        text => serde_json::from_str(text).map_err(|_| {
            let why = "the conversation in the form cannot be read; begin a new one";
            Trouble::Say(StatusCode::BAD_REQUEST, why.to_owned())
        })?,
    };
    if asked.message.trim().is_empty() {
        return Ok(page(&gateway, &who.member, &turns, &asked.model, None));
    }
    turns.push(Turn { role: Speaker::User, content: asked.message });
    let answered = match ask(&gateway, who.member.id, &asked.model, &turns).await {
        Ok(answer) => {
            let listen = hear_out(answer);
            let late = || {
                Err("the answer took longer than five minutes; ask for a shorter one".to_owned())
            };
            tokio::time::timeout(LONGEST_WAIT, listen).await.unwrap_or_else(|_| late())
        }
        Err((_, why)) => Err(why),
    };
    let wrong = match answered {
        Ok(text) => {
            turns.push(Turn { role: Speaker::Assistant, content: text });
            None
        }
        Err(why) => Some(why),
    };
    Ok(page(&gateway, &who.member, &turns, &asked.model, wrong.as_deref()))
}

/// Sends the conversation to the model. The refusal is a sentence.
async fn ask(
    gateway: &Arc<Gateway>,
    member: MemberId,
    model: &str,
    turns: &[Turn],
) -> Result<Body, (StatusCode, String)> {
    if turns.is_empty() || turns.len() > MOST_TURNS {
        let why = "the conversation is empty or too long; begin a new one";
        return Err((StatusCode::BAD_REQUEST, why.into()));
    }
    let (status, trying) = (gateway.status(), gateway.members.trying(member));
    let first = || naming::names(&status, trying).first().map(|(name, _)| name.clone());
    let model = Some(model).filter(|m| !m.is_empty()).map(str::to_owned).or_else(first);
    let led = naming::resolve(&status, trying, model.as_deref(), jiff::Timestamp::now());
    let engine = led.map_err(|why| {
        let why = ApiError::from(why);
        (why.status, why.message)
    })?;
    let (slot, model) = (engine.name.clone(), engine.recipe.to_string());
    let mut body = json!({
        "messages": turns,
        "stream": true,
        // A little less chance than the API's 1.0, at which small models lose their thread.
        "temperature": 0.7,
        "top_p": 0.9,
        "stream_options": { "include_usage": true },
    });
    body["model"] = Value::from(model.as_str());
    let question = Question::json("/v1/chat/completions", &body);
    let caller = match relay::Caller::chat(&gateway.members, member).await {
        Ok(caller) => caller,
        Err(error) => return Err((error.status, refusal(error.into_response().into_body()).await)),
    };
    let response = relay::relay(gateway, caller, Some(&slot), Some(&model), question).await;
    let status = response.status();
    if status.is_success() {
        Ok(response.into_body())
    } else {
        Err((status, refusal(response.into_body()).await))
    }
}

/// The engine's or the gateway's own sentence.
async fn refusal(body: Body) -> String {
    let bytes = axum::body::to_bytes(body, LONGEST_REFUSAL).await;
    let value: Option<Value> = bytes.ok().and_then(|b| serde_json::from_slice(&b).ok());
    let said = value.as_ref().and_then(|v| v["error"]["message"].as_str());
    said.unwrap_or("the model refused the question and did not say why").to_owned()
}

/// Passes the answer on to the browser, drawn. Ends when either side does; dropping the answer's
/// body stops the engine's work.
async fn pass_on(mut body: Body, events: mpsc::Sender<Result<Event, Infallible>>) {
    let (mut listener, mut drawn) = (Listener::default(), Drawn::default());
    let mut tick = tokio::time::interval(DRAW_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let begun = Instant::now();
    loop {
        tokio::select! {
            // The person pressed Stop, or closed the page.
            () = events.closed() => return,
            _ = tick.tick(), if drawn.is_behind(&listener) => {
                if events.send(Ok(drawn.draw(&listener))).await.is_err() {
                    return;
                }
            }
            frame = body.frame() => {
                let data = match frame {
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(_)) => {
                        listener.broke();
                        break;
                    }
                    None => break,
                };
                listener.push(&data);
                if listener.is_over() {
                    break;
                }
            }
        }
    }
    if drawn.is_behind(&listener) && events.send(Ok(drawn.draw(&listener))).await.is_err() {
        return;
    }
    let last = match listener.end() {
        Ok(finish) => Event::default().event("end").data(
            json!({
                "finish": finish,
                "tokens": listener.written(),
                "seconds": begun.elapsed().as_secs_f64(),
            })
            .to_string(),
        ),
        Err(why) => {
            Event::default().event("trouble").data(json!({ "why": sentence(&why) }).to_string())
        }
    };
    let _ = events.send(Ok(last)).await;
}

async fn hear_out(mut body: Body) -> Result<String, String> {
    let mut listener = Listener::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => listener.push(&frame.into_data().unwrap_or_default()),
            Err(_) => listener.broke(),
        }
        if listener.is_over() {
            break;
        }
    }
    listener.end()?;
    Ok(listener.text().to_owned())
}

/// What the browser has on its page.
#[derive(Default)]
struct Drawn {
    bytes: usize,
    blocks: Vec<String>,
    thinking: bool,
}

impl Drawn {
    fn is_behind(&self, listener: &Listener) -> bool {
        listener.text().len() > self.bytes || (listener.thinks() && !self.thinking)
    }

    /// The blocks that are different now, and how many before them stay.
    fn draw(&mut self, listener: &Listener) -> Event {
        self.thinking = listener.thinks();
        let text = listener.text();
        let blocks = markdown::blocks(text);
        let keep = self.blocks.iter().zip(&blocks).take_while(|(a, b)| a == b).count();
        let data = json!({
            "keep": keep,
            "blocks": &blocks[keep..],
            "text": &text[self.bytes..],
            "thinking": self.thinking && text.is_empty(),
        });
        (self.bytes, self.blocks) = (text.len(), blocks);
        Event::default().event("draw").data(data.to_string())
    }
}

/// Above the pages where somebody might take a trial model's word for it.
pub(super) fn trial_banner(gateway: &Gateway, member: &Member) -> Markup {
    if !gateway.status().engines.iter().any(|e| is_trial(&e.recipe)) {
        return html! {};
    }
    if !better_one_runs() {
        let why = "This trial model is tiny and often wrong. This version has no engine yet that runs a better one.";
        return banner(Tone::Warn, html! { p { (why) } });
    }
    banner(
        Tone::Warn,
        html! {
            p { "This trial model is tiny and often wrong; one press imports a better one." }
            @if member.is_steward() { a href="/models" { "Choose a better model" } }
            @else { span { "A steward can do that." } }
        },
    )
}

fn page(
    gateway: &Gateway,
    member: &Member,
    turns: &[Turn],
    model: &str,
    wrong: Option<&str>,
) -> Response {
    let (status, trying) = (gateway.status(), gateway.members.trying(member.id));
    let named = |(name, engine): (String, &EngineStatus)| {
        let title = title(&engine.recipe);
        let label = match name == engine.recipe.as_str() {
            true => title,
            false => format!("{name} ({title})"),
        };
        (name, label)
    };
    let models: Vec<(String, String)> =
        naming::names(&status, trying).into_iter().map(named).collect();
    let body = html! {
        div.chat {
            h1.hidden-visually { "Chat" }
            (trial_banner(gateway, member))
            (succession::told(gateway, member))
            @if models.is_empty() { (banner(Tone::Warn, html! { p { "This box serves no model yet." } @if member.is_steward() { a href="/models" { "Choose one" } } })) }
            div.talk #talk role="log" aria-label="The conversation" aria-live="polite" {
                @if turns.is_empty() {
                    div.hello #hello { p.lead { "Ask something. The conversation stays in your browser; the box keeps none of it." } }
                }
                @for turn in turns { (said(turn)) }
            }
            @if let Some(why) = wrong { (banner(Tone::Bad, html! { p { (sentence(why)) } })) }
            p.hidden-visually #news role="status" {}
            form.ask #ask method="post" action="/chat" data-stream="/chat/stream" {
                @if !turns.is_empty() { (hidden("conversation", &serde_json::to_string(turns).unwrap_or_default())) }
                label.hidden-visually for="message" { "Your message" }
                textarea #message name="message" rows="2" required autofocus placeholder="Your message" disabled[models.is_empty()] {}
                div.row.spread {
                    div.row {
                        (picker(&models, model))
                        span.keys.script-only hidden { "Enter sends, Shift + Enter makes a new line" }
                    }
                    div.row {
                        a.button.quiet href="/chat" { "New conversation" }
                        button.quiet #stop type="button" hidden { "Stop" }
                        button #send type="submit" disabled[models.is_empty()] { "Send" }
                    }
                }
            }
        }
    };
    let page = Page { title: "Chat", scripts: &[&script().path], bare: true, ..Page::default() };
    answer(&page, &nav(gateway, member, "/chat"), body)
}

fn picker(models: &[(String, String)], chosen: &str) -> Markup {
    let choices: Vec<Choice<'_>> =
        models.iter().map(|(value, label)| Choice { value, label }).collect();
    html! {
        @match choices.as_slice() {
            [] => {},
            [only] => { (hidden("model", only.value)) span.soft.small { (only.label) } },
            _ => {
                label.hidden-visually for="model" { "Model" }
                select #model name="model" {
                    @for c in &choices { option value=(c.value) selected[c.value == chosen] { (c.label) } }
                }
            },
        }
    }
}

fn said(turn: &Turn) -> Markup {
    html! {
        @match turn.role {
            Speaker::User => div.said.you { span.by { "You" } div.words { (turn.content) } },
            Speaker::Assistant => div.said.box {
                span.by { "The model" }
                div.words.markdown {
                    @for block in markdown::blocks(&turn.content) { div { (PreEscaped(block)) } }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_drawn_again() {
        let mut listener = Listener::default();
        let mut drawn = Drawn::default();
        let piece = |text: &str| {
            format!("data: {}\n\n", json!({ "choices": [{ "delta": { "content": text } }] }))
        };
        listener.push(piece("one\n\ntw").as_bytes());
        assert!(drawn.is_behind(&listener));
        let _ = drawn.draw(&listener);
        assert!(!drawn.is_behind(&listener));
        listener.push(piece("o").as_bytes());
        let _ = drawn.draw(&listener);
        assert_eq!(drawn.blocks, ["<p>one</p>\n", "<p>two</p>\n"]);
    }

    #[test]
    fn what_a_person_wrote_is_shown_as_text() {
        let turn = Turn { role: Speaker::User, content: "<script>alert(1)</script>".into() };
        assert!(!said(&turn).into_string().contains("<script"));
        let turn =
            Turn { role: Speaker::Assistant, content: "<img src=x onerror=alert(1)>".into() };
        assert!(!said(&turn).into_string().contains("<img"));
    }

    #[test]
    fn a_conversation_has_no_speaker_but_the_two() {
        assert!(serde_json::from_str::<Turn>(r#"{"role":"system","content":"x"}"#).is_err());
        assert!(serde_json::from_str::<Turn>(r#"{"role":"user","content":"x"}"#).is_ok());
    }
}
