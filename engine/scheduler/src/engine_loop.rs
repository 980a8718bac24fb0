//! The thread that owns the back end, and the handle through which others talk to it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use polder_backend::{Backend, Input, StepBatch, Ticket, TokenId};
use polder_kv::{Counters, ForgetError, Store};

use crate::grammar::MaskWork;
use crate::keeper::{Came, Keeper, can_keep, name};
use crate::mask_threads::MaskThreads;
use crate::pulse::Pulse;
use crate::request::{Event, MemberId, Refusal, Request, RequestId, SchedulerError};
use crate::scheduler::{Config, Scheduler, Stats};
use crate::tiers::Owner;

/// For so long a step waits for masks: most take less, and hardly any step does.
const WORTH_WAITING: Duration = Duration::from_millis(2);
/// Where nothing can run without a mask, callers are heard at least this often.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// For so long kept blocks that came are handed on between two steps.
const CAME_FOR: Duration = Duration::from_millis(2);
/// For so long an engine with nothing else to do waits until there may be room for blocks to go out.
const ROOM_WAIT: Duration = Duration::from_millis(1);

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
    spawn_with_store(backend, config, None)
}

/// Starts the engine's thread, which keeps full blocks in a store too. It was opened for this back end's blocks.
pub fn spawn_with_store(
    mut backend: Box<dyn Backend>,
    config: Config,
    store: Option<Arc<Store>>,
) -> Result<EngineThread, SchedulerError> {
    let limits = backend.limits();
    let mut scheduler = Scheduler::new(limits, config)?;
    let (commands, inbox) = channel();
    let store = match store {
        Some(store) if can_keep(&mut *backend).map_err(SchedulerError::Backend)? => Some(store),
        _ => None,
    };
    let keeper = store.clone().map(|store| {
        let commands = commands.clone();
        // Where the engine has ended nobody waits for blocks.
        let tell = move |came| drop(commands.send(Command::Came(came)));
        Keeper::new(store, config.restore_patience, Arc::new(tell))
    });
    if let Some(keeper) = &keeper {
        scheduler = scheduler.with_tiers(keeper.tiers(limits.block_tokens, limits.block_bytes()));
    }
    let stats = Arc::new(Mutex::new(scheduler.stats()));
    let pulse = Arc::new(Mutex::new(Pulse::new(config.first_pace)));
    let handle = EngineHandle {
        door: Arc::new(Door { commands }),
        store,
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
        collected: None,
        batch: StepBatch::default(),
        events: Vec::new(),
        masks: MaskThreads::new(),
        mask_work: Vec::new(),
        keeper,
        settling: Vec::new(),
        readers_stall: false,
        restores_stall: false,
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
    door: Arc<Door>,
    store: Option<Arc<Store>>,
    next_id: Arc<AtomicU64>,
    stats: Arc<Mutex<Stats>>,
    pulse: Arc<Mutex<Pulse>>,
    patience: Duration,
    capacity: u32,
}

/// The engine ends when the last handle lets go of it.
#[derive(Debug)]
struct Door {
    commands: Sender<Command>,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Where the engine has ended by itself there is nothing left to end.
        let _ = self.commands.send(Command::End);
    }
}

enum Command {
    Admit(Vec<(RequestId, Request, Box<dyn Sink>)>),
    Cancel(RequestId),
    Share(Vec<Vec<TokenId>>),
    /// A block that was read, or was not.
    Came(Came),
    /// With whom to tell when it is done.
    Forget(MemberId, Sender<()>),
    /// With whom to tell when all that is full was put beside the device.
    Settle(Sender<()>),
    Wake,
    End,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Admit(list) => write!(f, "Admit({} sequences)", list.len()),
            Self::Cancel(id) => write!(f, "Cancel({})", id.0),
            Self::Share(beginnings) => write!(f, "Share({} beginnings)", beginnings.len()),
            Self::Came(came) => write!(f, "Came({:?}, {})", came.id, came.at),
            Self::Forget(..) => write!(f, "Forget"),
            Self::Settle(_) => write!(f, "Settle"),
            Self::Wake => write!(f, "Wake"),
            Self::End => write!(f, "End"),
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
        if let Err(unsent) = self.door.commands.send(Command::Admit(sequences))
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
        let _ = self.door.commands.send(Command::Cancel(id));
    }

    /// All members may share how these texts begin (instructions that everybody's programs send), and no others any more.
    pub fn share_beginnings(&self, beginnings: Vec<Vec<TokenId>>) {
        // Where the engine has ended there is nothing left to share.
        let _ = self.door.commands.send(Command::Share(beginnings));
    }

    /// Forgets what was kept for a member, everywhere: nothing of it is found again, and their key is destroyed. What
    /// members who trust each other have together goes too, because nobody can tell whose it is. Waits for a step and for the disk.
    /// Where it fails, asking again tries again.
    pub fn forget(&self, member: &MemberId) -> Result<(), ForgetError> {
        let owners = [Owner::Member(member.clone()), Owner::Trusting];
        let destroy_keys = || -> Result<(), ForgetError> {
            let Some(store) = &self.store else { return Ok(()) };
            // Every one, also where one of them fails.
            let done = owners.each_ref().map(|owner| store.forget(name(owner)));
            done.into_iter().collect()
        };
        // The key first: that needs nobody's help.
        let _ = destroy_keys();
        let (tell, done) = channel();
        // Where the engine has ended the device holds nothing.
        if self.door.commands.send(Command::Forget(member.clone(), tell)).is_ok() {
            let _ = done.recv();
        }
        // What was running until then may have kept something under a new key. A file that could not be destroyed before
        // is tried again.
        destroy_keys()
    }

    /// How the tiers beside the device fare, where there are any.
    pub fn kept(&self) -> Option<Counters> {
        self.store.as_ref().map(|store| store.counters())
    }

    /// Waits until what is kept is on disk, at most so long. Says whether it came to that.
    pub fn settle(&self, within: Duration) -> bool {
        let Some(store) = &self.store else { return true };
        let until = Instant::now() + within;
        let (tell, done) = channel();
        // Where the engine has ended it puts nothing more, and where it hangs neither; what it has put is still to be written.
        let late = self.door.commands.send(Command::Settle(tell)).is_ok()
            && done.recv_timeout(within / 2) == Err(RecvTimeoutError::Timeout);
        store.settle(until.saturating_duration_since(Instant::now())) && !late
    }

    /// Says that a sink which had no room has some again.
    pub fn wake(&self) {
        // Where the engine has ended there is nothing left to go on with.
        let _ = self.door.commands.send(Command::Wake);
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
    /// Steps that were submitted and not collected.
    in_flight: VecDeque<InFlight>,
    /// When the last one was collected.
    collected: Option<Instant>,
    batch: StepBatch,
    events: Vec<(RequestId, Event)>,
    masks: MaskThreads,
    mask_work: Vec<MaskWork>,
    keeper: Option<Keeper>,
    /// Who waits until all that is full was put.
    settling: Vec<Sender<()>>,
    /// Nothing can be run until a reader takes what is there for it, or a command comes.
    readers_stall: bool,
    /// Nothing can be run until a block comes back to the device, or is given up.
    restores_stall: bool,
    stats: Arc<Mutex<Stats>>,
    pulse: Arc<Mutex<Pulse>>,
}

/// A step that was submitted.
struct InFlight {
    ticket: Ticket,
    /// Its tokens, and how many of them are read from prompts.
    tokens: u32,
    read: u32,
    since: Instant,
}

/// What the engine waits for where no step can be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Nothing: there is something to do.
    Nothing,
    /// Blocks on their way, and commands before them.
    Carried,
    /// A command, or this moment.
    Until(Instant),
    /// A command.
    Command,
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
        while self.hear()? {
            self.bind_masks();
            // What came while a step ran was heard just now.
            self.carry(false)?;
            if let Some(keeper) = &mut self.keeper {
                keeper.give_up_late(&mut self.scheduler, Instant::now());
            }
            self.keep()?;
            if self.scheduler.is_idle() {
                continue;
            }
            let sinks = &mut self.sinks;
            self.scheduler.pause_where(|id| sinks.get_mut(&id).is_some_and(|s| !s.has_room()));
            let submitted = self.in_flight.len() <= self.steps_ahead
                && self.scheduler.plan_step(&mut self.batch);
            self.restore();
            if submitted {
                let tokens = self.batch.inputs.len() as u32;
                if self.in_flight.is_empty() {
                    lock(&self.pulse).begin(Instant::now(), tokens);
                }
                let read = |input: &&Input| matches!(input, Input::Host(_));
                let read = self.batch.inputs.iter().filter(read).count() as u32;
                let since = Instant::now();
                let ticket = self.backend.submit(&self.batch).map_err(SchedulerError::Backend)?;
                self.in_flight.push_back(InFlight { ticket, tokens, read, since });
                if self.in_flight.len() <= self.steps_ahead {
                    continue;
                }
            }
            let Some(step) = self.in_flight.pop_front() else {
                if self.masks.busy() {
                    self.take_masks(Instant::now() + LONGEST_WAIT, true);
                    continue;
                }
                if self.scheduler.stats().restoring > 0 {
                    self.restores_stall = true;
                    continue;
                }
                if self.scheduler.stats().paused == 0 {
                    return Err(SchedulerError::Stalled);
                }
                self.readers_stall = true;
                continue;
            };
            let output = self.backend.collect(step.ticket).map_err(SchedulerError::Backend)?;
            let now = Instant::now();
            {
                let mut pulse = lock(&self.pulse);
                if let Some(took) = pulse.end(now) {
                    self.scheduler.took(took);
                }
                if let Some(next) = self.in_flight.front() {
                    pulse.begin(now, next.tokens);
                }
            }
            if let Some(keeper) = &self.keeper {
                let since = self.collected.max(Some(step.since)).unwrap_or(step.since);
                keeper.stepped(step.tokens, step.read, now.saturating_duration_since(since));
            }
            if step.tokens > step.read {
                let since = self.collected.max(Some(step.since)).unwrap_or(step.since);
                self.scheduler.paced(now.saturating_duration_since(since), step.read > 0);
            }
            self.collected = Some(now);
            self.scheduler.take(output, &mut self.events)?;
            self.hand_out_masks();
            // Before its answer is heard: who asks after that must not see it still running.
            self.publish();
            self.tell();
            self.keep()?;
        }
        Ok(())
    }

    /// Puts what became full beside the device, before anybody else may write there.
    fn keep(&mut self) -> Result<(), SchedulerError> {
        if let Some(keeper) = &mut self.keeper {
            let aside = lock(&self.pulse).begin_aside(Instant::now());
            let put = keeper.put(&mut self.scheduler, &mut *self.backend);
            if aside {
                lock(&self.pulse).end_aside();
            }
            put.map_err(SchedulerError::Backend)?;
        }
        let putting = self.keeper.as_ref().is_some_and(Keeper::is_putting);
        if !self.scheduler.has_puts() && !putting {
            for tell in self.settling.drain(..) {
                // Whoever asked may have left.
                let _ = tell.send(());
            }
        }
        Ok(())
    }

    /// Takes what has gone out and come in beside steps; with `wait`, something at least, where anything is on its way.
    fn carry(&mut self, wait: bool) -> Result<(), SchedulerError> {
        if let Some(keeper) = &mut self.keeper {
            let aside = lock(&self.pulse).begin_aside(Instant::now());
            let carried = keeper.carry(&mut self.scheduler, &mut *self.backend, wait);
            if aside {
                lock(&self.pulse).end_aside();
            }
            carried.map_err(SchedulerError::Backend)?;
        }
        Ok(())
    }

    /// Has read what is to come back.
    fn restore(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.restore(&mut self.scheduler, Instant::now());
        }
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
    fn hear(&mut self) -> Result<bool, SchedulerError> {
        self.publish();
        let began = Instant::now();
        loop {
            let command = match self.wait_for() {
                Wait::Command => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.let_go(&self.scheduler);
                    }
                    self.inbox.recv().ok()
                }
                Wait::Until(late) => {
                    match self.inbox.recv_timeout(late.saturating_duration_since(Instant::now())) {
                        Ok(command) => Some(command),
                        Err(RecvTimeoutError::Timeout) => return Ok(true),
                        Err(RecvTimeoutError::Disconnected) => None,
                    }
                }
                wait @ (Wait::Carried | Wait::Nothing) => match self.inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(TryRecvError::Empty) => {
                        if wait == Wait::Carried {
                            self.carry(true)?;
                        }
                        return Ok(true);
                    }
                    Err(TryRecvError::Disconnected) => None,
                },
            };
            let Some(command) = command else { return Ok(false) };
            match command {
                Command::Admit(sequences) => self.admit(sequences),
                Command::Cancel(id) => self.cancel(id),
                Command::Share(beginnings) => self.scheduler.share_beginnings(&beginnings),
                Command::Came(came) => {
                    self.came(came)?;
                    // Others' answers must not stand still until all of somebody's blocks are back.
                    if began.elapsed() > CAME_FOR {
                        self.publish();
                        return Ok(true);
                    }
                }
                Command::Forget(member, done) => {
                    self.scheduler.forget(&member);
                    if let Some(keeper) = &mut self.keeper {
                        keeper.forget(&member);
                    }
                    self.publish();
                    // Whoever asked may have left.
                    let _ = done.send(());
                }
                Command::Settle(tell) => {
                    self.settling.push(tell);
                    return Ok(true);
                }
                Command::Wake => {}
                Command::End => return Ok(false),
            }
            self.publish();
        }
    }

    /// What there is to wait for before the next step can be planned.
    fn wait_for(&mut self) -> Wait {
        let readers_stall = std::mem::take(&mut self.readers_stall);
        let restores_stall = std::mem::take(&mut self.restores_stall);
        let idle = self.scheduler.is_idle() || readers_stall;
        if !idle && !restores_stall {
            return Wait::Nothing;
        }
        if self.keeper.as_ref().is_some_and(Keeper::is_carrying) {
            return Wait::Carried;
        }
        if self.scheduler.has_puts() {
            return match self.backend.export_room() {
                0 => Wait::Until(Instant::now() + ROOM_WAIT),
                _ => Wait::Nothing,
            };
        }
        if idle {
            return Wait::Command;
        }
        self.keeper.as_ref().and_then(Keeper::deadline).map_or(Wait::Nothing, Wait::Until)
    }

    fn came(&mut self, came: Came) -> Result<(), SchedulerError> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        let aside = lock(&self.pulse).begin_aside(Instant::now());
        let done = keeper.came(came, &mut self.scheduler, &mut *self.backend);
        if aside {
            lock(&self.pulse).end_aside();
        }
        done.map_err(SchedulerError::Backend)
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
