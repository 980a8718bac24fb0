//! The threads that compute masks while the engine's thread runs forward passes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::grammar::{MaskDone, MaskWork};

/// Masks of several sequences are computed at the same time, beside forward passes that want the
/// cores too.
const MOST_THREADS: usize = 4;
/// A grammar may be deep, and what walks it calls itself. Memory is taken only as it is touched.
const STACK: usize = 32 << 20;

/// See the module. Threads start with the first grammar: most engines never see one.
#[derive(Debug)]
pub(crate) struct MaskThreads {
    threads: usize,
    work: Sender<MaskWork>,
    queue: Arc<Mutex<Receiver<MaskWork>>>,
    results: Sender<MaskDone>,
    done: Receiver<MaskDone>,
    /// Masks that are being computed or have not been taken.
    away: usize,
}

impl MaskThreads {
    pub(crate) fn new() -> Self {
        let (work, queue) = channel();
        let (results, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        Self { threads: 0, work, queue, results, done, away: 0 }
    }

    /// Has a mask computed.
    pub(crate) fn give(&mut self, work: MaskWork) {
        self.start();
        self.away += 1;
        let alone = match self.threads {
            0 => Some(work),
            _ => self.work.send(work).err().map(|unsent| unsent.0),
        };
        if let Some(work) = alone {
            // The receiver is this one's own.
            let _ = self.results.send(work.run());
        }
    }

    /// A mask that is done. Waits for one, at most so long, where some are being computed.
    pub(crate) fn take(&mut self, wait: Duration) -> Option<MaskDone> {
        if self.away == 0 {
            return None;
        }
        let done = self.done.recv_timeout(wait).ok()?;
        self.away -= 1;
        Some(done)
    }

    /// Some are being computed, or are there and were not taken.
    pub(crate) fn busy(&self) -> bool {
        self.away > 0
    }

    fn start(&mut self) {
        if self.threads > 0 {
            return;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores.min(MOST_THREADS) {
            let (queue, results) = (self.queue.clone(), self.results.clone());
            let thread = std::thread::Builder::new().name("polder-masks".into()).stack_size(STACK);
            match thread.spawn(move || compute(&queue, &results)) {
                Ok(_) => self.threads += 1,
                Err(error) => log::warn!(error:% = error; "a thread for masks cannot be started"),
            }
        }
    }
}

/// Computes masks until nobody wants any more.
fn compute(queue: &Mutex<Receiver<MaskWork>>, results: &Sender<MaskDone>) {
    loop {
        // One waits with the lock, the others for it.
        let work = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = work else { return };
        if results.send(work.run()).is_err() {
            return;
        }
    }
}
