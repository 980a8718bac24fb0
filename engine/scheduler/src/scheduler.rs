//! The decision: which tokens of which sequences make up the next step.
//!
//! Decode comes first, one token for every sequence that is past its prompt; what is left of the
//! step's token budget is shared by the prompts that are still being read, short ones first to
//! finish. Blocks are taken when they are needed. Where none is left, the sequence that came
//! last, of the member with the most of them, gives its blocks up, keeps its slot (and with it its penalty history), and reads its
//! tokens again once there is room: nothing that was sampled is lost.
//!
//! Steps run in the order in which they were submitted. That is why a sequence's blocks and
//! slot are free again the moment it ends, although a step that still mentions it may be in
//! flight: whoever gets them writes later.

use std::collections::VecDeque;
use std::time::Duration;

use polder_backend::{BlockId, Limits, Row, Slot, StepBatch, StepOutput, TokenId};

use crate::fair;
use crate::pool::BlockPool;
use crate::pooling::{Pool, Pooling};
use crate::prefix::{NodeId, PrefixCache};
use crate::queue::WaitingQueue;
use crate::request::{
    Event, FinishReason, MemberId, PromptLogprob, Refusal, Request, RequestId, SchedulerError,
};
use crate::sequence::{LOGIT_ROWS, RowOwner, Sequence, blocks_for};

/// What the scheduler may do; the back end's [`Limits`] cap all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most requests that wait for a slot.
    pub max_waiting: usize,
    /// Most tokens in one step. Smaller keeps running streams smooth while a long prompt is
    /// read; larger reads prompts faster.
    pub step_tokens: u32,
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
    shares: Vec<Share>,
    stats: Stats,
}

/// Who gets blocks next: a running sequence that lost its own, or a member's next request.
#[derive(Debug)]
enum Next {
    Again(usize),
    New(MemberId),
}

#[derive(Debug, Clone, Copy)]
struct Share {
    index: usize,
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
        let waiting = self.waiting.len();
        let free = self.config.max_waiting.saturating_sub(waiting);
        let Some(left) = free.checked_sub(requests.len()) else {
            return Err(Refusal::QueueFull { waiting });
        };
        for (_, Request { member, .. }) in &requests {
            let waiting = self.waiting.of(member);
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
        self.make_room_for_more();
        self.plan_decodes(batch, &mut rows);
        self.plan_prompts(batch, &mut rows);
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
                    (&sequence.request, &sequence.tokens)
                }
                Next::New(member) => {
                    let request = self.waiting.peek(member).expect("just seen there");
                    (request, &request.prompt)
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
            let member = request.member.clone();
            self.prefixes.find(&member, tokens, most, &mut chain, &mut blocks);
            if matches!(next, Next::New(_))
                && self.is_being_read(&member, tokens, most, blocks.len())
            {
                self.prefixes.leave(&mut chain);
                held.push(member);
                continue;
            }
            let need = need - blocks.len();
            while !self.fits(need) {
                let Some(victim) = fair::spare(&self.running, &member) else {
                    return self.prefixes.leave(&mut chain);
                };
                self.preempt(victim);
            }
            self.take_blocks(need, &mut blocks);
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
    fn is_being_read(
        &self,
        member: &MemberId,
        tokens: &[TokenId],
        most: usize,
        kept: usize,
    ) -> bool {
        let block_tokens = self.limits.block_tokens as usize;
        self.running.iter().any(|sequence| {
            let prompt = &sequence.request.prompt;
            let reads = sequence.has_room()
                && !sequence.paused
                && sequence.fed < sequence.prompt_len()
                && sequence.request.prompt_logprobs.is_none();
            let alike = || prompt.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            reads && sequence.request.member == *member && (alike() / block_tokens).min(most) > kept
        })
    }

    /// Takes free blocks, and kept ones that nobody uses where there are too few; false, and nothing taken, where there
    /// are too few of both.
    fn take_blocks(&mut self, count: usize, to: &mut Vec<BlockId>) -> bool {
        if count > self.pool.available() + self.prefixes.idle() {
            return false;
        }
        while self.pool.available() < count {
            let block = self.prefixes.evict().expect("idle blocks can be had");
            self.pool.give_back(&mut vec![block]);
            self.stats.evictions += 1;
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
                let from = at * block_tokens as usize;
                let tokens = &sequence.tokens[from..from + block_tokens as usize];
                let member = &sequence.request.member;
                self.prefixes.keep(member, &mut sequence.chain, tokens, sequence.blocks[at]);
            }
        }
    }

    /// Takes a sequence's blocks away: those that are kept stay where they are.
    fn free_blocks(&mut self, index: usize) {
        let Sequence { blocks, chain, .. } = &mut self.running[index];
        let kept = |(at, block): &(usize, BlockId)| {
            chain.get(*at).is_some_and(|node| self.prefixes.holds(*node, *block))
        };
        let mut own: Vec<BlockId> =
            blocks.drain(..).enumerate().filter(|one| !kept(one)).map(|(_, block)| block).collect();
        self.prefixes.leave(chain);
        self.pool.give_back(&mut own);
    }

    /// Members with the fewest sequences that have room come first; of one member's, those that
    /// lost theirs. New requests of members who are `held` wait for what is being read.
    fn next_for_room(&self, held: &[MemberId]) -> Option<Next> {
        let room = |member: &MemberId| fair::with_room(&self.running, member);
        let again = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, sequence)| !sequence.has_room() && !sequence.paused)
            .map(|(index, sequence)| (room(&sequence.request.member), index))
            .min();
        let free = self.free_slots.len();
        let running = |member: &MemberId| match held.contains(member) {
            true => usize::MAX,
            false => fair::running(&self.running, member),
        };
        let may = |running| running != usize::MAX && fair::may_start(running, free);
        let new = self.waiting.next(running, may);
        match (again, new) {
            (Some((least, _)), Some(member)) if room(member) < least => {
                Some(Next::New(member.clone()))
            }
            (Some((_, index)), _) => Some(Next::Again(index)),
            (None, new) => new.cloned().map(Next::New),
        }
    }

    /// Whether so many blocks may be given out. One for each sequence that has room stays free, so
    /// that a newcomer is not thrown out again by the next few decoded tokens.
    fn fits(&self, need: usize) -> bool {
        let spare = self.running.iter().filter(|sequence| sequence.has_room()).count();
        need + spare <= self.pool.available() + self.prefixes.idle()
    }

    fn start(&mut self, member: &MemberId, blocks: Vec<BlockId>, chain: Vec<NodeId>) {
        let (id, request) = self.waiting.pop(member).expect("just seen there");
        let slot = self.free_slots.pop().expect("just seen free");
        let room = self.capacity() - request.prompt.len() as u32;
        let cached = chain.len() as u32 * self.limits.block_tokens;
        self.stats.asked_tokens += request.prompt.len() as u64;
        self.stats.cached_tokens += u64::from(cached);
        self.running.push(Sequence {
            id,
            slot,
            fresh: true,
            tokens: request.prompt.clone(),
            blocks,
            chain,
            cached,
            paused: false,
            fed: cached,
            planned: 0,
            limit: if request.pooling.is_some() { 0 } else { request.max_tokens.min(room) },
            logits_planned: 0,
            pool: request.pooling.map(|pooling| Pool::new(pooling, request.prompt.len() as u32)),
            request,
        });
    }

    fn plan_decodes(&mut self, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) {
        // All of them get their blocks before the first one is planned: whoever gives some up must
        // not be in the step already.
        for index in 0..self.running.len() {
            if self.running[index].wants_token() {
                self.extend(index);
            }
        }
        for sequence in &mut self.running {
            if sequence.wants_token() {
                sequence.plan(1, self.limits.block_tokens, batch, rows);
            }
        }
    }

    fn plan_prompts(&mut self, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) {
        let mut budget = self.config.step_tokens - batch.inputs.len() as u32;
        let mut shares = std::mem::take(&mut self.shares);
        shares.clear();
        shares.extend(self.running.iter().enumerate().filter_map(|(index, sequence)| {
            let reads = sequence.has_room()
                && !sequence.paused
                && !sequence.decodes()
                && sequence.unread() > 0;
            reads.then(|| Share { index, tokens: sequence.unread() })
        }));
        // Oldest first, so that the rows of one step stay few however many prompts are judged.
        let mut logit_rows = LOGIT_ROWS;
        for share in &mut shares {
            if self.running[share.index].wants_logits() {
                share.tokens = share.tokens.min(logit_rows);
                logit_rows -= share.tokens;
            }
        }
        shares.retain(|share| share.tokens > 0);
        share_out(&mut shares, &mut budget);
        for share in &shares {
            if share.tokens > 0 {
                let sequence = &mut self.running[share.index];
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
        loop {
            let mut blocks = std::mem::take(&mut self.running[index].blocks);
            let missing = need - blocks.len();
            let there = missing == 0 || self.take_blocks(missing, &mut blocks);
            self.running[index].blocks = blocks;
            if there {
                return;
            }
            let victim = fair::victim(&self.running).expect("a sequence that decodes owns blocks");
            self.preempt(victim);
            if victim == index {
                return;
            }
        }
    }

    fn preempt(&mut self, index: usize) {
        self.free_blocks(index);
        self.running[index].fed = 0;
        self.stats.preemptions += 1;
    }

    fn release(&mut self, index: usize) {
        self.free_blocks(index);
        let sequence = self.running.remove(index);
        self.free_slots.push(sequence.slot);
    }
}

fn capacity(limits: &Limits) -> u32 {
    limits.context.min(limits.blocks.saturating_mul(limits.block_tokens))
}

/// Cuts every share down so that together they fit the budget: all get the same, and what a
/// short one does not need goes to the others. The order of the shares is kept.
fn share_out(shares: &mut [Share], budget: &mut u32) {
    shares.sort_unstable_by_key(|share| (share.tokens, share.index));
    let mut left = shares.len() as u32;
    for share in shares.iter_mut() {
        share.tokens = share.tokens.min(budget.div_ceil(left));
        *budget -= share.tokens;
        left -= 1;
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

    #[test]
    fn a_short_prompt_is_read_at_once_beside_a_very_long_one() {
        let mut budget = 100;
        let mut shares = [Share { index: 0, tokens: 10_000 }, Share { index: 1, tokens: 20 }];
        share_out(&mut shares, &mut budget);
        assert_eq!((shares[0].tokens, shares[1].tokens, budget), (80, 20, 0));
    }

    #[test]
    fn a_budget_smaller_than_the_number_of_prompts_still_moves_one() {
        let mut budget = 1;
        let mut shares = [Share { index: 0, tokens: 5 }, Share { index: 1, tokens: 5 }];
        share_out(&mut shares, &mut budget);
        assert_eq!(shares[0].tokens + shares[1].tokens, 1);
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
