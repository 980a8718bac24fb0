//! An engine's life: open the door, load, answer, drain, end.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use polder_grammar::Grammars;
use polder_scheduler::{EngineThread, SchedulerError};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::EngineError;
use crate::answering::now;
use crate::app::{App, Engine, READERS, router};
use crate::handle::Handle;
use crate::load::{EngineOptions, Parts, load};
use crate::metrics::Metrics;
use crate::socket::Door;

/// Longest that answers in progress may go on after the engine was told to stop. Those that are longer are then ended where they are, as if
/// they had reached their limit: whoever waits gets an end, and not a cut.
const DRAIN: Duration = Duration::from_secs(20);
/// Longest that those ends may take to reach whoever reads them.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// Longest that is waited for what is kept to be on disk, after that.
const SETTLE: Duration = Duration::from_secs(5);
/// Most bytes of an answer that are kept for a slow reader beside what the system keeps.
const BUFFER: usize = 32 << 10;
/// How often it is looked at whether things go on.
const LOOK: Duration = Duration::from_millis(250);
/// So long nothing may move while a model is loaded: what is packed for a processor says nothing of how far it is.
const LOADING_STANDS: Duration = Duration::from_secs(45 * 60);
/// Longest that a request's head may take.
const HEAD: Duration = Duration::from_secs(10);

/// Loads the model on the CPU and serves it until `shutdown` is ready. The door is open while
/// the model loads; requests are told to come back.
pub async fn run(
    options: EngineOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EngineError> {
    let socket = options.socket.clone();
    let served_as = options.served_as.clone();
    log::info!(engine:% = options.name, model:% = served_as; "loading the model");
    serve(&socket, &served_as, move |progress| load(&options, progress), shutdown).await
}

/// Serves what `load` makes, under a name, on a Unix socket, until `shutdown` is ready. `load`
/// runs on a thread of its own and tells its progress in thousandths.
pub async fn serve(
    socket: &Path,
    served_as: &str,
    load: impl FnOnce(&dyn Fn(u32)) -> Result<Parts, EngineError> + Send + 'static,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EngineError> {
    let door = Door::open(socket)?;
    let app = Arc::new(App {
        served_as: served_as.to_owned(),
        started: now(),
        engine: OnceLock::new(),
        progress: AtomicU32::new(0),
        stopping: AtomicBool::new(false),
        common: Mutex::default(),
        metrics: Arc::new(Metrics::new()),
        readers: Arc::new(Semaphore::new(READERS)),
    });
    let mut loading = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || {
            // Where a card refuses a model after a while, the processor begins anew.
            load(&|thousandths| {
                app.progress.fetch_max(thousandths, Ordering::Relaxed);
            })
        })
    };
    let mut connections = Connections::new(router(app.clone()));
    let (tell_end, mut ended) = oneshot::channel();
    let mut tell_end = Some(tell_end);
    let (give_up, hung) = watch::channel(false);
    let (hurry, hurried) = watch::channel(false);
    let mut moving = Moving { progress: 0, since: Instant::now() };
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    let outcome = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            accepted = door.listener.accept() => match accepted {
                Ok((stream, _)) => connections.take(stream),
                Err(error) => {
                    log::warn!(error:% = error; "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            loaded = &mut loading, if tell_end.is_some() => {
                let parts = match loaded.unwrap_or(Err(EngineError::LoadPanicked)) {
                    Ok(parts) => parts,
                    Err(error) => break Err(error),
                };
                match (start(&app, parts, hung.clone(), hurried.clone()), tell_end.take()) {
                    (Ok(thread), Some(tell)) => watch(thread, tell),
                    (Err(error), _) => break Err(EngineError::Scheduler(error)),
                    (Ok(_), None) => {}
                }
                log::info!(model:% = served_as; "the model is ready");
            },
            _ = looks.tick() => match app.engine.get().map(|engine| engine.handle.hung()) {
                // Its thread cannot tell anybody: whoever waits is told by this.
                Some(Some(running)) => {
                    give_up.send_replace(true);
                    break Err(EngineError::Hung(running));
                }
                Some(None) => {}
                None => {
                    let progress = app.progress.load(Ordering::Relaxed);
                    if let Some(stood) = moving.stands(progress, Instant::now()) {
                        break Err(EngineError::LoadHangs(stood));
                    }
                }
            },
            // Never before the engine was started: until then the sender is here.
            end = &mut ended => break Err(match end {
                Ok(Err(error)) => EngineError::Scheduler(error),
                _ => EngineError::Ended,
            }),
        }
    };
    app.stopping.store(true, Ordering::Relaxed);
    drop(door);
    let limit = if outcome.is_ok() { DRAIN } else { Duration::from_secs(1) };
    let enough = || {
        hurry.send_replace(true);
    };
    if !connections.drain(limit, enough).await {
        log::warn!("some answers took too long to finish and were cut off");
    }
    settle(&app).await;
    outcome
}

/// Whether loading goes on.
struct Moving {
    progress: u32,
    since: Instant,
}

impl Moving {
    /// How long nothing has moved, where that is too long.
    fn stands(&mut self, progress: u32, now: Instant) -> Option<Duration> {
        if progress != self.progress {
            *self = Self { progress, since: now };
        }
        let stood = now.saturating_duration_since(self.since);
        (stood > LOADING_STANDS).then_some(stood)
    }
}

/// Has what is kept written to disk, so that the next engine finds it.
async fn settle(app: &App) {
    let Some(engine) = app.engine.get() else { return };
    let handle = engine.handle.clone();
    let settled = tokio::task::spawn_blocking(move || handle.settle(SETTLE)).await;
    if !settled.unwrap_or(false) {
        log::warn!("the disk was too slow to take everything that was to be kept");
    }
}

/// Starts the engine's thread and opens it to requests.
fn start(
    app: &App,
    parts: Parts,
    hung: watch::Receiver<bool>,
    hurried: watch::Receiver<bool>,
) -> Result<EngineThread, SchedulerError> {
    let vocab = parts.backend.limits().vocab;
    let thread = polder_scheduler::spawn_with_store(parts.backend, parts.config, parts.store)?;
    let tokenizer = Arc::new(parts.tokenizer);
    let template = parts.template.as_ref().ok();
    let dialect = template.map(|template| template.dialect(&tokenizer)).unwrap_or_default();
    let (calls, thinks) = (dialect.calls().unwrap_or("none"), dialect.thinks());
    log::info!(calls:% = calls, thinks:% = thinks; "how this model calls tools, and whether it may think first");
    let engine = Engine {
        handle: Handle::new(thread.handle(), hung, hurried),
        grammars: Grammars::new(tokenizer.clone(), vocab),
        tokenizer,
        template: parts.template,
        dialect,
        vocab,
        most_sequences: parts.config.most_of_one(),
        left_behind: parts.left_behind,
        note: parts.note,
    };
    let first = app.engine.set(Arc::new(engine)).is_ok();
    debug_assert!(first, "the model is loaded once");
    Ok(thread)
}

/// Tells when the engine's thread ends.
fn watch(thread: EngineThread, tell: oneshot::Sender<Result<(), SchedulerError>>) {
    // A plain thread: it lives as long as the engine, and the runtime must not wait for it.
    let watcher = std::thread::Builder::new().name("polder-engine-watch".into());
    let spawned = watcher.spawn(move || {
        // Where nobody waits any more, the engine was told to end.
        let _ = tell.send(thread.join());
    });
    if let Err(error) = spawned {
        log::warn!(error:% = error; "the engine's thread cannot be watched");
    }
}

/// Connections that are open.
struct Connections {
    router: Router,
    tasks: JoinSet<()>,
    graceful: GracefulShutdown,
}

impl Connections {
    fn new(router: Router) -> Self {
        Self { router, tasks: JoinSet::new(), graceful: GracefulShutdown::new() }
    }

    fn take(&mut self, stream: UnixStream) {
        while self.tasks.try_join_next().is_some() {}
        let service = TowerToHyperService::new(self.router.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                log::debug!(error:% = error; "a connection ended early");
            }
        });
    }

    /// Lets answers in progress finish, and says `enough` where some take longer than `limit`; false where they do not even
    /// come to their end then.
    async fn drain(mut self, limit: Duration, enough: impl FnOnce()) -> bool {
        let mut finishing = std::pin::pin!(self.graceful.shutdown());
        let mut finished = tokio::time::timeout(limit, &mut finishing).await.is_ok();
        if !finished {
            log::info!("answers that are still being written end where they are");
            enough();
            finished = tokio::time::timeout(LAST_WORDS, &mut finishing).await.is_ok();
        }
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_moves_is_waited_for_and_one_that_stands_still_is_not() {
        let start = Instant::now();
        let mut moving = Moving { progress: 0, since: start };
        for hours in 0..5 {
            let now = start + Duration::from_secs(hours * 40 * 60);
            assert_eq!(moving.stands(hours as u32, now), None);
        }
        let last = start + Duration::from_secs(4 * 40 * 60);
        assert_eq!(moving.stands(4, last + LOADING_STANDS), None);
        let late = Duration::from_secs(1) + LOADING_STANDS;
        assert_eq!(moving.stands(4, last + late), Some(late));
    }
}
