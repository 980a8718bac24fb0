//! The thread that owns the back end, and the handle through which others talk to it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use polder_backend::{Backend, StepBatch, Ticket, TokenId};

use crate::grammar::MaskWork;
use crate::mask_threads::MaskThreads;
use crate::pulse::Pulse;
use crate::request::{Event, Refusal, Request, RequestId, SchedulerError};
use crate::scheduler::{Config, Scheduler, Stats};

/// For so long a step waits for masks: most take less, and hardly any step does.
const WORTH_WAITING: Duration = Duration::from_millis(2);
/// Where nothing can run without a mask, callers are heard at least this often.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Where a sequence's events go, in order. It is called on the engine's thread and must not wait.
pub trait Sink: Send {
    /// Takes an event. False says that nobody listens any more, which cancels the sequence.
    fn hear(&mut self, event: Event) -> bool;

    /// False pauses the sequence until this says otherwise: it keeps its place and samples nothing.
    /// Asked before each step. Whoever makes room calls [`EngineHandle::wake`].
    fn has_room(&mut self) -> bool {
        true
    }
}

impl<F: FnMut(Event) -> bool + Send> Sink for F {
    fn hear(&mut self, event: Event) -> bool {
        self(event)
    }
}

/// Starts the engine's thread.
pub fn spawn(backend: Box<dyn Backend>, config: Config) -> Result<EngineThread, SchedulerError> {
    let scheduler = Scheduler::new(backend.limits(), config)?;
    let stats = Arc::new(Mutex::new(scheduler.stats()));
    let pulse = Arc::new(Mutex::new(Pulse::default()));
    let (commands, inbox) = channel();
    let handle = EngineHandle {
        commands,
        next_id: Arc::new(AtomicU64::new(0)),
        stats: stats.clone(),
        pulse: pulse.clone(),
        patience: config.patience,
        capacity: scheduler.capacity(),
    };
    let engine = EngineLoop {
        steps_ahead: scheduler.config().steps_ahead.into(),
        scheduler,
        backend,
        inbox,
        sinks: HashMap::new(),
        in_flight: VecDeque::new(),
        batch: StepBatch::default(),
        events: Vec::new(),
        masks: MaskThreads::new(),
        mask_work: Vec::new(),
        readers_stall: false,
        stats,
        pulse,
    };
    let thread = std::thread::Builder::new()
        .name("polder-engine".into())
        .spawn(move || engine.run())
        .map_err(SchedulerError::Thread)?;
    Ok(EngineThread { handle, thread })
}

/// A running engine. It ends when its last handle is gone, or when the device fails.
#[derive(Debug)]
pub struct EngineThread {
    handle: EngineHandle,
    thread: JoinHandle<Result<(), SchedulerError>>,
}

impl EngineThread {
    /// A way to talk to it.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Gives up this handle and waits for the thread's end.
    pub fn join(self) -> Result<(), SchedulerError> {
        drop(self.handle);
        self.thread.join().unwrap_or_else(|panic| {
            let what = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(SchedulerError::Panicked(what.unwrap_or_else(|| "no message".into())))
        })
    }
}

/// Talks to the engine's thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    next_id: Arc<AtomicU64>,
    stats: Arc<Mutex<Stats>>,
    pulse: Arc<Mutex<Pulse>>,
    patience: Duration,
    capacity: u32,
}

enum Command {
    Admit(Vec<(RequestId, Request, Box<dyn Sink>)>),
    Cancel(RequestId),
    Share(Vec<TokenId>),
    Wake,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Admit(list) => write!(f, "Admit({} sequences)", list.len()),
            Self::Cancel(id) => write!(f, "Cancel({})", id.0),
            Self::Share(tokens) => write!(f, "Share({} tokens)", tokens.len()),
            Self::Wake => write!(f, "Wake"),
        }
    }
}

impl EngineHandle {
    /// Hands sequences in, all taken or none. Each sink hears [`Event::Queued`] or
    /// [`Event::Refused`] first, within a step.
    pub fn submit(&self, sequences: Vec<(Request, Box<dyn Sink>)>) -> Vec<RequestId> {
        let count = sequences.len() as u64;
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        let ids: Vec<RequestId> = (first..first + count).map(RequestId).collect();
        let sequences =
            ids.iter().zip(sequences).map(|(id, (request, sink))| (*id, request, sink)).collect();
        if let Err(unsent) = self.commands.send(Command::Admit(sequences))
            && let Command::Admit(sequences) = unsent.0
        {
            for (_, _, mut sink) in sequences {
                sink.hear(Event::Refused(Refusal::Stopping));
            }
        }
        ids
    }

    /// Ends a sequence; its blocks are free before the next step. Ids that are done are fine.
    pub fn cancel(&self, id: RequestId) {
        // Where the engine has ended there is nothing left to cancel.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// All members may share how these tokens begin (instructions that everybody's programs send).
    pub fn share_beginning(&self, tokens: Vec<TokenId>) {
        // Where the engine has ended there is nothing left to share.
        let _ = self.commands.send(Command::Share(tokens));
    }

    /// Says that a sink which had no room has some again.
    pub fn wake(&self) {
        // Where the engine has ended there is nothing left to go on with.
        let _ = self.commands.send(Command::Wake);
    }

    /// How things stood after the last step.
    pub fn stats(&self) -> Stats {
        *lock(&self.stats)
    }

    /// How long the step in flight has been running, where that is so much longer than its tokens
    /// explain that the back end must be taken for hung ([`Config::patience`]).
    pub fn hung(&self) -> Option<Duration> {
        lock(&self.pulse).overdue(Instant::now(), self.patience)
    }

    /// Most tokens of one sequence, prompt and answer together.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

struct EngineLoop {
    scheduler: Scheduler,
    backend: Box<dyn Backend>,
    steps_ahead: usize,
    inbox: Receiver<Command>,
    sinks: HashMap<RequestId, Box<dyn Sink>>,
    /// Steps that were submitted and not collected, with their tokens.
    in_flight: VecDeque<(Ticket, u32)>,
    batch: StepBatch,
    events: Vec<(RequestId, Event)>,
    masks: MaskThreads,
    mask_work: Vec<MaskWork>,
    /// Nothing can be run until a reader takes what is there for it, or a command comes.
    readers_stall: bool,
    stats: Arc<Mutex<Stats>>,
    pulse: Arc<Mutex<Pulse>>,
}

impl EngineLoop {
    fn run(mut self) -> Result<(), SchedulerError> {
        let result = self.serve();
        if let Err(error) = &result {
            log::error!(error:% = error; "the engine stops: a step failed");
        }
        for sink in self.sinks.values_mut() {
            sink.hear(Event::Failed);
        }
        result
    }

    fn serve(&mut self) -> Result<(), SchedulerError> {
        while self.hear() {
            self.bind_masks();
            if self.scheduler.is_idle() {
                continue;
            }
            let sinks = &mut self.sinks;
            self.scheduler.pause_where(|id| sinks.get_mut(&id).is_some_and(|s| !s.has_room()));
            let submitted = self.in_flight.len() <= self.steps_ahead
                && self.scheduler.plan_step(&mut self.batch);
            if submitted {
                let tokens = self.batch.inputs.len() as u32;
                if self.in_flight.is_empty() {
                    lock(&self.pulse).begin(Instant::now(), tokens);
                }
                let ticket = self.backend.submit(&self.batch).map_err(SchedulerError::Backend)?;
                self.in_flight.push_back((ticket, tokens));
                if self.in_flight.len() <= self.steps_ahead {
                    continue;
                }
            }
            let Some((ticket, _)) = self.in_flight.pop_front() else {
                if self.masks.busy() {
                    self.take_masks(Instant::now() + LONGEST_WAIT, true);
                    continue;
                }
                if self.scheduler.stats().paused == 0 {
                    return Err(SchedulerError::Stalled);
                }
                self.readers_stall = true;
                continue;
            };
            let output = self.backend.collect(ticket).map_err(SchedulerError::Backend)?;
            {
                let (mut pulse, now) = (lock(&self.pulse), Instant::now());
                if let Some(took) = pulse.end(now) {
                    self.scheduler.took(took);
                }
                if let Some((_, tokens)) = self.in_flight.front() {
                    pulse.begin(now, *tokens);
                }
            }
            self.scheduler.take(output, &mut self.events)?;
            self.hand_out_masks();
            // Before its answer is heard: who asks after that must not see it still running.
            self.publish();
            self.tell();
        }
        Ok(())
    }

    /// Takes the masks that are there. Where the back end has nothing to do meanwhile, those that
    /// are nearly there are waited for: whoever is left out of a step waits for all of it.
    fn bind_masks(&mut self) {
        let wait = if self.in_flight.is_empty() { WORTH_WAITING } else { Duration::ZERO };
        self.take_masks(Instant::now() + wait, false);
    }

    /// Takes masks until none is being computed or the time is up, or only the `first` one.
    fn take_masks(&mut self, until: Instant, first: bool) {
        let before = self.events.len();
        while let Some(done) = self.masks.take(until.saturating_duration_since(Instant::now())) {
            self.scheduler.take_mask(done, &mut self.events);
            if first {
                break;
            }
        }
        if self.events.len() > before {
            self.publish();
            self.tell();
        }
    }

    /// Has the masks computed whose tokens are known now, while others' tokens are sampled.
    fn hand_out_masks(&mut self) {
        self.scheduler.mask_work(&mut self.mask_work);
        for work in self.mask_work.drain(..) {
            self.masks.give(work);
        }
    }

    /// Takes what callers sent, and waits for them where there is nothing else to do. False
    /// when all of them are gone.
    fn hear(&mut self) -> bool {
        self.publish();
        loop {
            let nothing_to_do = self.scheduler.is_idle() || std::mem::take(&mut self.readers_stall);
            let command = if nothing_to_do {
                match self.inbox.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match self.inbox.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Admit(sequences) => self.admit(sequences),
                Command::Cancel(id) => self.cancel(id),
                Command::Share(tokens) => self.scheduler.share_beginning(&tokens),
                Command::Wake => {}
            }
            self.publish();
        }
    }

    fn admit(&mut self, sequences: Vec<(RequestId, Request, Box<dyn Sink>)>) {
        let mut sinks = Vec::with_capacity(sequences.len());
        let mut requests = Vec::with_capacity(sequences.len());
        for (id, request, sink) in sequences {
            requests.push((id, request));
            sinks.push((id, sink));
        }
        match self.scheduler.admit(requests) {
            Ok(()) => {
                for (id, mut sink) in sinks {
                    if sink.hear(Event::Queued) {
                        self.sinks.insert(id, sink);
                    } else {
                        self.scheduler.cancel(id);
                    }
                }
            }
            Err(refusal) => {
                for (_, mut sink) in sinks {
                    sink.hear(Event::Refused(refusal));
                }
            }
        }
    }

    fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
        self.sinks.remove(&id);
    }

    /// Hands out the events of a step.
    fn tell(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for (id, event) in events.drain(..) {
            let last = matches!(event, Event::Finished { .. } | Event::Unusable | Event::Stuck(_));
            let Some(sink) = self.sinks.get_mut(&id) else { continue };
            let heard = sink.hear(event);
            if last {
                self.sinks.remove(&id);
            } else if !heard {
                self.cancel(id);
            }
        }
        self.events = events;
    }

    fn publish(&self) {
        *lock(&self.stats) = self.scheduler.stats();
    }
}

/// What a thread that panicked left behind is still the last that is known.
fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
