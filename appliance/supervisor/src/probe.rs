use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use polder_control::{
    Client, DoorReply, DoorRequest, HealthReply, HealthRequest, PowerReply, PowerRequest, Progress,
    Sockets, SpareReply, SpareRequest, Unit, WanReply, WanRequest,
};
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::parts::Part;

/// An engine's answer about its health is not longer than this.
const LONGEST_ANSWER: usize = 64 << 10;

/// A sentence is not longer than this, in characters.
const LONGEST_NOTE: usize = 600;

/// How a part is, as it says itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Health {
    /// It answers and does its work; with one sentence, where it could do it better than it does.
    Ready(Option<String>),
    /// It answers, and is still getting ready; with figures where it gives any.
    Loading(Option<Progress>),
    /// It does not answer; why, for the log.
    Silent(String),
}

/// Asks a part how it is, and waits at most `limit` for the answer.
pub async fn ask(part: &Part, sockets: &Sockets, limit: Duration) -> Health {
    let asked = async {
        match part {
            Part::Gateway => ask_gateway(&sockets.gateway()).await,
            Part::Engine(name) => ask_engine(&sockets.engine(name)).await,
            Part::Power => ask_power(&sockets.power()).await,
            Part::Wan => ask_wan(&sockets.wan()).await,
            Part::Spare => ask_spare(&sockets.spare()).await,
            Part::Health => ask_health(&sockets.health()).await,
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(health)) => health,
        Ok(Err(why)) => Health::Silent(why),
        Err(_) => Health::Silent(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn ask_gateway(socket: &Path) -> Result<Health, String> {
    let mut client: Client<DoorRequest, DoorReply> =
        Client::connect(socket).await.map_err(|e| e.to_string())?;
    match client.ask(&DoorRequest::Ready).await.map_err(|e| e.to_string())? {
        DoorReply::Ready { .. } => Ok(Health::Ready(None)),
        other => Err(format!("it answered {other:?} when asked whether it is ready")),
    }
}

async fn ask_power(socket: &Path) -> Result<Health, String> {
    let mut client: Client<PowerRequest, PowerReply> =
        Client::connect(socket).await.map_err(|e| e.to_string())?;
    match client.ask(&PowerRequest::Ready).await.map_err(|e| e.to_string())? {
        PowerReply::Ready => Ok(Health::Ready(None)),
    }
}

async fn ask_wan(socket: &Path) -> Result<Health, String> {
    let mut client: Client<WanRequest, WanReply> =
        Client::connect(socket).await.map_err(|e| e.to_string())?;
    let WanReply::Status(status) =
        client.ask(&WanRequest::Status).await.map_err(|e| e.to_string())?;
    Ok(Health::Ready(status.trouble))
}

async fn ask_spare(socket: &Path) -> Result<Health, String> {
    let mut client: Client<SpareRequest, SpareReply> =
        Client::connect(socket).await.map_err(|e| e.to_string())?;
    match client.ask(&SpareRequest::Status).await.map_err(|e| e.to_string())? {
        SpareReply::Status(_) => Ok(Health::Ready(None)),
        other => Err(format!("it answered {other:?} when asked how it is")),
    }
}

async fn ask_health(socket: &Path) -> Result<Health, String> {
    let mut client: Client<HealthRequest, HealthReply> =
        Client::connect(socket).await.map_err(|e| e.to_string())?;
    match client.ask(&HealthRequest::Ready).await.map_err(|e| e.to_string())? {
        HealthReply::Done => Ok(Health::Ready(None)),
        other => Err(format!("it answered {other:?} when asked whether it is ready")),
    }
}

async fn ask_engine(socket: &Path) -> Result<Health, String> {
    let say = |e: &dyn std::fmt::Display| e.to_string();
    let stream = UnixStream::connect(socket).await.map_err(|e| say(&e))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| say(&e))?;
    let exchange = async move {
        let request = Request::get("/health")
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .expect("the literals are a valid request");
        let answer = sender.send_request(request).await.map_err(|e| say(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER);
        let body = body.collect().await.map_err(|e| say(&e))?.to_bytes();
        Ok::<_, String>((status, body))
    };
    // The connection carries the exchange, and ends when its sender is dropped.
    let (answer, _) = tokio::join!(exchange, connection);
    let (status, body) = answer?;
    match status {
        StatusCode::OK => Ok(Health::Ready(note(&body))),
        StatusCode::SERVICE_UNAVAILABLE => Ok(Health::Loading(progress(&body))),
        other => Err(format!("it answered {other} when asked for its health")),
    }
}

/// What an engine that answers has to say: `{"status": "ok", "note": "..."}`.
fn note(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Well {
        note: Option<String>,
    }
    let note = serde_json::from_slice::<Well>(body).ok()?.note?;
    Some(note.chars().filter(|c| !c.is_control()).take(LONGEST_NOTE).collect())
}

/// The figures in an engine's 503: `{"status": "loading", "progress": 0.41}`.
fn progress(body: &[u8]) -> Option<Progress> {
    #[derive(Deserialize)]
    struct Loading {
        status: String,
        progress: f64,
    }
    let loading: Loading = serde_json::from_slice(body).ok()?;
    Some(Progress {
        phase: loading.status.chars().filter(|c| !c.is_control()).take(40).collect(),
        done: (loading.progress.clamp(0.0, 1.0) * 100.0) as u64,
        total: Some(100),
        unit: Unit::Items,
        rate: None,
        eta_seconds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_answers_may_have_one_sentence_to_say() {
        let said = |body: &str| note(body.as_bytes());
        assert_eq!(said(r#"{"status":"ok","note":"no\u0007 card"}"#).as_deref(), Some("no card"));
        assert_eq!(said(&format!(r#"{{"note":"{}"}}"#, "x".repeat(9999))).unwrap().len(), 600);
        for silent in ["", "[]", "{}", r#"{"note":null}"#, r#"{"note":7}"#] {
            assert_eq!(said(silent), None, "{silent}");
        }
    }

    #[test]
    fn an_engines_figures_are_percent_and_whatever_else_it_says_is_none() {
        let figures = progress(br#"{"status":"loading","progress":0.419}"#).unwrap();
        assert_eq!(
            (figures.phase.as_str(), figures.done, figures.total),
            ("loading", 41, Some(100))
        );
        let over = progress(br#"{"status":"loading","progress":1e300}"#).unwrap();
        assert_eq!(over.done, 100);
        for other in ["", "{}", "[1]", r#"{"status":"stopping"}"#, r#"{"progress":"x"}"#] {
            assert_eq!(progress(other.as_bytes()), None);
        }
    }
}
