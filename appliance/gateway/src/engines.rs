//! Finds the engine that serves a model, waits while it starts, and sends it requests over its
//! Unix socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use polder_control::{BoxStatus, EngineStatus, PartState};
use polder_site::{EngineName, RecipeName};
use tokio::time::Instant;

use crate::line::{EngineBody, LineError, Lines};
use crate::link::Link;

/// How often an engine that should answer, but does not take connections, is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// Most that an engine may say about itself.
const LONGEST_ANSWER: usize = 1 << 20;

/// What an engine said, and which one it was.
#[derive(Debug)]
pub struct EngineAnswer {
    /// Its slot.
    pub engine: EngineName,
    /// What it serves.
    pub recipe: RecipeName,
    /// Its answer; the body arrives as the engine writes it, and dropping it stops the work.
    pub response: http::Response<EngineBody>,
}

/// Why no engine took a request. Each sentence is fit for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineRefusal {
    /// Nothing is served yet.
    #[error("this box serves no model yet; a steward can choose one on the dashboard")]
    NoEngine,
    /// No engine serves the model asked for.
    #[error("this box does not serve the model {asked:?}; it serves {have}")]
    UnknownModel {
        /// What was asked for, cut to a readable length.
        asked: String,
        /// What there is, joined by commas.
        have: String,
    },
    /// Several engines, and the request names none.
    #[error("the request names no model and this box serves several; add \"model\": one of {have}")]
    ModelNeeded {
        /// What there is, joined by commas.
        have: String,
    },
    /// It is tried by a few, and this is not one of them.
    #[error(
        "the model {asked} is on trial with a few members whom a steward chose; use the usual one"
    )]
    OnTrial {
        /// What was asked for, cut to a readable length.
        asked: String,
    },
    /// It makes room for the trial of another one.
    #[error(
        "the model {model} is away while another one is in its place; try again in {retry_after} seconds"
    )]
    Away {
        /// What was asked for, cut to a readable length.
        model: String,
        /// When trying again makes sense.
        retry_after: u64,
    },
    /// Another model took its place while the request waited.
    #[error(
        "the model {recipe} has just made room for another one; try again in {retry_after} seconds"
    )]
    Moved {
        /// What it served.
        recipe: String,
        /// When trying again makes sense.
        retry_after: u64,
    },
    /// It is starting, and did not become ready in time.
    #[error("the model {recipe} is still starting; try again in {retry_after} seconds")]
    NotReady {
        /// What it serves.
        recipe: RecipeName,
        /// When trying again makes sense.
        retry_after: u64,
    },
    /// It stopped, and nothing will start it by itself.
    #[error("the model {recipe} is not running ({why}); a steward must look at the dashboard")]
    Down {
        /// What it serves.
        recipe: RecipeName,
        /// One clause.
        why: String,
    },
    /// It took the request and broke off before it answered.
    #[error(
        "the engine of {recipe} stopped before it answered; try again in {retry_after} seconds"
    )]
    Broke {
        /// What it serves.
        recipe: RecipeName,
        /// When trying again makes sense.
        retry_after: u64,
    },
}

impl EngineRefusal {
    /// Seconds after which the same request may well succeed, where that is so.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::NotReady { retry_after, .. }
            | Self::Broke { retry_after, .. }
            | Self::Away { retry_after, .. }
            | Self::Moved { retry_after, .. } => Some(*retry_after),
            Self::NoEngine | Self::Down { .. } => Some(60),
            Self::UnknownModel { .. } | Self::ModelNeeded { .. } | Self::OnTrial { .. } => None,
        }
    }
}

/// The engines of this box, with open connections kept for the next request.
pub(crate) struct Engines {
    link: Link,
    patience: Duration,
    /// For each thread its own: a connection belongs to the thread that opened it.
    lines: Mutex<HashMap<(ThreadId, PathBuf), Arc<Lines>>>,
    /// Questions that each engine has not begun to answer.
    waiting: Mutex<HashMap<EngineName, usize>>,
}

/// One of them, for as long as it waits.
struct Queued<'a>(&'a Engines, EngineName);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.1);
            }
        }
    }
}

impl Engines {
    /// `patience`: how long a request waits for an engine that is starting.
    pub(crate) fn new(link: Link, patience: Duration) -> Self {
        Self { link, patience, lines: Mutex::default(), waiting: Mutex::default() }
    }

    /// Questions that an engine was asked and has not begun to answer.
    pub(crate) fn waiting(&self, engine: &EngineName) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.get(engine).copied().unwrap_or(0)
    }

    fn queue(&self, engine: &EngineName) -> Queued<'_> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting.entry(engine.clone()).or_default() += 1;
        Queued(self, engine.clone())
    }

    /// See [`crate::Gateway::engine_request`]. Sets `sent` once an engine may have seen the request. With a slot, only that engine is
    /// asked, and only while it serves that model. `at_once`: an engine that does not answer is not waited for.
    pub(crate) async fn ask(
        &self,
        slot: Option<&EngineName>,
        model: Option<&str>,
        request: http::Request<Bytes>,
        sent: &AtomicBool,
        at_once: bool,
    ) -> Result<EngineAnswer, EngineRefusal> {
        let patience = if at_once { Duration::ZERO } else { self.patience };
        let deadline = Instant::now() + patience;
        let mut status = self.link.watch();
        let mut broke = false;
        loop {
            let engine = match (slot, model) {
                (Some(slot), Some(model)) => still_there(&status.borrow_and_update(), slot, model)?,
                _ => choose(&status.borrow_and_update(), model)?.clone(),
            };
            let queued = self.queue(&engine.name);
            let asked = match readiness(&engine.part.state, self.link.is_up()) {
                Readiness::Ready => Ok(self.lines(&engine.socket).ask(&request, sent).await),
                other => Err(other),
            };
            drop(queued);
            let wait = match asked {
                Ok(asked) => match asked {
                    Ok(response) => {
                        return Ok(EngineAnswer {
                            engine: engine.name,
                            recipe: engine.recipe,
                            response,
                        });
                    }
                    // Not connected: the request has not been seen, so it may be sent again.
                    Err(LineError::Connect(_)) => TRY_AGAIN,
                    // Nothing of an answer was seen: usually an engine that was ending just then.
                    // Once more, and only once: the request may be what broke it.
                    Err(error) if !broke => {
                        log::info!(engine:% = engine.name; "an engine broke off: {error}");
                        broke = true;
                        TRY_AGAIN
                    }
                    Err(error) => {
                        log::warn!(engine:% = engine.name; "an engine broke off again: {error}");
                        return Err(EngineRefusal::Broke { recipe: engine.recipe, retry_after: 5 });
                    }
                },
                Err(Readiness::Ready | Readiness::Wait) => self.patience,
                Err(Readiness::Never(why)) => {
                    return Err(EngineRefusal::Down { recipe: engine.recipe, why });
                }
            };
            if Instant::now() >= deadline {
                return Err(EngineRefusal::NotReady { recipe: engine.recipe, retry_after: 10 });
            }
            let until = deadline.min(Instant::now() + wait);
            if let Ok(Err(_)) = tokio::time::timeout_at(until, status.changed()).await {
                // Nobody follows the supervisor any more: the door is closing.
                return Err(EngineRefusal::NotReady { recipe: engine.recipe, retry_after: 10 });
            }
        }
    }

    /// Asks one engine, whatever the supervisor says of it, and waits for nothing but its answer's status.
    pub(crate) async fn tell(
        &self,
        socket: &Path,
        request: &http::Request<Bytes>,
    ) -> Result<http::StatusCode, LineError> {
        let answer = self.lines(socket).ask(request, &AtomicBool::new(false)).await?;
        Ok(answer.status())
    }

    /// The same for a short answer that is read: its status, and its text where that does not break off and is no longer
    /// than what an engine may say.
    pub(crate) async fn hear(
        &self,
        socket: &Path,
        path: &'static str,
    ) -> Result<(http::StatusCode, Option<Bytes>), LineError> {
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = http::Uri::from_static(path);
        let answer = self.lines(socket).ask(&request, &AtomicBool::new(false)).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        Ok((status, body.ok().map(http_body_util::Collected::to_bytes)))
    }

    fn lines(&self, socket: &Path) -> Arc<Lines> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (std::thread::current().id(), socket.to_owned());
        if let Some(lines) = lines.get(&key) {
            return lines.clone();
        }
        // Slots come and go; a handful of stale entries is all there ever is.
        if lines.len() >= 64 {
            lines.clear();
        }
        let new = Lines::new(socket);
        lines.insert(key, new.clone());
        new
    }
}

enum Readiness {
    Ready,
    Wait,
    Never(String),
}

/// Would it be asked, and not waited for?
pub(crate) fn is_ready(state: &PartState, supervisor_up: bool) -> bool {
    matches!(readiness(state, supervisor_up), Readiness::Ready)
}

/// With the supervisor away its last word may be old, so the engine itself is asked.
fn readiness(state: &PartState, supervisor_up: bool) -> Readiness {
    match state {
        PartState::Ready => Readiness::Ready,
        _ if !supervisor_up => Readiness::Ready,
        PartState::Starting | PartState::Draining | PartState::Waiting { .. } => Readiness::Wait,
        PartState::Stopped => Readiness::Never("it was stopped".to_owned()),
        PartState::GaveUp(why) => Readiness::Never(why.trim_end_matches('.').to_owned()),
    }
}

/// The engine in a slot, if it serves this model still.
fn still_there(
    status: &BoxStatus,
    slot: &EngineName,
    model: &str,
) -> Result<EngineStatus, EngineRefusal> {
    let there = |engine: &&EngineStatus| engine.name == *slot && engine.recipe.as_str() == model;
    let moved = || EngineRefusal::Moved { recipe: model.to_owned(), retry_after: 2 };
    status.engines.iter().find(there).cloned().ok_or_else(moved)
}

/// The engine that serves `model`: by recipe first, then by slot; the only one if none is named.
pub(crate) fn choose<'a>(
    status: &'a BoxStatus,
    model: Option<&str>,
) -> Result<&'a EngineStatus, EngineRefusal> {
    let engines = &status.engines;
    let have = || engines.iter().map(|e| e.recipe.as_str()).collect::<Vec<_>>().join(", ");
    match (model, engines.as_slice()) {
        (_, []) => Err(EngineRefusal::NoEngine),
        (None, [only]) => Ok(only),
        (None, _) => Err(EngineRefusal::ModelNeeded { have: have() }),
        (Some(model), _) => engines
            .iter()
            .find(|engine| engine.recipe.as_str() == model)
            .or_else(|| engines.iter().find(|engine| engine.name.as_str() == model))
            .ok_or_else(|| EngineRefusal::UnknownModel {
                asked: model.chars().take(80).collect(),
                have: have(),
            }),
    }
}

#[cfg(test)]
mod tests {
    use polder_control::PartStatus;
    use polder_site::Site;

    use super::*;

    fn status(engines: &[(&str, &str)]) -> BoxStatus {
        let part = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        BoxStatus {
            supply: None,
            closed: None,
            others: Vec::new(),
            safe: false,
            site: Site::unclaimed(8443),
            gateway: part.clone(),
            engines: engines
                .iter()
                .map(|(name, recipe)| EngineStatus {
                    name: name.parse().unwrap(),
                    recipe: recipe.parse().unwrap(),
                    socket: PathBuf::from("/nowhere"),
                    part: part.clone(),
                    note: None,
                })
                .collect(),
        }
    }

    #[test]
    fn an_engine_is_found_by_recipe_or_by_slot() {
        let two = status(&[("fast", "small"), ("slow", "large")]);
        let name = |model| choose(&two, Some(model)).unwrap().name.to_string();
        assert_eq!(name("small"), "fast");
        assert_eq!(name("large"), "slow");
        assert_eq!(name("slow"), "slow");
    }

    #[test]
    fn a_request_without_a_model_goes_to_the_only_engine_or_is_told_the_names() {
        assert_eq!(choose(&status(&[("fast", "small")]), None).unwrap().recipe.as_str(), "small");
        let two = status(&[("fast", "small"), ("slow", "large")]);
        assert_eq!(
            choose(&two, None).unwrap_err(),
            EngineRefusal::ModelNeeded { have: "small, large".into() }
        );
    }

    #[test]
    fn an_unknown_model_is_refused_with_the_names_there_are() {
        let refusal = choose(&status(&[("fast", "small")]), Some("gpt-4o")).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "this box does not serve the model \"gpt-4o\"; it serves small"
        );
        assert_eq!(choose(&status(&[]), Some("x")).unwrap_err(), EngineRefusal::NoEngine);
    }
}
