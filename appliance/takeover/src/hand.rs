//! What a spare answers its main box over their link: what it gives back, what it leaves to it, and weights by digest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as In, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use polder_recipes::Digest;
use polder_weights::{CancelFlag, HeldModel, Judged, Manifest, PIECE, Store, Taken, WeightsError};
use tokio::task::JoinHandle;

use crate::{Given, Term};

/// A list of a model's files, as JSON.
const LONGEST_LIST: usize = 8 << 20;
/// Whoever asks whether a large file is right hears of it this late at the latest, and asks again.
const JUDGING: Duration = Duration::from_secs(5);

/// The routes of a spare, for the link's mount: nobody but the paired main box comes this far.
pub fn hand(state: &Path) -> Router {
    let hand = Arc::new(Hand { state: state.to_owned(), judging: Mutex::default() });
    Router::new()
        .route("/given", get(given))
        .route("/left", get(left))
        .route("/weights/held", post(held))
        .route("/weights/adopt", post(adopt))
        .route("/weights/judge/{blob}/{size}", post(judge))
        .layer(DefaultBodyLimit::max(LONGEST_LIST))
        .route("/weights/piece/{blob}/{size}/{from}/{sha256}", put(piece))
        .layer(DefaultBodyLimit::max(usize::try_from(PIECE).unwrap_or(LONGEST_LIST)))
        .with_state(hand)
}

struct Hand {
    state: PathBuf,
    judging: Mutex<HashMap<Digest, JoinHandle<Result<Judged, WeightsError>>>>,
}

impl Hand {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, WeightsError> + Send + 'static,
    ) -> Result<T, Refused> {
        let folder = self.state.join("weights");
        let done = tokio::task::spawn_blocking(move || Store::open(folder).and_then(|s| work(&s)));
        match done.await {
            Ok(done) => done.map_err(Refused::from),
            Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }
}

struct Refused(StatusCode, String);

impl From<WeightsError> for Refused {
    fn from(error: WeightsError) -> Self {
        let status = match error {
            WeightsError::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            WeightsError::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            WeightsError::Manifest { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

/// A state that the main box is to go on with; null where there is none.
async fn given(State(hand): State<Arc<Hand>>) -> Result<Json<Option<Given>>, Refused> {
    let term = Term::read(&hand.state)
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let newest = |term: &Term| term.mine.is_none();
    let given = term.filter(newest).and_then(|term| {
        // Another term may have begun since.
        term.given.filter(|given| given.term == term.highest)
    });
    Ok(Json(given))
}

/// The term in which the main box goes on with what it has, because this box does not take over after all; null where there is none.
async fn left(State(hand): State<Arc<Hand>>) -> Result<Json<Option<u64>>, Refused> {
    let term = Term::read(&hand.state)
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(term.and_then(|term| term.leaves())))
}

async fn held(State(hand): State<Arc<Hand>>, list: String) -> Result<Json<HeldModel>, Refused> {
    let held = hand.with(move |store| store.held(&Manifest::foreign(&list)?)).await?;
    if held.lacking > held.room {
        let mib = |bytes: u64| bytes >> 20;
        let why = format!(
            "there is no room for it: {} MiB are lacking, and {} MiB may be used; free some of the spare's disk, or send a smaller model",
            mib(held.lacking),
            mib(held.room)
        );
        return Err(Refused(StatusCode::INSUFFICIENT_STORAGE, why));
    }
    Ok(Json(held))
}

async fn piece(
    State(hand): State<Arc<Hand>>,
    In((blob, size, from, sha256)): In<(String, u64, u64, String)>,
    bytes: Bytes,
) -> Result<Json<Taken>, Refused> {
    let (blob, sha256) = (digest(&blob)?, digest(&sha256)?);
    let took = move |store: &Store| store.take_piece(&blob, size, from, &sha256, &bytes);
    hand.with(took).await.map(Json)
}

/// Null while it is being read.
async fn judge(
    State(hand): State<Arc<Hand>>,
    In((blob, size)): In<(String, u64)>,
) -> Result<Json<Option<Judged>>, Refused> {
    let blob = digest(&blob)?;
    let taken = lock(&hand).remove(&blob);
    let folder = hand.state.join("weights");
    let mut judging = taken.unwrap_or_else(|| {
        tokio::task::spawn_blocking(move || {
            Store::open(folder)?.judge(&blob, size, &CancelFlag::default())
        })
    });
    match tokio::time::timeout(JUDGING, &mut judging).await {
        Ok(Ok(judged)) => Ok(Json(Some(judged?))),
        Ok(Err(error)) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(_) => {
            lock(&hand).insert(blob, judging);
            Ok(Json(None))
        }
    }
}

fn lock(
    hand: &Hand,
) -> std::sync::MutexGuard<'_, HashMap<Digest, JoinHandle<Result<Judged, WeightsError>>>> {
    hand.judging.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn adopt(State(hand): State<Arc<Hand>>, list: String) -> Result<Json<()>, Refused> {
    hand.with(move |store| store.adopt(&Manifest::foreign(&list)?)).await.map(Json)
}

fn digest(text: &str) -> Result<Digest, Refused> {
    text.parse().map_err(|_| {
        Refused(StatusCode::BAD_REQUEST, "a file is named by 64 hex digits".to_owned())
    })
}
