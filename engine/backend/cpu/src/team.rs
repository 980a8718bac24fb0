//! The threads that compute: woken for every multiplication of every layer, so waking must cost
//! next to nothing.
//!
//! A [`Team`] is the caller and its helpers. Work comes as pieces; each goes to whoever is free, the
//! caller too. A helper that has nothing to do looks for more for some microseconds and then
//! sleeps: within a forward pass it finds the next piece without the system's help, between two of
//! them it costs nothing. A helper that the system has taken the processor from is not waited for,
//! unless it holds a piece.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// So long a helper looks for more before it sleeps. Longer than what lies between two
/// multiplications, shorter than anybody notices.
const LOOK: Duration = Duration::from_micros(60);

/// Looks between two glances at the clock.
const GLANCE: u32 = 64;

/// Threads that share pieces of work.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

/// What helpers see. `state` holds the number of the job, whether it may be joined, and how many
/// helpers are inside: see [`State`].
#[derive(Debug)]
struct Shared {
    state: AtomicU64,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    job: Job,
    asleep: Vec<AtomicBool>,
    ended: AtomicBool,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Pieces of work, and how one is done. Written only while no helper is inside and none can join.
struct Job(UnsafeCell<(usize, *const (dyn Fn(usize) + Sync))>);

// SAFETY: what it points to is `Sync` and outlives the job: `Team::run` says how. The cell is
// written by the one caller while nobody else reads it.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// Bits of the state: helpers inside, then whether the job is open, then its number.
struct State(u64);

impl State {
    const OPEN: u64 = 1 << 16;
    const JOB: u64 = 1 << 17;

    fn is_open(&self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn job(&self) -> u64 {
        self.0 / Self::JOB
    }

    fn inside(&self) -> u64 {
        self.0 % Self::OPEN
    }
}

impl Team {
    /// So many threads, the caller's included; 0 takes as many as the process may use cores.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.min(1 << 10),
        };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: Job(UnsafeCell::new((0, &|_| ()))),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            ended: AtomicBool::new(false),
            panicked: Mutex::new(None),
        });
        let mut team = Self { shared, helpers: Vec::with_capacity(threads - 1) };
        for n in 0..threads - 1 {
            let shared = Arc::clone(&team.shared);
            let helper = std::thread::Builder::new()
                .name(format!("polder-cpu-{n}"))
                .spawn(move || shared.help(n))?;
            team.helpers.push((helper.thread().clone(), Some(helper)));
        }
        Ok(team)
    }

    /// How many rows of `rows` make a piece, where less than `least` are not worth a thread.
    pub(crate) fn share(&self, rows: usize, least: usize) -> usize {
        rows.div_ceil(4 * self.threads()).max(least)
    }

    /// The caller and its helpers.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// `work(n, item)` for each item, in no order. Who calls this from within `work` waits for ever.
    pub(crate) fn each<T: Send>(&mut self, items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        if items.len() <= 1 || self.helpers.is_empty() {
            items.iter_mut().enumerate().for_each(|(n, item)| work(n, item));
            return;
        }
        /// A pointer that may be sent where what it points to may.
        struct First<T>(*mut T);
        // SAFETY: each item goes to one thread, and `T` may be sent there.
        unsafe impl<T: Send> Sync for First<T> {}
        impl<T> First<T> {
            fn get(&self) -> *mut T {
                self.0
            }
        }
        let first = First(items.as_mut_ptr());
        self.run(items.len(), &|n| {
            // SAFETY: `run` calls this once for each `n` below the number of items, and has
            // returned before the borrow of `items` ends.
            work(n, unsafe { &mut *first.get().add(n) });
        });
    }

    /// `work(n)` for every `n` below `pieces`, once.
    fn run(&mut self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Helpers use the pointer only while they are inside a
        // job, and this function leaves neither by returning nor by a panic before the job is closed
        // and everybody has left it.
        let work: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work)
        };
        // SAFETY: the last job is closed and nobody is inside, so nobody reads.
        unsafe { *shared.job.0.get() = (pieces, work) };
        shared.next.store(0, Ordering::Relaxed);
        // Sequentially consistent, like the helper's way to sleep: either it sees the job, or we see it asleep.
        shared.state.fetch_add(State::JOB | State::OPEN, Ordering::SeqCst);
        for ((thread, _), asleep) in self.helpers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_pieces()));
        shared.state.fetch_and(!State::OPEN, Ordering::AcqRel);
        let mut looks = 0u32;
        while State(shared.state.load(Ordering::Acquire)).inside() > 0 {
            looks += 1;
            match looks.is_multiple_of(1 << 12) {
                // Whoever holds a piece may need this processor.
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
        let theirs = shared.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for (thread, helper) in &mut self.helpers {
            thread.unpark();
            if let Some(helper) = helper.take() {
                // It has caught every panic.
                let _ = helper.join();
            }
        }
    }
}

impl Shared {
    /// Takes pieces until there are none.
    fn take_pieces(&self) {
        // SAFETY: the caller has written the job, or the helper is inside: it is not written.
        let (pieces, work) = unsafe { *self.job.0.get() };
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if n >= pieces {
                return;
            }
            // SAFETY: `Team::run` waits for everybody inside before what this points to ends.
            unsafe { (*work)(n) };
        }
    }

    /// What a helper does all its life.
    fn help(&self, number: usize) {
        let mut done = 0;
        while let Some(job) = self.wait(number, done) {
            if self.join(job) {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_pieces())) {
                    *self.panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
                self.state.fetch_sub(1, Ordering::AcqRel);
            }
            done = job;
        }
    }

    /// The number of an open job other than the one just done, or None at the end.
    fn wait(&self, number: usize, done: u64) -> Option<u64> {
        let fresh = || {
            let state = State(self.state.load(Ordering::SeqCst));
            (state.is_open() && state.job() != done).then(|| state.job())
        };
        loop {
            let began = Instant::now();
            while began.elapsed() < LOOK {
                for _ in 0..GLANCE {
                    if let Some(job) = fresh() {
                        return Some(job);
                    }
                    std::hint::spin_loop();
                }
                if self.ended.load(Ordering::SeqCst) {
                    return None;
                }
            }
            let asleep = &self.asleep[number];
            asleep.store(true, Ordering::SeqCst);
            while asleep.load(Ordering::SeqCst)
                && fresh().is_none()
                && !self.ended.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the job was still open: from now on it is waited for.
    fn join(&self, job: u64) -> bool {
        let joined = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let now = State(state);
            (now.is_open() && now.job() == job).then_some(state + 1)
        });
        joined.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_whoever_does_it() {
        for threads in [1, 2, 3, 7] {
            let mut team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for pieces in (0..200).chain([5000]) {
                let mut counts = vec![0usize; pieces];
                team.each(&mut counts, |n, count| *count += n + 1);
                assert!(counts.iter().enumerate().all(|(n, count)| *count == n + 1));
            }
        }
    }

    #[test]
    fn helpers_that_have_gone_to_sleep_come_back() {
        let mut team = Team::new(2).unwrap();
        for _ in 0..20 {
            std::thread::sleep(2 * LOOK);
            // Nobody can do both alone: each waits for the other to have begun.
            let met = std::sync::Barrier::new(2);
            team.each(&mut [(), ()], |_, ()| {
                met.wait();
            });
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_team_goes_on() {
        let mut team = Team::new(2).unwrap();
        for bad in 0..4 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let met = std::sync::Barrier::new(2);
                team.each(&mut [0, 1, 2, 3], |n, _| {
                    if n < 2 {
                        met.wait();
                    }
                    assert!(n != bad, "piece {n}");
                });
            }));
            assert!(caught.is_err());
        }
        let mut sum = [1, 2, 3];
        team.each(&mut sum, |_, n| *n *= 2);
        assert_eq!(sum, [2, 4, 6]);
    }
}
