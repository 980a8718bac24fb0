//! What the box can do, found out as a member would: through its own door, with a key, by asking a question.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use polder_control::{BoxStatus, Client, DoorReply, DoorRequest, PartState, Sockets};
use polder_site::Door;
use polder_update::Able;
use serde_json::json;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// The gateway's private socket answers at once or not at all.
const DOOR: Duration = Duration::from_secs(5);
/// A question of a few words; on a machine without a card that is busy, too.
const ANSWER: Duration = Duration::from_secs(120);

/// What works now. Takes as long as the slowest model takes to say a word.
pub(crate) async fn able(sockets: &Sockets, status: &BoxStatus) -> Able {
    let mut able = Able::default();
    let Ok(DoorReply::Ready { ca_file, .. }) = ask(sockets, &DoorRequest::Ready).await else {
        return able;
    };
    able.door = true;
    let key = match ask(sockets, &DoorRequest::TestKey).await {
        Ok(DoorReply::Key(key)) => key,
        Ok(DoorReply::Refused(why)) => return silent(able, status, &why),
        _ => return silent(able, status, "its door gave no key to ask it with"),
    };
    for engine in &status.engines {
        let name = engine.name.to_string();
        let answered = match &engine.part.state {
            PartState::Ready => {
                let (door, ca, key) = (status.site.door.clone(), ca_file.clone(), key.clone());
                let model = engine.recipe.to_string();
                let asking =
                    tokio::task::spawn_blocking(move || question(&door, &ca, &key, &model));
                asking.await.unwrap_or_else(|_| Err("asking it broke down".to_owned()))
            }
            PartState::GaveUp(why) => Err(why.clone()),
            PartState::Waiting { why, .. } => Err(format!("it ended: {why}")),
            PartState::Starting => Err("it is still being loaded".to_owned()),
            PartState::Stopped | PartState::Draining => Err("it does not run".to_owned()),
        };
        match answered {
            Ok(()) => able.answering.push(name),
            Err(why) => able.silent.push((name, why)),
        }
    }
    able
}

fn silent(mut able: Able, status: &BoxStatus, why: &str) -> Able {
    let one = |engine: &polder_control::EngineStatus| (engine.name.to_string(), why.to_owned());
    able.silent = status.engines.iter().map(one).collect();
    able
}

async fn ask(
    sockets: &Sockets,
    question: &DoorRequest,
) -> Result<DoorReply, polder_control::ControlError> {
    Client::connect(&sockets.gateway()).await?.ask_within(DOOR, question).await
}

/// Asks a model for a word over TLS, as a member's program does.
fn question(door: &Door, ca: &Path, key: &str, model: &str) -> Result<(), String> {
    let pem = std::fs::read(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let roots = RootCerts::from(certificates.collect::<Vec<_>>());
    let tls = TlsConfig::builder().root_certs(roots).build();
    let agent: Agent = Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .timeout_global(Some(ANSWER))
        .http_status_as_error(false)
        .build()
        .into();
    let address = format!("https://{}:{}/v1/completions", host(door), door.port);
    let body = json!({ "model": model, "prompt": "One two three", "max_tokens": 1 });
    let mut answer = agent
        .post(&address)
        .header("authorization", &format!("Bearer {key}"))
        .send_json(&body)
        .map_err(|error| error.to_string())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said: serde_json::Value = answer.body_mut().read_json().unwrap_or_default();
    let why = said["error"]["message"].as_str().unwrap_or("it did not say why");
    Err(format!("{status}: {why}"))
}

/// Where this machine reaches its own door.
fn host(door: &Door) -> String {
    match door.listen.iter().find(|ip| ip.is_loopback() || ip.is_unspecified()) {
        Some(_) => "localhost".to_owned(),
        None => match door.listen.first() {
            Some(IpAddr::V6(ip)) => format!("[{ip}]"),
            Some(ip) => ip.to_string(),
            None => "localhost".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_reaches_its_door_where_it_is_open() {
        let door = |listen: &[&str]| Door {
            port: 443,
            listen: listen.iter().map(|ip| ip.parse().unwrap()).collect(),
            names: Vec::new(),
        };
        assert_eq!(host(&door(&["0.0.0.0", "::"])), "localhost");
        assert_eq!(host(&door(&["10.0.0.7", "127.0.0.1"])), "localhost");
        assert_eq!(host(&door(&["10.0.0.7"])), "10.0.0.7");
        assert_eq!(host(&door(&["fd00::7"])), "[fd00::7]");
    }
}
