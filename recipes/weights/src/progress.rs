use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polder_recipes::Digest;

use crate::WeightsError;
use crate::space::bytes;

/// What an import tells while it runs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// How far it is. The last one has [`Phase::Done`].
    Progress(Progress),
    /// An unpinned recipe was imported for the first time: from now on this file must be these bytes.
    Pinned {
        /// The recipe.
        recipe: String,
        /// The file.
        file: String,
        /// What it hashed to.
        sha256: Digest,
    },
    /// Another import holds the store; this one waits.
    Waiting,
    /// A connection failed and is tried again.
    Retrying {
        /// The file.
        file: String,
        /// One clause.
        why: String,
        /// After this long.
        wait: Duration,
    },
    /// The server cannot give parts of a file: one connection, and a cut starts the file anew.
    OneConnection {
        /// The file.
        file: String,
    },
    /// What was kept of a file from last time could not be used.
    StartingOver {
        /// The file.
        file: String,
        /// One clause.
        why: String,
    },
}

/// How far one phase is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// With which file.
    pub file: Option<String>,
    /// Bytes done in this phase, over all files, those that were here before included.
    pub done: u64,
    /// Of how many, where that is known.
    pub total: Option<u64>,
    /// Bytes per second over the last few seconds.
    pub rate: Option<f64>,
    /// Time left at that rate.
    pub eta: Option<Duration>,
}

/// The phases of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Looking at what is here and whether the rest fits.
    CheckingSpace,
    /// Bytes come over the network.
    Fetching,
    /// Bytes come from a folder or a wheel on this machine.
    Copying,
    /// The last bytes are hashed and compared.
    Checking,
    /// Everything is in place.
    Done,
}

impl Phase {
    /// In words: `checking space`, `fetching`, `copying`, `checking`, `done`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CheckingSpace => "checking space",
            Self::Fetching => "fetching",
            Self::Copying => "copying",
            Self::Checking => "checking",
            Self::Done => "done",
        }
    }
}
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.phase.fmt(f)?;
        if let Some(file) = &self.file {
            write!(f, " {file}")?;
        }
        if matches!(self.phase, Phase::Fetching | Phase::Copying | Phase::Checking) {
            write!(f, ": {}", bytes(self.done))?;
        }
        if let Some(total) = self.total.filter(|_| self.phase != Phase::Done) {
            write!(f, " of {}", bytes(total))?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", {}/s", bytes(rate as u64))?;
        }
        match self.eta {
            Some(eta) => write!(f, ", {} s left", eta.as_secs()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Progress(progress) => progress.fmt(f),
            Self::Pinned { recipe, file, sha256 } => write!(
                f,
                "{recipe} was not pinned; from now on {file} must have sha256 {sha256}, and any \
                 change is refused"
            ),
            Self::Waiting => f.write_str("another import is running; waiting for it"),
            Self::Retrying { file, why, wait } => {
                write!(f, "{file}: {why}; trying again in {:.1} s", wait.as_secs_f64())
            }
            Self::OneConnection { file } => write!(
                f,
                "{file}: the server cannot give parts of a file; if it is cut it starts again from \
                 the beginning"
            ),
            Self::StartingOver { file, why } => {
                write!(f, "{file}: {why}; starting it from the beginning")
            }
        }
    }
}

/// Stops an import from another thread. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Asks the import to stop; it keeps what it has.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    pub(crate) fn check(&self) -> Result<(), WeightsError> {
        if self.is_cancelled() { Err(WeightsError::Cancelled) } else { Ok(()) }
    }
}

/// The observer of one import, with what it needs to say how far it is.
pub(crate) struct Teller<'a> {
    observer: &'a mut dyn FnMut(Event),
    every: Duration,
    told: Option<Instant>,
    phase: Phase,
    file: Option<String>,
    done: u64,
    total: Option<u64>,
    /// Bytes of the model that came from the source, all in all.
    pub(crate) brought: u64,
    meter: Meter,
}

impl<'a> Teller<'a> {
    pub(crate) fn new(observer: &'a mut dyn FnMut(Event), every: Duration) -> Self {
        let (phase, meter) = (Phase::CheckingSpace, Meter::default());
        let (told, file, total) = (None, None, None);
        Self { observer, every, told, phase, file, done: 0, total, brought: 0, meter }
    }
    /// Something other than progress.
    pub(crate) fn say(&mut self, event: Event) {
        log::info!("{event}");
        (self.observer)(event);
    }
    /// A phase begins, with so much of it done already.
    pub(crate) fn begin(&mut self, phase: Phase, done: u64, total: Option<u64>) {
        self.file = None;
        self.resume(phase, done, total);
    }
    /// The same with the file kept.
    pub(crate) fn resume(&mut self, phase: Phase, done: u64, total: Option<u64>) {
        (self.phase, self.done, self.total) = (phase, done, total);
        self.meter = Meter::default();
        self.tell();
    }
    pub(crate) fn file(&mut self, name: &str) {
        self.file = Some(name.to_owned());
        self.tell();
    }
    /// Where the counter stands, to come back to it.
    pub(crate) fn standing(&self) -> (Phase, u64, Option<u64>) {
        (self.phase, self.done, self.total)
    }
    pub(crate) fn done(&self) -> u64 {
        self.done
    }
    /// These bytes were here before: they count, but not for the rate.
    pub(crate) fn had(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
    }
    /// Back to where it was: a file starts over.
    pub(crate) fn back_to(&mut self, done: u64) {
        self.done = done;
    }
    /// So much of something that is not part of the model itself is done.
    pub(crate) fn reached(&mut self, done: u64) {
        let more = done.saturating_sub(self.done);
        self.count(more);
    }
    pub(crate) fn total(&mut self, total: Option<u64>) {
        self.total = total;
    }
    /// These bytes were moved now.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.brought = self.brought.saturating_add(bytes);
        self.count(bytes);
    }
    /// These bytes were looked at.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        let now = Instant::now();
        self.meter.add(now, bytes);
        if self.told.is_none_or(|told| now.duration_since(told) >= self.every) {
            self.tell();
        }
    }
    pub(crate) fn tell(&mut self) {
        let now = Instant::now();
        self.told = Some(now);
        let rate = self.meter.rate(now);
        let total = self.total.map(|total| total.max(self.done));
        let eta = total.zip(rate).and_then(|(total, rate)| eta(total - self.done, rate));
        let (phase, file, done) = (self.phase, self.file.clone(), self.done);
        (self.observer)(Event::Progress(Progress { phase, file, done, total, rate, eta }));
    }
}

/// Time for `left` bytes at `rate` bytes per second.
fn eta(left: u64, rate: f64) -> Option<Duration> {
    Duration::try_from_secs_f64((left as f64 / rate).ceil()).ok()
}

/// Bytes per second over a sliding window.
#[derive(Debug, Default)]
struct Meter {
    moved: VecDeque<(Instant, u64)>,
}

impl Meter {
    const WINDOW: Duration = Duration::from_secs(5);
    /// Below this a rate is noise.
    const SHORTEST: Duration = Duration::from_millis(300);
    /// Bytes within one of these count as one entry, which bounds the window's memory.
    const GRAIN: Duration = Duration::from_millis(50);

    fn add(&mut self, now: Instant, bytes: u64) {
        match self.moved.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < Self::GRAIN => *sum += bytes,
            _ => self.moved.push_back((now, bytes)),
        }
        while self.moved.front().is_some_and(|(at, _)| now.duration_since(*at) > Self::WINDOW) {
            self.moved.pop_front();
        }
    }
    fn rate(&self, now: Instant) -> Option<f64> {
        let (first, _) = self.moved.front()?;
        let span = now.duration_since(*first);
        let sum: u64 = self.moved.iter().map(|(_, bytes)| bytes).sum();
        (span >= Self::SHORTEST && sum > 0).then(|| sum as f64 / span.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(meter.rate(start), None);
        for tenth in 0..100u64 {
            let speed = if tenth < 50 { 1_000 } else { 100_000 };
            meter.add(start + Duration::from_millis(tenth * 100), speed);
        }
        let rate = meter.rate(start + Duration::from_millis(9_900)).unwrap();
        assert!((900_000.0..1_100_000.0).contains(&rate), "{rate}");
        assert!(meter.moved.len() <= 101);
    }
    #[test]
    fn progress_counts_what_was_here_but_not_in_the_rate() {
        let mut seen = Vec::new();
        let mut observer = |event| seen.push(event);
        let mut teller = Teller::new(&mut observer, Duration::ZERO);
        teller.begin(Phase::Fetching, 0, Some(100));
        teller.had(40);
        teller.moved(10);
        let Some(Event::Progress(last)) = seen.last() else { panic!("{seen:?}") };
        assert_eq!((last.done, last.total, last.rate), (50, Some(100), None));
    }
    #[test]
    fn an_endless_wait_has_no_eta() {
        assert_eq!(eta(u64::MAX, 1e-30), None);
        assert_eq!(eta(100, 10.0), Some(Duration::from_secs(10)));
    }
    #[test]
    fn progress_reads_as_a_line() {
        let (phase, file) = (Phase::Fetching, Some("m.gguf".to_owned()));
        let (rate, eta) = (Some(2e6), Some(Duration::from_secs(40)));
        let line = Progress { phase, file, done: 20_000_000, total: Some(100_000_000), rate, eta };
        assert_eq!(line.to_string(), "fetching m.gguf: 20.0 MB of 100.0 MB, 2.0 MB/s, 40 s left");
    }
}
