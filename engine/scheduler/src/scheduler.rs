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

mod masks;

use std::collections::VecDeque;
use std::time::Duration;

use polder_backend::{BlockId, Limits, Row, Slot, StepBatch, StepOutput, TokenId};

use crate::cost::Cost;
use crate::fair;
use crate::grammar::Masking;
use crate::pool::BlockPool;
use crate::pooling::{Pool, Pooling};
use crate::prefix::{NodeId, PrefixCache, Taker, Whose};
use crate::queue::{Before, Waiting, WaitingQueue};
use crate::request::{
    Claim, Event, FinishReason, MemberId, PromptLogprob, Refusal, Request, RequestId,
    SchedulerError,
};
use crate::sequence::{LOGIT_ROWS, RowOwner, Sequence, blocks_for};
use crate::share::{self, Accounts, Demand};

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
    /// So much work a member who comes back may be ahead of members who never went, before all get
    /// the same. A question that is shorter is read at once.
    pub credit: u32,
    /// Steps submitted before the one before them was read: 1 hides the host's time behind a
    /// device that runs by itself, 0 suits a back end that computes within `submit`.
    pub steps_ahead: u8,
    /// A step that runs so much longer than its tokens explain is taken for hung.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_waiting: 256,
            step_tokens: 512,
            cost: Cost::default(),
            credit: 4096,
            steps_ahead: 0,
            patience: Duration::from_secs(60),
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
    /// Who owns which output row, for each step in flight, oldest first.
    in_flight: VecDeque<Vec<RowOwner>>,
    spare_rows: Vec<Vec<RowOwner>>,
    accounts: Accounts,
    shares: Vec<Share>,
    stats: Stats,
}

/// Who gets blocks next: a running sequence that lost its own, or a member's next request.
#[derive(Debug)]
enum Next {
    Again(usize),
    New(MemberId),
}

/// One prompt's part of a step.
#[derive(Debug, Clone, Copy)]
struct Share {
    index: usize,
    /// Where its member stands among those who read.
    reader: usize,
    from: u32,
    /// Tokens that it could read, then those that it may.
    tokens: u32,
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
            shares: Vec::new(),
            stats: Stats::default(),
            limits,
        })
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

    /// All members may share how these tokens begin: nobody learns from the speed of an answer what was said by somebody.
    pub fn share_beginning(&mut self, tokens: &[TokenId]) {
        self.prefixes.register_common(tokens);
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
        self.plan_prompts(decoded, batch, &mut rows);
        self.keep_what_is_whole();
        if batch.inputs.is_empty() {
            self.spare_rows.push(rows);
            return false;
        }
        self.stats.steps += 1;
        self.in_flight.push_back(rows);
        true
    }

    /// Reads the answer to the oldest step in flight and appends what happened to `events`.
    pub fn take(
        &mut self,
        output: StepOutput,
        events: &mut Vec<(RequestId, Event)>,
    ) -> Result<(), SchedulerError> {
        let mut owners = self.in_flight.pop_front().ok_or(SchedulerError::NothingInFlight)?;
        let wrong = SchedulerError::WrongAnswer { expected: owners.len(), got: output.rows.len() };
        if owners.len() != output.rows.len() {
            return Err(wrong);
        }
        for (owner, row) in owners.iter().zip(output.rows) {
            let index = self.running.iter().position(|sequence| sequence.id == owner.id);
            match (row, owner.judges) {
                (Row::Hidden(state), None) if owner.hidden => {
                    if let Some(index) = index {
                        self.take_hidden(index, &state, events);
                    }
                }
                _ if owner.hidden => return Err(wrong),
                (Row::Sampled(token), None) => {
                    if let Some(index) = index {
                        self.take_token(index, token, events);
                    }
                }
                (Row::Logits(logits), Some(position)) => {
                    if let Some(index) = index {
                        self.take_logits(index, position, &logits, events)?;
                    }
                }
                (Row::Unusable, None) => {
                    if let Some(index) = index {
                        self.give_up(index, events);
                    }
                }
                _ => return Err(wrong),
            }
        }
        owners.clear();
        self.spare_rows.push(owners);
        Ok(())
    }

    fn take_token(
        &mut self,
        index: usize,
        token: polder_backend::SampledToken,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        let sequence = &mut self.running[index];
        let id = sequence.id;
        sequence.tokens.push(token.token);
        let sampled = sequence.sampled();
        let full = sampled == sequence.limit;
        self.stats.sampled_tokens += 1;
        let reason = if sequence.request.stop_tokens.contains(&token.token) {
            Some(FinishReason::Stop)
        } else {
            if let Some(masking) = &mut sequence.masking {
                masking.sampled(token.token);
            }
            events.push((id, Event::Token(token)));
            full.then_some(FinishReason::Length)
        };
        if let Some(reason) = reason {
            let cached = sequence.cached;
            events.push((id, Event::Finished { reason, sampled, cached }));
            self.release(index);
        }
    }

    fn take_logits(
        &mut self,
        index: usize,
        position: u32,
        logits: &[f32],
        events: &mut Vec<(RequestId, Event)>,
    ) -> Result<(), SchedulerError> {
        let sequence = &self.running[index];
        let id = sequence.id;
        let token = sequence.tokens[position as usize];
        let best = usize::from(sequence.request.prompt_logprobs.unwrap_or(0));
        let last = position + 1 == sequence.prompt_len();
        let ended = last && sequence.limit == 0;
        if logits.len() <= token.0 as usize {
            return Err(SchedulerError::WrongAnswer { expected: 1, got: 0 });
        }
        let Some(judged) = judge(token, logits, best) else {
            self.give_up(index, events);
            return Ok(());
        };
        match events.last_mut() {
            Some((other, Event::Prompt(list))) if *other == id => list.push(judged),
            _ => events.push((id, Event::Prompt(vec![judged]))),
        }
        if ended {
            let reason = FinishReason::Length;
            let cached = self.running[index].cached;
            events.push((id, Event::Finished { reason, sampled: 0, cached }));
            self.release(index);
        }
        Ok(())
    }

    fn take_hidden(&mut self, index: usize, state: &[f32], events: &mut Vec<(RequestId, Event)>) {
        let Sequence { id, pool: Some(pool), cached, .. } = &mut self.running[index] else {
            return;
        };
        let (id, cached) = (*id, *cached);
        if pool.take(state).is_none() {
            return self.give_up(index, events);
        }
        if let Some(vector) = pool.vector() {
            let reason = FinishReason::Length;
            events.push((id, Event::Vector(vector)));
            events.push((id, Event::Finished { reason, sampled: 0, cached }));
            self.release(index);
        }
    }

    /// Ends a sequence for which the model computed no distribution. Others go on: a broken
    /// weight may touch some tokens alone.
    fn give_up(&mut self, index: usize, events: &mut Vec<(RequestId, Event)>) {
        log::error!("the model computed NaN or infinity instead of probabilities; an answer ends");
        events.push((self.running[index].id, Event::Unusable));
        self.release(index);
    }

    /// Gives room to as many as fit.
    fn make_room_for_more(&mut self) {
        let mut held = Vec::new();
        while let Some(next) = self.next_for_room(&held) {
            let (mut chain, mut blocks) = (Vec::new(), Vec::new());
            let (request, tokens) = match &next {
                Next::Again(index) => {
                    let sequence = &self.running[*index];
                    (&sequence.request, sequence.tokens.as_slice())
                }
                Next::New(member) => {
                    let waiting = self.waiting.peek(member).expect("just seen there");
                    (&waiting.request, waiting.tokens())
                }
            };
            let need = blocks_for(tokens.len() as u32, self.limits.block_tokens);
            // The last token is read in any case: what follows it is asked for. So is a prompt that is judged, or
            // whose mean is wanted.
            let most = match (request.prompt_logprobs, request.pooling) {
                (None, None | Some(Pooling::Last)) => {
                    (tokens.len() - 1) / self.limits.block_tokens as usize
                }
                _ => 0,
            };
            let (member, claim) = (request.member.clone(), request.claim);
            let whose = whose(&member, claim);
            self.prefixes.find(whose, tokens, most, &mut chain, &mut blocks);
            if matches!(next, Next::New(_)) && self.is_being_read(whose, tokens, most, blocks.len())
            {
                self.prefixes.leave(&mut chain);
                held.push(member);
                continue;
            }
            let need = need - blocks.len();
            while !self.fits(need, whose) {
                let Some(victim) = fair::spare(&self.running, &member) else {
                    return self.prefixes.leave(&mut chain);
                };
                self.preempt(victim);
            }
            let taker = self.taker(whose);
            self.take_blocks(need, taker, &mut blocks);
            match next {
                Next::Again(index) => {
                    let sequence = &mut self.running[index];
                    sequence.fed = chain.len() as u32 * self.limits.block_tokens;
                    (sequence.blocks, sequence.chain) = (blocks, chain);
                }
                Next::New(member) => self.start(&member, blocks, chain),
            }
        }
    }

    /// Whether a running sequence of the member is just reading how these tokens begin, further than what is kept:
    /// several that begin alike and come together wait for the first of them.
    fn is_being_read(&self, by: Whose<'_>, tokens: &[TokenId], most: usize, kept: usize) -> bool {
        let block_tokens = self.limits.block_tokens as usize;
        self.running.iter().any(|sequence| {
            let prompt = &sequence.request.prompt;
            let reads = sequence.has_room()
                && !sequence.paused
                && sequence.fed < sequence.prompt_len()
                && sequence.request.prompt_logprobs.is_none();
            let alike = || prompt.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            let Request { member, claim, .. } = &sequence.request;
            reads && whose(member, *claim) == by && (alike() / block_tokens).min(most) > kept
        })
    }

    /// For whom kept blocks are taken: where no sequence goes on, somebody's must be the first.
    fn taker<'a>(&self, whose: Whose<'a>) -> Taker<'a> {
        self.running.iter().any(|sequence| sequence.has_room() && !sequence.paused).then_some(whose)
    }

    /// Takes free blocks, and kept ones that nobody uses where there are too few; false, and nothing taken, where there
    /// are too few of both.
    fn take_blocks(&mut self, count: usize, taker: Taker<'_>, to: &mut Vec<BlockId>) -> bool {
        if count > self.pool.available() + self.prefixes.idle_for(taker) {
            return false;
        }
        if let Some(missing) = count.checked_sub(self.pool.available()).filter(|m| *m > 0) {
            let mut given_up = Vec::with_capacity(missing);
            self.prefixes.evict(missing, taker, &mut given_up);
            self.stats.evictions += given_up.len() as u64;
            self.pool.give_back(&mut given_up);
        }
        self.pool.take(count, to)
    }

    /// Full blocks that the step writes are there for whoever begins alike from the next step on.
    fn keep_what_is_whole(&mut self) {
        let block_tokens = self.limits.block_tokens;
        for sequence in &mut self.running {
            while sequence.has_room() && sequence.chain.len() < sequence.whole_blocks(block_tokens)
            {
                let at = sequence.chain.len();
                let whose = whose(&sequence.request.member, sequence.request.claim);
                let (block, tokens) = (&mut sequence.blocks[at], &sequence.tokens);
                let kept = self.prefixes.keep(whose, &mut sequence.chain, tokens, *block);
                if kept != *block {
                    // It was there already, and says the same.
                    self.pool.give_back(&mut vec![std::mem::replace(block, kept)]);
                }
            }
        }
    }

    /// Takes a sequence's blocks away: those that are kept stay where they are.
    fn free_blocks(&mut self, index: usize) {
        let Sequence { blocks, chain, .. } = &mut self.running[index];
        self.pool.give_back(&mut blocks.split_off(chain.len().min(blocks.len())));
        blocks.clear();
        self.prefixes.leave(chain);
    }

    /// Members with the fewest sequences that have room, for their weight, come first; of one member's, those that
    /// lost theirs. New requests of members who are `held` wait for what is being read.
    fn next_for_room(&self, held: &[MemberId]) -> Option<Next> {
        let room = |request: &Request| {
            fair::weighed(fair::with_room(&self.running, &request.member), request.claim)
        };
        let again = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, sequence)| !sequence.has_room() && !sequence.paused && !sequence.leaving)
            .map(|(index, sequence)| (room(&sequence.request), index))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let free = self.free_slots.len();
        let rank = |waiting: &Waiting| {
            let Request { member, claim, .. } = &waiting.request;
            let running = fair::running(&self.running, member);
            let may = !held.contains(member) && fair::may_start(running, free, *claim);
            may.then(|| fair::weighed(running, *claim))
        };
        let new = self.waiting.next(rank);
        let new_room = new.and_then(|m| self.waiting.peek(m)).map(|w| room(&w.request));
        match (again, new, new_room) {
            (Some((least, _)), Some(member), Some(room)) if room < least => {
                Some(Next::New(member.clone()))
            }
            (Some((_, index)), ..) => Some(Next::Again(index)),
            (None, new, _) => new.cloned().map(Next::New),
        }
    }

    /// Members who run nothing get slots of members who run several, as soon as what was planned for
    /// those is read back.
    fn give_up_slots(&mut self) {
        let without = self.waiting.members().filter(|m| fair::running(&self.running, m) == 0);
        let leaving = self.running.iter().filter(|sequence| sequence.leaving).count();
        let missing = without.count().saturating_sub(self.free_slots.len() + leaving);
        for _ in 0..missing {
            let Some(index) = fair::leaver(&self.running) else { break };
            self.running[index].leaving = true;
        }
        for index in (0..self.running.len()).rev() {
            if self.running[index].leaving && self.running[index].may_leave() {
                self.send_back(index);
            }
        }
    }

    /// A sequence waits again, with what it has said; its blocks stay for it as long as nobody needs them.
    fn send_back(&mut self, index: usize) {
        let Sequence { id, request, tokens, cached, masking, .. } = self.release(index);
        self.stats.slots_given_up += 1;
        let before = Some(Before { tokens, cached, masking });
        self.waiting.push_again(Waiting { id, request, before });
    }

    /// Whether so many blocks may be given out. One for each sequence that has room stays free, so
    /// that a newcomer is not thrown out again by the next few decoded tokens.
    fn fits(&self, need: usize, whose: Whose<'_>) -> bool {
        let spare = self.running.iter().filter(|sequence| sequence.has_room()).count();
        need + spare <= self.pool.available() + self.prefixes.idle_for(self.taker(whose))
    }

    fn start(&mut self, member: &MemberId, blocks: Vec<BlockId>, chain: Vec<NodeId>) {
        let Waiting { id, request, before } = self.waiting.pop(member).expect("just seen there");
        let slot = self.free_slots.pop().expect("just seen free");
        let room = self.capacity() - request.prompt.len() as u32;
        let fed = chain.len() as u32 * self.limits.block_tokens;
        if before.is_none() {
            self.stats.asked_tokens += request.prompt.len() as u64;
            self.stats.cached_tokens += u64::from(fed);
        }
        let Before { tokens, cached, masking } = before.unwrap_or_else(|| Before {
            tokens: request.prompt.clone(),
            cached: fed,
            masking: request.grammar.clone().map(Masking::new),
        });
        self.running.push(Sequence {
            id,
            slot,
            fresh: true,
            planned: (tokens.len() - request.prompt.len()) as u32,
            tokens,
            blocks,
            chain,
            cached,
            paused: false,
            fed,
            limit: if request.pooling.is_some() { 0 } else { request.max_tokens.min(room) },
            logits_planned: 0,
            leaving: false,
            masking,
            pool: request.pooling.map(|pooling| Pool::new(pooling, request.prompt.len() as u32)),
            request,
        });
    }

    /// Plans one token for every sequence that is past its prompt, and says how much work that is.
    fn plan_decodes(&mut self, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) -> f64 {
        let held = self.whose_answers_stand_still();
        let goes_on = |sequence: &Sequence| {
            sequence.wants_token() && !held.contains(&sequence.request.member)
        };
        // All of them get their blocks before the first one is planned: whoever gives some up must
        // not be in the step already.
        for index in 0..self.running.len() {
            if goes_on(&self.running[index]) {
                self.extend(index);
            }
        }
        let mut work = 0.0;
        for sequence in &mut self.running {
            if goes_on(sequence) {
                let own = self.config.cost.decode(sequence.fed);
                let Request { member, claim, .. } = &sequence.request;
                self.accounts.spend(member, own, claim.weight);
                work += own;
                sequence.plan(1, self.limits.block_tokens, batch, rows);
            }
        }
        work
    }

    /// Members with long histories whose answers wait a moment for somebody who is behind and reads.
    fn whose_answers_stand_still(&mut self) -> Vec<MemberId> {
        let readers = self.running.iter().filter(|sequence| sequence.wants_to_read());
        let least = readers
            .map(|sequence| self.accounts.used(&sequence.request.member))
            .fold(f64::INFINITY, f64::min);
        if least == f64::INFINITY || self.config.cost.decode_slope == 0.0 {
            return Vec::new();
        }
        let mut work: Vec<(&MemberId, f64)> = Vec::new();
        for sequence in self.running.iter().filter(|sequence| sequence.wants_token()) {
            let member = &sequence.request.member;
            let own = self.config.cost.decode(sequence.fed);
            match work.iter_mut().find(|(other, _)| *other == member) {
                Some((_, sum)) => *sum += own,
                None => work.push((member, own)),
            }
        }
        let step = self.config.step_tokens.into();
        let held = work.into_iter().filter(|(m, work)| self.accounts.holds(m, *work, step, least));
        held.map(|(member, _)| member.clone()).collect()
    }

    /// Plans what is read, beside `decoded` work.
    fn plan_prompts(&mut self, decoded: f64, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) {
        let mut shares = std::mem::take(&mut self.shares);
        shares.clear();
        let mut readers: Vec<(&MemberId, Demand)> = Vec::new();
        for (index, sequence) in self.running.iter().enumerate() {
            if !sequence.wants_to_read() {
                continue;
            }
            let Request { member, claim, .. } = &sequence.request;
            let reader = readers.iter().position(|(other, _)| *other == member);
            let reader = reader.unwrap_or_else(|| {
                let used = self.accounts.used(member);
                readers.push((member, Demand { used, weight: claim.weight, need: 0.0, gets: 0.0 }));
                readers.len() - 1
            });
            shares.push(Share { index, reader, from: sequence.fed, tokens: sequence.readable() });
        }
        // Oldest first, so that the rows of one step stay few however many prompts are judged.
        let mut logit_rows = LOGIT_ROWS;
        for share in &mut shares {
            if self.running[share.index].wants_logits() {
                share.tokens = share.tokens.min(logit_rows);
                logit_rows -= share.tokens;
            }
        }
        shares.retain(|share| share.tokens > 0);
        let Config { step_tokens, cost, .. } = self.config;
        let mut demands: Vec<Demand> = readers.into_iter().map(|(_, demand)| demand).collect();
        for share in &shares {
            demands[share.reader].need += cost.read(share.from, share.tokens);
        }
        // Long histories make decoding take most of a step; reading goes on beside it.
        let whole = f64::from(step_tokens);
        share::fill(&mut demands, (whole - decoded).max(whole / 4.0));
        share_out(&mut shares, &demands, cost, step_tokens - batch.inputs.len() as u32);
        for share in &shares {
            if share.tokens > 0 {
                let sequence = &mut self.running[share.index];
                let Request { member, claim, .. } = &sequence.request;
                self.accounts.spend(member, cost.read(share.from, share.tokens), claim.weight);
                sequence.plan(share.tokens, self.limits.block_tokens, batch, rows);
                self.stats.prompt_tokens += u64::from(share.tokens);
            }
        }
        self.shares = shares;
    }

    /// Makes sure that the sequence owns the block of its next position, at the cost of others or,
    /// where it is the one to give up its blocks, not at all.
    fn extend(&mut self, index: usize) {
        let need = blocks_for(self.running[index].fed + 1, self.limits.block_tokens);
        let missing = need - self.running[index].blocks.len();
        if missing == 0 {
            return;
        }
        let Request { member, claim, .. } = &self.running[index].request;
        let (member, claim) = (member.clone(), *claim);
        loop {
            if self.extend_by(missing, index, Some(whose(&member, claim))) {
                return;
            }
            let victim = fair::victim(&self.running).expect("a sequence that decodes owns blocks");
            let alone = self.running.iter().filter(|sequence| sequence.has_room()).count() == 1;
            if victim == index && alone && self.extend_by(missing, index, None) {
                return;
            }
            self.preempt(victim);
            if victim == index {
                return;
            }
        }
    }

    fn extend_by(&mut self, missing: usize, index: usize, taker: Taker<'_>) -> bool {
        let mut blocks = std::mem::take(&mut self.running[index].blocks);
        let there = self.take_blocks(missing, taker, &mut blocks);
        self.running[index].blocks = blocks;
        there
    }

    fn preempt(&mut self, index: usize) {
        self.free_blocks(index);
        self.running[index].fed = 0;
        self.stats.preemptions += 1;
    }

    fn release(&mut self, index: usize) -> Sequence {
        self.free_blocks(index);
        let sequence = self.running.remove(index);
        self.free_slots.push(sequence.slot);
        sequence
    }
}

fn whose(member: &MemberId, claim: Claim) -> Whose<'_> {
    if claim.trusting { Whose::Trusting } else { Whose::Member(member) }
}

fn capacity(limits: &Limits) -> u32 {
    limits.context.min(limits.blocks.saturating_mul(limits.block_tokens))
}

/// Cuts every share down to what its member gets. Of one member's prompts the oldest gets half, so that one after the
/// other is done, and the others share the rest, so that a short one is done at once; what a short one does not need
/// goes to the others. What is less than a token goes to the next member; where it is nobody's whole token, the first
/// one is read all the same. The order of the shares is kept.
fn share_out(shares: &mut [Share], demands: &[Demand], cost: Cost, mut most: u32) {
    let need = |share: &Share| cost.read(share.from, share.tokens);
    shares.sort_by(|a, b| {
        (a.reader.cmp(&b.reader)).then(need(a).total_cmp(&need(b))).then(a.index.cmp(&b.index))
    });
    let mut work = 0.0;
    for prompts in shares.chunk_by_mut(|a, b| a.reader == b.reader) {
        work += demands[prompts[0].reader].gets;
        let oldest = prompts.iter().map(|share| share.index).min();
        let (first, mut rest): (Vec<_>, Vec<_>) =
            prompts.iter_mut().partition(|share| Some(share.index) == oldest);
        let kept = first.iter().map(|share| need(share).min(work / 2.0)).sum::<f64>();
        let mut left = rest.len() as f64;
        let mut read = |share: &mut Share, work: f64| {
            share.tokens = share.tokens.min(cost.readable(share.from, work)).min(most);
            most -= share.tokens;
            cost.read(share.from, share.tokens)
        };
        for share in &mut rest {
            work -= read(share, (work - kept) / left);
            left -= 1.0;
        }
        for share in first {
            work -= read(share, work);
        }
    }
    let nothing = shares.iter().all(|share| share.tokens == 0);
    let behind = |share: &&mut Share| {
        let demand = &demands[share.reader];
        (demand.used, share.index)
    };
    let first = shares
        .iter_mut()
        .min_by(|a, b| behind(a).0.total_cmp(&behind(b).0).then(behind(a).1.cmp(&behind(b).1)));
    if let Some(first) = first.filter(|_| nothing && most > 0) {
        first.tokens = 1;
    }
    shares.sort_unstable_by_key(|share| share.index);
}

/// `log softmax` of one row, read at `token` and at its `best` best places. None where the row
/// does not have the token or is not a distribution.
fn judge(token: TokenId, logits: &[f32], best: usize) -> Option<PromptLogprob> {
    let own = *logits.get(token.0 as usize)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(best + 1);
    for (index, &logit) in logits.iter().enumerate() {
        if best == 0 || (top.len() == best && top.last().is_some_and(|(_, last)| *last >= logit)) {
            continue;
        }
        let at = top.partition_point(|(_, other)| *other >= logit);
        top.insert(at, (TokenId(index as u32), logit));
        top.truncate(best);
    }
    for (_, logit) in &mut top {
        *logit = logprob(*logit);
    }
    Some(PromptLogprob { token, logprob: logprob(own), top })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many tokens of these prompts of one member are read for so much work.
    fn shared(tokens: &[u32], work: f64, cost: Cost, most: u32) -> Vec<u32> {
        let of = |(index, tokens)| Share { index, reader: 0, from: 0, tokens };
        let mut shares: Vec<Share> = tokens.iter().copied().enumerate().map(of).collect();
        let demand = Demand { used: 0.0, weight: 1, need: 1e9, gets: work };
        share_out(&mut shares, &[demand], cost, most);
        shares.iter().map(|share| share.tokens).collect()
    }

    #[test]
    fn a_short_prompt_is_read_at_once_beside_a_very_long_one() {
        assert_eq!(shared(&[10_000, 20], 100.0, Cost::default(), 512), [80, 20]);
        assert_eq!(shared(&[9_000, 9_000, 9_000], 100.0, Cost::default(), 512), [50, 25, 25]);
        assert_eq!(shared(&[20, 9_000, 9_000], 101.0, Cost::default(), 512), [20, 40, 41]);
        assert_eq!(shared(&[9_000, 9_000], 100.0, Cost::default(), 70), [20, 50]);
    }

    #[test]
    fn work_for_less_than_a_token_still_reads_one() {
        assert_eq!(shared(&[5, 5], 1.0, Cost::default(), 9).iter().sum::<u32>(), 1);
        assert_eq!(shared(&[5, 5], 0.4, Cost::default(), 9).iter().sum::<u32>(), 1);
        assert_eq!(shared(&[5, 5], 0.4, Cost::default(), 0), [0, 0]);
    }

    #[test]
    fn what_a_member_leaves_over_goes_to_the_next() {
        let demand = |gets| Demand { used: 0.0, weight: 1, need: 1e9, gets };
        let share = |index, reader| Share { index, reader, from: 0, tokens: 900 };
        let mut shares = [share(0, 1), share(1, 0)];
        share_out(&mut shares, &[demand(10.5), demand(10.5)], Cost::default(), 512);
        assert_eq!((shares[1].tokens, shares[0].tokens), (10, 11));
    }

    #[test]
    fn the_judgement_of_a_prompt_token_is_its_log_softmax() {
        let judged = judge(TokenId(1), &[0.0, (3.0f32).ln(), f32::NEG_INFINITY], 2).unwrap();
        assert!((judged.logprob - 0.75f32.ln()).abs() < 1e-6);
        assert_eq!(judged.top[0].0, TokenId(1));
        assert_eq!(judged.top[1].0, TokenId(0));
        assert!((judged.top[1].1 - 0.25f32.ln()).abs() < 1e-6);
        assert!(judge(TokenId(9), &[0.0], 1).is_none());
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(judge(TokenId(0), &[0.0, bad], 1).is_none());
        }
        assert!(judge(TokenId(0), &[f32::NEG_INFINITY], 1).is_none());
    }
}
