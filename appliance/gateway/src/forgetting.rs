//! Members whom the engines are to forget: what is kept of their conversations goes at once, and where an engine does
//! not run, as soon as it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use polder_control::EngineStatus;
use polder_members::{MemberId, MembersError};

use crate::Gateway;

/// To the engine: who is to be forgotten.
const MEMBER: HeaderName = HeaderName::from_static("x-polder-member");
/// An engine that does not answer within this is asked again later.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often engines are asked again while something is left to forget, and otherwise looked for it.
const AGAIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(60);

/// Has everything forgotten that was noted, as far as engines answer. Says of how many engines something is left.
pub(crate) async fn carry_out(gateway: &Gateway) -> Result<usize, MembersError> {
    // One after the other: an answer to an older wish must not count for a newer one.
    let _turn = gateway.forgetting.lock().await;
    let engines = gateway.status().engines.clone();
    let names: Vec<String> =
        gateway.status().site.engines.keys().map(ToString::to_string).collect();
    let wanted = gateway.members.ask(move |members| members.to_forget(&names)).await?;
    let mut by_engine: BTreeMap<String, Vec<MemberId>> = BTreeMap::new();
    for (member, name) in wanted {
        by_engine.entry(name).or_default().push(member);
    }
    // All engines at the same time: one that hangs holds up nobody else's.
    let asked = by_engine.into_iter().map(|(name, members)| {
        let engine = engines.iter().find(|engine| engine.name.as_str() == name);
        forget_all(gateway, engine, name, members)
    });
    let left = futures_util::future::join_all(asked).await;
    left.into_iter().sum()
}

/// Has one engine forget these, until it fails to; of how many something is left.
async fn forget_all(
    gateway: &Gateway,
    engine: Option<&EngineStatus>,
    name: String,
    members: Vec<MemberId>,
) -> Result<usize, MembersError> {
    let Some(engine) = engine else { return Ok(members.len()) };
    for (at, member) in members.iter().copied().enumerate() {
        if !tell(gateway, engine, member).await {
            return Ok(members.len() - at);
        }
        let name = name.clone();
        gateway.members.ask(move |members| members.forgotten(member, &name)).await?;
    }
    Ok(0)
}

/// Carries out what is noted for as long as the door is open: engines come back, and the box may have been off.
pub(crate) async fn follow(gateway: Arc<Gateway>) {
    let mut status = gateway.watch_status();
    loop {
        let left = carry_out(&gateway).await.unwrap_or_else(|error| {
            log::error!("what members want forgotten could not be looked up: {error}");
            1
        });
        let wait = if left > 0 { AGAIN } else { LOOK };
        if let Ok(Err(_)) = tokio::time::timeout(wait, status.changed()).await {
            return;
        }
    }
}

/// Whether the engine has forgotten the member.
async fn tell(gateway: &Gateway, engine: &EngineStatus, member: MemberId) -> bool {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = Method::DELETE;
    *request.uri_mut() = http::Uri::from_static("/kv");
    request.headers_mut().insert(MEMBER, HeaderValue::from(member.0));
    let asked = gateway.engines.tell(&engine.socket, &request);
    match tokio::time::timeout(PATIENCE, asked).await {
        // One that knows no such path keeps nothing.
        Ok(Ok(status)) if status.is_success() || status == StatusCode::NOT_FOUND => true,
        Ok(Ok(StatusCode::SERVICE_UNAVAILABLE)) => false,
        Ok(Ok(status)) => {
            log::warn!(engine:% = engine.name; "an engine could not forget a member: {status}; it is asked again");
            false
        }
        Ok(Err(error)) => {
            log::debug!(engine:% = engine.name; "an engine is to forget a member: {error}");
            false
        }
        Err(_) => false,
    }
}
