//! The threads that connections live on: each stays on the one it was given to.
//!
//! What a request needs between two system calls takes less time than waking another thread. So
//! nothing of a connection ever moves: its runtime has one thread, and so have the connections to
//! engines that it uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads beside each for what blocks, which is the database and its one lock most of the time. The
/// usual 512 each are together more than the gateway's unit may have, and a runtime that gets none
/// panics.
const BLOCKING: usize = 64;

/// The threads. They end when the last clone is dropped, and the last seat.
#[derive(Clone)]
pub(crate) struct Workers(Arc<All>);

struct All {
    workers: Vec<Worker>,
    _end: DropGuard,
}

struct Worker {
    runtime: Handle,
    connections: AtomicUsize,
}

/// A connection's place on a thread, which goes on for as long as it is held.
pub(crate) struct Seat {
    all: Arc<All>,
    number: usize,
}

impl Workers {
    /// Starts so many threads, or as many as the system gives; at the least there is the thread
    /// that calls.
    pub(crate) fn start(threads: usize) -> Self {
        let end = CancellationToken::new();
        let mut workers: Vec<Worker> = (0..threads).map_while(|n| Worker::start(n, &end)).collect();
        if workers.is_empty() {
            workers.push(Worker { runtime: Handle::current(), connections: AtomicUsize::new(0) });
        }
        Self(Arc::new(All { workers, _end: end.drop_guard() }))
    }

    /// A seat on the thread that has the fewest connections.
    pub(crate) fn seat(&self) -> Seat {
        let workers = &self.0.workers;
        let busy = |number: &usize| workers[*number].connections.load(Ordering::Relaxed);
        let number = (0..workers.len()).min_by_key(busy).expect("there is at least one");
        workers[number].connections.fetch_add(1, Ordering::Relaxed);
        Seat { all: self.0.clone(), number }
    }
}

impl Worker {
    fn start(number: usize, end: &CancellationToken) -> Option<Self> {
        let runtime =
            Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
        let runtime = runtime.map_err(|e| log::error!("a thread had no runtime: {e}")).ok()?;
        let (handle, end) = (runtime.handle().clone(), end.clone());
        let thread = std::thread::Builder::new().name(format!("door-{number}"));
        let started = thread.spawn(move || {
            runtime.block_on(end.cancelled());
            // A blocking thread that is still at work must not hold the end up.
            runtime.shutdown_background();
        });
        started.map_err(|e| log::error!("a thread could not be started: {e}")).ok()?;
        Some(Self { runtime: handle, connections: AtomicUsize::new(0) })
    }
}

impl Seat {
    /// Where to spawn the connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.all.workers[self.number].runtime
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.all.workers[self.number].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_spread_and_their_seats_are_free_again() {
        let workers = Workers::start(2);
        let id = |seat: &Seat| seat.runtime().id();
        let (a, b) = (workers.seat(), workers.seat());
        assert_ne!(id(&a), id(&b));
        let gone = id(&a);
        drop(a);
        assert_eq!(id(&workers.seat()), gone);
    }

    #[tokio::test]
    async fn without_threads_of_their_own_connections_stay_here() {
        assert_eq!(Workers::start(0).seat().runtime().id(), Handle::current().id());
    }

    #[tokio::test]
    async fn what_blocks_takes_no_more_threads_than_a_unit_may_have() {
        let seat = Workers::start(1).seat();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = Vec::new();
        for _ in 0..BLOCKING * 2 {
            let (now, most) = (now.clone(), most.clone());
            all.push(seat.runtime().spawn_blocking(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(50));
                now.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        for one in all {
            one.await.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= BLOCKING, "{most:?}");
    }

    #[tokio::test]
    async fn a_thread_goes_on_while_somebody_sits_there() {
        let seat = Workers::start(1).seat();
        assert_eq!(seat.runtime().spawn(async { 7 }).await.unwrap(), 7);
    }
}
