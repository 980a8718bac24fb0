//! The loop of the engine's thread, one call at a time.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use polder_backend::{Backend, Limits, StepBatch, Ticket, TokenId};
use polder_scheduler::fake::FakeBackend;
use polder_scheduler::{Config, Event, FinishReason, MaskWork, Request, RequestId, Scheduler};

use super::beside::Beside;

/// The loop of the engine's thread, one call at a time.
pub struct Bench {
    pub scheduler: Scheduler,
    pub backend: FakeBackend,
    pub in_flight: VecDeque<Ticket>,
    pub ahead: usize,
    pub batch: StepBatch,
    pub said: BTreeMap<RequestId, Vec<Event>>,
    /// Whose readers take nothing.
    pub paused: BTreeSet<RequestId>,
    /// Masks that are being computed, and how many turns each takes.
    pub masks: VecDeque<MaskWork>,
    pub mask_turns: usize,
    pub turns: usize,
    /// The tiers beside the device, if there are any.
    pub beside: Option<Beside>,
    /// Milliseconds of a step and of each token in it, where there is a clock.
    pub clock: Option<(u64, u64)>,
}

impl Bench {
    pub fn new(limits: Limits, config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(limits, config).unwrap(),
            backend: FakeBackend::new(limits),
            in_flight: VecDeque::new(),
            ahead: config.steps_ahead.into(),
            batch: StepBatch::default(),
            said: BTreeMap::new(),
            paused: BTreeSet::new(),
            masks: VecDeque::new(),
            mask_turns: 0,
            turns: 0,
            beside: None,
            clock: None,
        }
    }

    /// With tiers beside the device, where reads come as the seed says; smoothly with 0.
    pub fn beside(limits: Limits, config: Config, seed: u64) -> Self {
        let mut bench = Self::new(limits, config);
        // On a device blocks take a while to go out and to come in.
        if !seed.is_multiple_of(4) {
            bench.backend = bench.backend.late((seed % 4) as u32 - 1);
        }
        let (beside, scheduler) = Beside::new(bench.scheduler, limits.block_tokens, seed);
        Self { scheduler, beside: Some(beside), ..bench }
    }

    /// Everything on the device is as after a start.
    pub fn restart(&mut self, limits: Limits, config: Config) {
        let next = Self::beside(limits, config, 0);
        let mut beside = next.beside.unwrap();
        beside.take_over(self.beside.as_ref().unwrap());
        (self.scheduler, self.backend) = (next.scheduler, next.backend);
        self.beside = Some(beside);
    }

    pub fn keep(&mut self) {
        if let Some(beside) = &mut self.beside {
            beside.put(&mut self.scheduler, &mut self.backend);
        }
    }

    /// Puts all that is left to be put, as an engine does that has nothing else to do.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            let putting = self.beside.as_ref().is_some_and(Beside::is_putting);
            if !self.scheduler.has_puts() && !putting {
                return;
            }
            self.keep();
        }
        panic!("it puts for ever");
    }

    /// Submits what can be submitted and reads one step; false when there was nothing to do.
    pub fn turn(&mut self) -> bool {
        while self.in_flight.len() <= self.ahead {
            self.scheduler.pause_where(|id| self.paused.contains(&id));
            self.keep();
            if !self.scheduler.plan_step(&mut self.batch) {
                break;
            }
            self.in_flight.push_back(self.backend.submit(&self.batch).unwrap());
        }
        let waited = self.scheduler.stats().restoring;
        if let Some(beside) = &mut self.beside {
            beside.restore(&mut self.scheduler, &mut self.backend);
        }
        let came = waited > 0;
        let restoring = self.scheduler.stats().restoring;
        let busy = self.beside.as_ref().is_some_and(Beside::busy);
        assert!(restoring == 0 || busy, "something waits for blocks that nobody reads");
        let mut events = Vec::new();
        let ticket = self.in_flight.pop_front();
        let tokens = self.batch.inputs.len() as u64;
        let stalled = ticket.is_none() && self.masks.is_empty() && !busy && !came;
        if let Some(ticket) = ticket {
            let output = self.backend.collect(ticket).unwrap();
            if let Some((step, each)) = self.clock {
                self.scheduler.took(Duration::from_millis(step + each * tokens));
            }
            self.scheduler.take(output, &mut events).unwrap();
        }
        self.turns += 1;
        let mut work = Vec::new();
        self.scheduler.mask_work(&mut work);
        self.masks.extend(work);
        // The last comer first, now and then: they come back in any order.
        while self.masks.len() > self.mask_turns
            || (!self.masks.is_empty()
                && (ticket.is_none() || self.turns.is_multiple_of(self.mask_turns + 1)))
        {
            let work = self.masks.pop_back().unwrap();
            self.scheduler.take_mask(work.run(), &mut events);
        }
        for (id, event) in events {
            self.said.entry(id).or_default().push(event);
        }
        self.keep();
        !stalled
    }

    pub fn tokens_of(&self, id: RequestId) -> Vec<TokenId> {
        let events = self.said.get(&id).map(Vec::as_slice).unwrap_or_default();
        events
            .iter()
            .filter_map(|event| match event {
                Event::Token(token) => Some(token.token),
                _ => None,
            })
            .collect()
    }

    /// How much of its prompt did not have to be read, if it has begun.
    pub fn known_of(&self, id: RequestId) -> Option<u32> {
        let mut events = self.said.get(&id)?.iter();
        let Some(Event::Begun { cached }) = events.next() else {
            panic!("something was said before it had begun");
        };
        assert!(!events.any(|event| matches!(event, Event::Begun { .. })), "it begins once");
        Some(*cached)
    }

    pub fn end_of(&self, id: RequestId) -> Option<(FinishReason, u32)> {
        match self.said.get(&id)?.last()? {
            Event::Finished { reason, sampled } => Some((*reason, *sampled)),
            _ => None,
        }
    }
}

/// Runs one request to its end: what it said, and how much of its prompt did not have to be read.
pub fn run(bench: &mut Bench, id: u64, request: Request) -> (Vec<TokenId>, u32) {
    let id = RequestId(id);
    bench.scheduler.admit(vec![(id, request)]).unwrap();
    while bench.turn() {}
    bench.settle();
    assert!(bench.end_of(id).is_some());
    (bench.tokens_of(id), bench.known_of(id).unwrap())
}

/// No case of a property takes nearly as long.
const HANGS: Duration = Duration::from_secs(60);

/// As long as it is held, and no longer, this case may run: one that hangs says what it was and ends the tests.
pub struct Watch(
    #[allow(dead_code, reason = "dropping it is what the other end hears")] Sender<()>,
);

pub fn watch(case: String) -> Watch {
    let (alive, ended) = channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            // Not through `eprintln`, whose text would be kept for a test that never ends.
            let told = format!("this case hangs: {case}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
            std::process::abort();
        }
    });
    Watch(alive)
}
