//! Tells each engine which instructions the site calls common to all members: when it is ready, and whenever they change. An engine
//! that ran while the door was closed may have been told something else: it is asked what it knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use polder_control::{BoxStatus, EngineStatus, PartState};
use polder_site::EngineName;
use tokio::sync::watch;

use crate::Gateway;

/// An engine that did not take them is told again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// How long one may take to say what it knows.
const SAYS_WITHIN: Duration = Duration::from_secs(5);
/// How long one may take to read them.
const READS_WITHIN: Duration = Duration::from_secs(60);

/// What an engine was told, and which process of it.
struct Told {
    process: (Option<u32>, u32),
    common: BTreeMap<String, String>,
}

/// Goes on until nobody follows the supervisor any more.
pub(crate) async fn tell(gateway: Arc<Gateway>, mut status: watch::Receiver<Arc<BoxStatus>>) {
    let mut told: HashMap<EngineName, Told> = HashMap::new();
    loop {
        let now = status.borrow_and_update().clone();
        let mut again = false;
        told.retain(|name, _| now.engines.iter().any(|engine| engine.name == *name));
        let common = &now.site.common;
        let texts: Vec<&String> = common.values().collect();
        // All at once: none waits for one that hangs.
        let brought = due(&now, &told).into_iter().map(async |engine| {
            let met = told.get(&engine.name).is_some_and(|told| is_of(told, engine));
            (engine, met, bring_up_to_date(&gateway, engine, &texts, met).await)
        });
        let brought = futures_util::future::join_all(brought).await;
        for (engine, met, brought) in brought {
            match brought {
                Ok(()) => {
                    let told_now = Told { process: process(engine), common: common.clone() };
                    told.insert(engine.name.clone(), told_now);
                }
                // While the supervisor is away every engine is taken for ready.
                Err(why) if common.is_empty() && !met => {
                    log::debug!(engine:% = engine.name; "an engine was not asked what is common: {why}");
                    again = true;
                }
                Err(why) => {
                    log::warn!(engine:% = engine.name; "an engine was not told the common instructions: {why}");
                    again = true;
                }
            }
        }
        let pause = async {
            match again {
                true => tokio::time::sleep(AGAIN).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

/// The engines that answer and have not been told what the site says now.
fn due<'a>(now: &'a BoxStatus, told: &HashMap<EngineName, Told>) -> Vec<&'a EngineStatus> {
    let knows = |engine: &EngineStatus| {
        told.get(&engine.name).is_some_and(|t| is_of(t, engine) && t.common == now.site.common)
    };
    let ready = |engine: &&EngineStatus| engine.part.state == PartState::Ready;
    now.engines.iter().filter(ready).filter(|engine| !knows(engine)).collect()
}

fn is_of(told: &Told, engine: &EngineStatus) -> bool {
    told.process == process(engine)
}

fn process(engine: &EngineStatus) -> (Option<u32>, u32) {
    (engine.part.pid, engine.part.restarts)
}

/// `met`: it was told something before by this very gateway, and it was not this.
async fn bring_up_to_date(
    gateway: &Gateway,
    engine: &EngineStatus,
    texts: &[&String],
    met: bool,
) -> Result<(), String> {
    if !met {
        let right = match knows(gateway, engine).await? {
            Knows::These(knows) => knows.iter().eq(texts.iter().copied()),
            // It has nothing to forget.
            Knows::NoSuchThing => texts.is_empty(),
            Knows::DoesNotSay => false,
        };
        if right {
            return Ok(());
        }
    }
    put(gateway, engine, texts).await
}

/// What an engine takes for common now.
enum Knows {
    These(Vec<String>),
    /// There are no common instructions in it.
    NoSuchThing,
    /// It can be told and not be asked: one of the version before.
    DoesNotSay,
}

async fn knows(gateway: &Gateway, engine: &EngineStatus) -> Result<Knows, String> {
    let said = gateway.engines.hear(&engine.socket, "/beginnings");
    let (status, said) = match tokio::time::timeout(SAYS_WITHIN, said).await {
        Ok(Ok(said)) => said,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(late(SAYS_WITHIN)),
    };
    match status {
        StatusCode::NOT_FOUND => Ok(Knows::NoSuchThing),
        StatusCode::METHOD_NOT_ALLOWED => Ok(Knows::DoesNotSay),
        status if !status.is_success() => Err(format!("asked what it knows it answered {status}")),
        _ => said
            .and_then(|said| serde_json::from_slice(&said).ok())
            .map(Knows::These)
            .ok_or_else(|| "what it knows is no list of texts".to_owned()),
    }
}

fn late(within: Duration) -> String {
    format!("it did not answer within {} s", within.as_secs())
}

async fn put(gateway: &Gateway, engine: &EngineStatus, texts: &[&String]) -> Result<(), String> {
    let body = serde_json::to_vec(texts).map_err(|error| error.to_string())?;
    let mut request = http::Request::new(Bytes::from(body));
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() = http::Uri::from_static("/beginnings");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match tokio::time::timeout(READS_WITHIN, gateway.engines.tell(&engine.socket, &request)).await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it answered {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(late(READS_WITHIN)),
    }
}
