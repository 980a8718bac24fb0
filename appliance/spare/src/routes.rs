//! What a caller at the spare's door may ask: strangers pair, the pinned main box does everything else, and one that is out hears so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use polder_takeover::Moment;
use tower::Service;

use crate::SpareError;
use crate::desk::Closed;
use crate::door::{Caller, Door, Mounts, NO_PAIR, is_local_network, now, plain};
use crate::messages::{Answer, Beat, Begin, Begun, Head, Hello, Prove, Push, Pushed};
use crate::pairing::Binding;
use crate::store::Refused;

/// Bytes of a message; backups and whatever is mounted have limits of their own.
const LONGEST_FROM_STRANGER: usize = 16 << 10;
const LONGEST: usize = 2 << 20;
/// To a box that was the main box.
const OUT: &str = "this box is the collective's main box for good, and the one that asks never is again; make that machine new";

pub(crate) fn strangers(door: &Arc<Door>) -> Router {
    Router::new()
        .route("/pair/begin", post(begin))
        .route("/pair/prove", post(prove))
        .layer(DefaultBodyLimit::max(LONGEST_FROM_STRANGER))
        .with_state(door.clone())
}

pub(crate) fn pinned(door: &Arc<Door>, mounts: Mounts) -> Router {
    Router::new()
        .route("/link/hello", post(hello))
        .route("/link/beat", post(beat))
        .route("/link/revoked", post(revoked))
        .route("/link/head", post(head))
        .route("/link/heads", get(heads))
        .route("/link/unpair", post(unpair))
        .layer(DefaultBodyLimit::max(LONGEST))
        .with_state(door.clone())
        .nest_service("/backup", Backups(door.clone()))
        .nest("/hand", mounts.hand)
        .layer(from_fn_with_state(door.clone(), still_pinned))
}

/// What a former main box may ask: whether it is still out.
pub(crate) fn out(door: &Arc<Door>) -> Router {
    // What is said is read, so that the connection can be kept.
    let told = async |State(door): State<Arc<Door>>,
                      Extension(caller): Extension<Caller>,
                      _: axum::body::Bytes| {
        let inner = door.inner();
        let former = inner.formers.iter().rfind(|former| former.certificate == caller.certificate);
        let epoch = former.map_or(0, |former| former.term);
        Json(Answer { name: door.name.clone(), epoch, retired: true, ..Answer::default() })
    };
    Router::new()
        .route("/link/hello", post(told))
        .route("/link/beat", post(told))
        .fallback(async |_: axum::body::Bytes| Refused(StatusCode::GONE, OUT.to_owned()))
        .layer(DefaultBodyLimit::max(LONGEST_FROM_STRANGER))
        .with_state(door.clone())
}

/// A connection may be older than the end of the pairing.
async fn still_pinned(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match door.pinned() == Some(caller.certificate) {
        true => next.run(request).await,
        false => Refused(StatusCode::FORBIDDEN, NO_PAIR.to_owned()).into_response(),
    }
}

/// The store of whoever is paired at that moment.
#[derive(Clone)]
struct Backups(Arc<Door>);
impl Service<Request> for Backups {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;
    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request) -> Self::Future {
        let store = self.0.inner().store.clone();
        Box::pin(async move {
            match store {
                Some(store) => store.routes().call(request).await,
                None => Ok(StatusCode::NOT_FOUND.into_response()),
            }
        })
    }
}

fn say(error: &SpareError) -> Refused {
    log::error!("{error}");
    Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn closed(why: Closed) -> Refused {
    let status = match why {
        Closed::Nonsense => StatusCode::BAD_REQUEST,
        Closed::Busy => StatusCode::CONFLICT,
        _ => StatusCode::FORBIDDEN,
    };
    Refused(status, why.to_string())
}

/// Codes are for those who are in the same house.
fn near(ip: IpAddr) -> Result<(), Refused> {
    match is_local_network(ip) {
        true => Ok(()),
        false => Err(Refused(
            StatusCode::FORBIDDEN,
            "boxes pair on one local network; afterwards they may be anywhere".to_owned(),
        )),
    }
}

async fn begin(
    State(door): State<Arc<Door>>,
    Extension(remote): Extension<SocketAddr>,
    Json(asked): Json<Begin>,
) -> Result<Json<Begun>, Refused> {
    near(remote.ip())?;
    let nonsense = || closed(Closed::Nonsense);
    let message = BASE64_STANDARD.decode(&asked.message).map_err(|_| nonsense())?;
    if !plain(&asked.name) {
        return Err(nonsense());
    }
    let binding = Binding {
        main: asked.certificate,
        main_name: asked.name,
        spare: door.identity.certificate().clone(),
        spare_name: door.name.clone(),
    };
    let begun = door.inner().desk.begin(Instant::now(), &message, &binding);
    let (exchange, message) = begun.map_err(closed)?;
    let message = BASE64_STANDARD.encode(message);
    Ok(Json(Begun { exchange, name: door.name.clone(), message }))
}

async fn prove(
    State(door): State<Arc<Door>>,
    Extension(remote): Extension<SocketAddr>,
    Json(asked): Json<Prove>,
) -> Result<Json<Prove>, Refused> {
    near(remote.ip())?;
    let proof = BASE64_STANDARD.decode(&asked.proof).map_err(|_| closed(Closed::Nonsense))?;
    let proved = {
        let mut inner = door.inner();
        let proved = inner.desk.prove(Instant::now(), &asked.exchange, &proof);
        proved.map_err(|why| {
            log::warn!("{} could not pair: {why}", remote.ip());
            inner.failed(remote, why);
            closed(why)
        })?
    };
    // Pinned and on disk before the main box hears that it may do the same.
    door.pair(proved.main, proved.name).map_err(|error| say(&error))?;
    log::info!("paired with a box at {}", remote.ip());
    Ok(Json(Prove { exchange: asked.exchange, proof: BASE64_STANDARD.encode(proved.proof) }))
}

async fn hello(
    State(door): State<Arc<Door>>,
    Json(hello): Json<Hello>,
) -> Result<Json<Answer>, Refused> {
    if !plain(&hello.name)
        || hello.key.as_ref().is_some_and(|key| key.len() > 100 || key.contains('\n'))
    {
        return Err(closed(Closed::Nonsense));
    }
    if let Some(key) = &hello.key {
        let path = door.folders.main_key();
        let same = std::fs::read_to_string(&path).is_ok_and(|there| there.trim() == key);
        if !same {
            polder_pki::files::write(&path, &format!("{key}\n"))
                .map_err(|error| say(&SpareError::Certificate(error.to_string())))?;
        }
    }
    {
        let mut inner = door.inner();
        let peer = inner.peer.as_mut();
        if let Some(peer) = peer.filter(|peer| !peer.settled || peer.name != hello.name) {
            (peer.settled, peer.name) = (true, hello.name);
            peer.keep(&door.folders).map_err(|error| say(&error))?;
        }
    }
    Ok(Json(door.answer()))
}

async fn beat(
    State(door): State<Arc<Door>>,
    Json(beat): Json<Beat>,
) -> Result<Json<Answer>, Refused> {
    // What begins here must have a number above it that the main box still believes.
    if beat.epoch > polder_takeover::MOST_TERMS / 2 {
        let why = format!("no two boxes change places so often that term {} begins", beat.epoch);
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    let heard = {
        let mut inner = door.inner();
        inner.yields = beat.yields;
        let left = inner.lease.hear_of_leaving(beat.may_be_left);
        left.and_then(|()| inner.lease.hear(beat.epoch, Moment::now(), now()))
    };
    heard.map_err(|error| say(&error))?;
    Ok(Json(door.answer()))
}

async fn revoked(
    State(door): State<Arc<Door>>,
    Json(push): Json<Push>,
) -> Result<Json<Pushed>, Refused> {
    let added = tokio::task::spawn_blocking(move || door.inner().tombstones.add(&push)).await;
    match added {
        Ok(Ok(revocations)) => Ok(Json(Pushed { revocations })),
        Ok(Err(why)) => Err(Refused(StatusCode::CONFLICT, why)),
        Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn head(
    State(door): State<Arc<Door>>,
    Json(head): Json<Head>,
) -> Result<Json<Answer>, Refused> {
    let kept = door.inner().heads.keep(head.number, &head.hash, now());
    let judged = kept.map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
    if !matches!(judged, crate::Judged::Grown | crate::Judged::Same) {
        log::error!("the main box's audit trail does not fit to what is kept of it: {judged:?}");
    }
    Ok(Json(door.answer()))
}

async fn heads(State(door): State<Arc<Door>>) -> Json<Vec<Head>> {
    const MOST: usize = 500;
    let heads = door.inner().heads.to_compare(MOST);
    Json(heads.into_iter().map(|(number, hash)| Head { number, hash }).collect())
}

async fn unpair(State(door): State<Arc<Door>>) -> Result<(), Refused> {
    door.may_part().map_err(|why| Refused(StatusCode::CONFLICT, why))?;
    log::info!("the main box ended the pairing");
    door.forget().map_err(|error| say(&error))
}
