//! The decision: which tokens of which sequences make up the next step.
//!
//! Decode comes first, one token for every sequence that is past its prompt; what is left of the
//! step's work goes to the members whose prompts are still being read, whoever had least first
//! (`share.rs`), and of one member's prompts short ones are first to finish. Blocks are taken when they are needed. Where none is left, the sequence that came
//! last, of the member with the most of them, gives its blocks up, keeps its slot (and with it its penalty history), and reads its
//! tokens again once there is room: nothing that was sampled is lost. A slot is given up in the same
//! way, for a member who has none.
//!
//! Steps run in the order in which they were submitted. That is why a sequence's blocks and
//! slot are free again the moment it ends, although a step that still mentions it may be in
//! flight: whoever gets them writes later.

mod answers;
mod drafts;
mod masks;
mod puts;
mod restore;
mod room;
mod step;

use std::collections::VecDeque;
use std::time::Duration;

use polder_backend::{Limits, Slot, StepBatch, TokenId};

use crate::cost::Cost;
use crate::drafting::StepTimes;
use crate::fair;
use crate::pace::Pace;
use crate::pool::BlockPool;
use crate::prefix::PrefixCache;
use crate::queue::WaitingQueue;
use crate::request::{Refusal, Request, RequestId, SchedulerError};
use crate::sequence::{RowOwner, Sequence};
use crate::share::Accounts;
use crate::tiers::{RestoreWork, Tiers};

use puts::Puts;
use step::Share;

/// What the scheduler may do; the back end's [`Limits`] cap all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Most requests that wait for a slot.
    pub max_waiting: usize,
    /// Most tokens in one step. Smaller keeps running streams smooth while a long prompt is
    /// read; larger reads prompts faster.
    pub step_tokens: u32,
    /// What a token costs, so that a step with long histories takes no longer than one without: its
    /// work is at most that of `step_tokens` tokens at the start of a text, beside what is decoded.
    pub cost: Cost,
    /// A step that reads prompts beside answers should take no longer than this: less is read where it does. Without it,
    /// `step_tokens` alone bounds what is read.
    pub gap: Option<Duration>,
    /// So much work a member who comes back may be ahead of members who never went, before all get
    /// the same. A question that is shorter is read at once.
    pub credit: u32,
    /// Steps submitted before the one before them was read: 1 hides the host's time behind a
    /// device that runs by itself, 0 suits a back end that computes within `submit`.
    pub steps_ahead: u8,
    /// Most guesses at one sequence's next tokens in a step, where its text repeats itself and where that pays; 0 never
    /// guesses. Answers are the same.
    pub draft_tokens: u32,
    /// A step that runs so much longer than its tokens explain is taken for hung.
    pub patience: Duration,
    /// What one token of a step may take while no step has been seen.
    pub first_pace: Duration,
    /// Longest that no kept block comes back to the device while some are waited for; then their tokens are read.
    pub restore_patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_waiting: 256,
            step_tokens: 512,
            cost: Cost::default(),
            gap: None,
            credit: 4096,
            steps_ahead: 0,
            draft_tokens: 16,
            patience: Duration::from_secs(60),
            // A large model on a slow processor.
            first_pace: Duration::from_secs(1),
            restore_patience: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// Most requests of one member that may wait.
    pub fn most_of_one(&self) -> usize {
        fair::most_waiting(self.max_waiting)
    }
}

/// Counts since the start, and how things stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in a slot.
    pub running: usize,
    /// Of those, how many wait for their readers.
    pub paused: usize,
    /// Requests without a slot.
    pub waiting: usize,
    /// KV blocks that sequences own.
    pub blocks_used: usize,
    /// KV blocks in all.
    pub blocks_total: usize,
    /// Steps planned.
    pub steps: u64,
    /// Prompt tokens fed (again, where a sequence had to give up its blocks).
    pub prompt_tokens: u64,
    /// Tokens sampled for sequences that were still wanted.
    pub sampled_tokens: u64,
    /// Times a sequence gave up its blocks for another.
    pub preemptions: u64,
    /// Times a sequence gave up its slot for a member who had none.
    pub slots_given_up: u64,
    /// KV blocks that are kept for whoever begins alike, and that nobody uses.
    pub blocks_kept: usize,
    /// Prompt tokens of requests that were started, read or not.
    pub asked_tokens: u64,
    /// Of those, how many did not have to be read.
    pub cached_tokens: u64,
    /// Kept blocks that were given up for others.
    pub evictions: u64,
    /// Of the running, those whose beginning is on its way back to the device.
    pub restoring: usize,
    /// Prompt tokens that the device did not have and that were looked for in the tiers beside it.
    pub looked_up_tokens: u64,
    /// Of those, how many came back and did not have to be read.
    pub restored_tokens: u64,
    /// Times that a sequence's next tokens were guessed.
    pub drafts: u64,
    /// The tokens guessed.
    pub draft_tokens: u64,
    /// Of those, how many were right and saved a step.
    pub accepted_tokens: u64,
}

/// A step that was submitted and not read back.
#[derive(Debug, Default)]
struct InFlight {
    /// Who owns which output row.
    rows: Vec<RowOwner>,
    /// Sequences that go on by a token, and guesses; None where prompts are read too.
    answers: Option<(usize, usize)>,
}

/// All sequences, waiting and running.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    config: Config,
    waiting: WaitingQueue,
    /// In the order of admission, oldest first.
    running: Vec<Sequence>,
    free_slots: Vec<Slot>,
    pool: BlockPool,
    prefixes: PrefixCache,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    spare_rows: Vec<Vec<RowOwner>>,
    accounts: Accounts,
    pace: Pace,
    shares: Vec<Share>,
    /// Where blocks are kept beside the device.
    tiers: Option<Box<dyn Tiers>>,
    /// What is to be carried out for them.
    puts: Puts,
    restores: Vec<RestoreWork>,
    last_restore: u64,
    /// Who has to wait for room, where somebody has.
    stuck: Option<room::Stuck>,
    step_times: StepTimes,
    stats: Stats,
}

impl Scheduler {
    /// Nothing waiting, nothing running.
    pub fn new(mut limits: Limits, config: Config) -> Result<Self, SchedulerError> {
        for (what, count) in [
            ("step tokens", limits.step_tokens),
            ("slots", u32::from(limits.slots)),
            ("KV blocks", limits.blocks),
            ("positions in a KV block", limits.block_tokens),
        ] {
            if count == 0 {
                return Err(SchedulerError::NoRoom { what });
            }
        }
        // Every running sequence must be able to decode in every step.
        limits.slots = limits.slots.min(u16::try_from(limits.step_tokens).unwrap_or(u16::MAX));
        let step_tokens =
            config.step_tokens.clamp(u32::from(limits.slots), limits.step_tokens.max(1));
        Ok(Self {
            config: Config { step_tokens, ..config },
            waiting: WaitingQueue::default(),
            running: Vec::with_capacity(limits.slots.into()),
            free_slots: (0..limits.slots).rev().map(Slot).collect(),
            pool: BlockPool::new(limits.blocks),
            prefixes: PrefixCache::new(limits.block_tokens),
            in_flight: VecDeque::new(),
            spare_rows: Vec::new(),
            accounts: Accounts::new(config.credit.into()),
            pace: Pace::new(config.gap),
            shares: Vec::new(),
            tiers: None,
            puts: Puts::default(),
            restores: Vec::new(),
            last_restore: 0,
            stuck: None,
            step_times: StepTimes::default(),
            stats: Stats::default(),
            limits,
        })
    }

    /// A step that went on with answers took so long; whether it read prompts as well.
    pub fn paced(&mut self, took: Duration, read: bool) {
        match read {
            true => self.pace.saw(took),
            false => self.pace.saw_answers(took),
        }
    }

    /// Most tokens of one sequence, prompt and answer together.
    pub fn capacity(&self) -> u32 {
        capacity(&self.limits)
    }

    /// What it was configured with, after the back end's limits.
    pub fn config(&self) -> Config {
        self.config
    }

    /// How things stand.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            paused: self.running.iter().filter(|sequence| sequence.paused).count(),
            restoring: self.running.iter().filter(|s| s.restoring.is_some()).count(),
            waiting: self.waiting.len(),
            blocks_used: self.pool.used() - self.prefixes.idle(),
            blocks_kept: self.prefixes.idle(),
            blocks_total: self.pool.total(),
            ..self.stats
        }
    }

    /// Nothing waits, runs or is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.len() == 0 && self.running.is_empty() && self.in_flight.is_empty()
    }

    /// Whether a request could be taken, were there room in the queue.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        if request.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if request.max_tokens == 0
            && request.pooling.is_none()
            && (request.prompt_logprobs.is_none() || request.prompt.len() == 1)
        {
            return Err(Refusal::NothingAsked);
        }
        let capacity = self.capacity();
        let answer = usize::from(request.max_tokens > 0 && request.pooling.is_none());
        if request.prompt.len().saturating_add(answer) > capacity as usize {
            return Err(Refusal::TooLong { prompt: request.prompt.len(), capacity });
        }
        match request.prompt.iter().find(|token| token.0 >= self.limits.vocab) {
            Some(token) => Err(Refusal::UnknownToken { token: token.0, vocab: self.limits.vocab }),
            None => Ok(()),
        }
    }

    /// Takes requests into the queue, all of them or none.
    pub fn admit(&mut self, requests: Vec<(RequestId, Request)>) -> Result<(), Refusal> {
        let waiting = self.waiting.newcomers();
        let free = self.config.max_waiting.saturating_sub(waiting);
        let Some(left) = free.checked_sub(requests.len()) else {
            return Err(Refusal::QueueFull { waiting });
        };
        for (_, Request { member, .. }) in &requests {
            let waiting = self.waiting.newcomers_of(member);
            let new = requests.iter().filter(|(_, other)| other.member == *member).count();
            if !fair::may_wait(waiting + new, left) {
                return Err(Refusal::ShareFull { waiting });
            }
        }
        for (_, request) in &requests {
            self.check(request)?;
        }
        for (id, request) in requests {
            self.waiting.push(id, request);
        }
        Ok(())
    }

    /// All members may share how these texts begin, and no others any more: nobody learns from the speed of an answer what
    /// was said by somebody.
    pub fn share_beginnings(&mut self, beginnings: &[Vec<TokenId>]) {
        self.prefixes.set_common(beginnings);
    }

    /// Forgets a sequence; its blocks and slot are free at once. False where it is unknown.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        match self.running.iter().position(|sequence| sequence.id == id) {
            Some(index) => {
                self.release(index);
                true
            }
            None => self.waiting.remove(id),
        }
    }

    /// Pauses the running sequences whose readers have no room, and lets the others go on. A paused
    /// one keeps its slot, and its blocks until somebody else needs them.
    pub fn pause_where(&mut self, mut full: impl FnMut(RequestId) -> bool) {
        for sequence in &mut self.running {
            sequence.paused = full(sequence.id);
        }
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> &WaitingQueue {
        &self.waiting
    }

    #[cfg(test)]
    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Fills `batch` with the next step; false, and an empty batch, where there is nothing to
    /// run until a step in flight is taken or a request comes.
    pub fn plan_step(&mut self, batch: &mut StepBatch) -> bool {
        batch.clear();
        let mut rows = self.spare_rows.pop().unwrap_or_default();
        self.prefixes.tick();
        self.give_up_slots();
        self.make_room_for_more();
        let active = self.running.iter().filter(|sequence| !sequence.paused);
        self.accounts.settle(active.map(|sequence| &sequence.request.member));
        let decoded = self.plan_decodes(batch, &mut rows);
        let answers = (batch.sequences.len(), batch.inputs.len() - batch.sequences.len());
        self.plan_prompts(decoded, batch, &mut rows);
        self.keep_what_is_whole();
        if batch.inputs.is_empty() {
            self.spare_rows.push(rows);
            return false;
        }
        self.stats.steps += 1;
        let answers = (batch.inputs.len() == answers.0 + answers.1).then_some(answers);
        self.in_flight.push_back(InFlight { rows, answers });
        true
    }
}

fn capacity(limits: &Limits) -> u32 {
    limits.context.min(limits.blocks.saturating_mul(limits.block_tokens))
}
