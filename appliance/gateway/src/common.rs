//! Tells each engine which instructions the site calls common to all members: when it is ready, and whenever they change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use polder_control::{BoxStatus, EngineStatus, PartState};
use polder_site::EngineName;
use tokio::sync::watch;

use crate::Gateway;

/// An engine that did not take them is told again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// How long one may take to read them.
const WITHIN: Duration = Duration::from_secs(60);

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
        for engine in due(&now, &told) {
            let common = now.site.common.clone();
            // An engine that has just started knows of none.
            if common.is_empty() && !told.get(&engine.name).is_some_and(|t| is_of(t, engine)) {
                let process = process(engine);
                told.insert(engine.name.clone(), Told { process, common });
                continue;
            }
            let texts: Vec<&String> = common.values().collect();
            match put(&gateway, engine, &texts).await {
                Ok(()) => {
                    let process = process(engine);
                    told.insert(engine.name.clone(), Told { process, common });
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

async fn put(gateway: &Gateway, engine: &EngineStatus, texts: &[&String]) -> Result<(), String> {
    let body = serde_json::to_vec(texts).map_err(|error| error.to_string())?;
    let mut request = http::Request::new(Bytes::from(body));
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() = http::Uri::from_static("/beginnings");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match tokio::time::timeout(WITHIN, gateway.engines.tell(&engine.socket, &request)).await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it answered {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not answer within {} s", WITHIN.as_secs())),
    }
}
