//! Who gets blocks and slots, and who gives theirs up.

use polder_backend::{BlockId, Limits, TokenId};

use crate::fair;
use crate::grammar::Masking;
use crate::pooling::{Pool, Pooling};
use crate::prefix::{NodeId, Taker, Whose};
use crate::queue::{Before, Waiting};
use crate::repeats::Repeats;
use crate::request::{Claim, MemberId, Request, RequestId};
use crate::scheduler::Scheduler;
use crate::sequence::{Known, Sequence, blocks_for};
use crate::tiers::Keeps;

/// Who gets no room in this step.
#[derive(Debug, Default)]
struct Held {
    ids: Vec<RequestId>,
    members: Vec<MemberId>,
}

impl Held {
    fn hold(&mut self, id: RequestId, member: MemberId) {
        self.ids.push(id);
        self.members.push(member);
    }
}

/// Who gets blocks next: a running sequence that lost its own, or a member's next request.
#[derive(Debug)]
enum Next {
    Again(usize),
    New(MemberId),
}

/// Whoever is short goes past one that there is no room for, this often. Then nobody new gets room before that one: what others
/// keep may be what is missing, and goes only where nobody runs.
const MOST_PAST: u32 = 64;

/// The first one that there was no room for, and how many were let past it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stuck {
    id: RequestId,
    past: u32,
}

/// Room that long texts leave to short ones, in blocks: a short question does not wait until somebody's books are read and
/// answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    /// A text of so many is short.
    short: usize,
    /// Short ones find so many, all of them together.
    room: usize,
}

impl Kept {
    /// Nothing where everybody's longest text fits anyway, and where the pool is too small for a part of it to hold a conversation.
    fn of(limits: &Limits, short_text: u32) -> Self {
        let total = limits.blocks as usize;
        let whole = blocks_for(limits.context, limits.block_tokens);
        let short = (total / 16).min((short_text / limits.block_tokens) as usize);
        if whole.saturating_mul(limits.slots.into()) <= total
            || short * (limits.block_tokens as usize) < short_text as usize / 4
        {
            return Self { short: 0, room: 0 };
        }
        Self { short, room: (total / 8).min(8 * short) }
    }
}

impl Scheduler {
    /// Gives room to as many as fit.
    pub(super) fn make_room_for_more(&mut self) {
        let mut held = Held::default();
        let mut stuck = false;
        // Nobody gets room or is held twice in a step.
        for _ in 0..self.running.len() + self.waiting.len() {
            if stuck && !self.may_pass(1) {
                break;
            }
            let Some(next) = self.next_for_room(&held) else { break };
            let (mut chain, mut blocks) = (Vec::new(), Vec::new());
            let (id, request, tokens, in_flight) = match &next {
                Next::Again(index) => {
                    let sequence = &self.running[*index];
                    let in_flight = sequence.planned - sequence.sampled();
                    (sequence.id, &sequence.request, sequence.tokens.as_slice(), in_flight)
                }
                Next::New(member) => {
                    let waiting = self.waiting.peek(member).expect("just seen there");
                    (waiting.id, &waiting.request, waiting.tokens(), 0)
                }
            };
            // What a step in flight samples is read too.
            let whole = blocks_for(tokens.len() as u32 + in_flight, self.limits.block_tokens);
            let most = most_found(request, tokens, self.limits.block_tokens);
            let (member, claim) = (request.member.clone(), request.claim);
            let whose = whose(&member, claim);
            if stuck && !self.may_pass(whole) {
                held.hold(id, member);
                continue;
            }
            self.prefixes.find(whose, tokens, most, &mut chain, &mut blocks);
            if matches!(next, Next::New(_)) && self.is_being_read(whose, tokens, most, blocks.len())
            {
                self.prefixes.leave(&mut chain);
                held.hold(id, member);
                continue;
            }
            let need = whole - blocks.len();
            if !self.make_fit(need, whole, &member, whose) {
                self.prefixes.leave(&mut chain);
                if !stuck {
                    stuck = true;
                    self.is_stuck(id);
                }
                held.hold(id, member);
                continue;
            }
            match &mut self.stuck {
                Some(first) if first.id == id => self.stuck = None,
                Some(first) if stuck => first.past += 1,
                _ => {}
            }
            let taker = self.taker(whose);
            self.take_blocks(need, taker, &mut blocks);
            match next {
                Next::Again(index) => {
                    let sequence = &mut self.running[index];
                    sequence.fed = chain.len() as u32 * self.limits.block_tokens;
                    (sequence.blocks, sequence.chain) = (blocks, chain);
                    self.stats.cached_tokens += u64::from(sequence.known.found(sequence.fed));
                    self.look_beside(index, most, false);
                }
                Next::New(member) => {
                    let first_time = self.start(&member, blocks, chain);
                    self.look_beside(self.running.len() - 1, most, first_time);
                }
            }
        }
    }

    /// There is no room for this one, which comes before all others. Those that went past it count until it has room, also over steps in
    /// which nobody could have had a slot.
    fn is_stuck(&mut self, id: RequestId) {
        if self.stuck.is_none_or(|stuck| stuck.id != id) {
            self.stuck = Some(Stuck { id, past: 0 });
        }
    }

    /// Whether a text of `whole` blocks may have room before the one that there is none for: where it is short, short ones
    /// have not taken all that is kept for them, and not too many went past.
    fn may_pass(&self, whole: usize) -> bool {
        let kept = self.kept();
        let few = self.stuck.is_none_or(|stuck| stuck.past < MOST_PAST);
        few && whole <= kept.short && self.short_ones(kept) + whole <= kept.room
    }

    fn kept(&self) -> Kept {
        Kept::of(&self.limits, self.config.short_text)
    }

    /// Blocks of the sequences that are short.
    fn short_ones(&self, kept: Kept) -> usize {
        let owned = self.running.iter().map(|sequence| sequence.blocks.len());
        owned.filter(|blocks| *blocks <= kept.short).sum()
    }

    /// Makes `need` blocks free for a text of `whole`, at the cost of those who may be asked for theirs. False where that is not
    /// enough. Nobody gives up blocks only so that room for short texts is left.
    fn make_fit(&mut self, need: usize, whole: usize, member: &MemberId, whose: Whose<'_>) -> bool {
        loop {
            if self.fits(need, whole, whose) {
                return true;
            }
            let victim = fair::spare(&self.running, member);
            match victim {
                // Somebody has more than their share of the room.
                Some(_) if self.fits(need, 0, whose) => return true,
                Some(victim) => self.preempt(victim),
                None => return false,
            }
        }
    }

    /// Whether the member's next request waits for a beginning that is just being read, so that a slot is of no use to it.
    fn is_held(&mut self, member: &MemberId) -> bool {
        let Some(waiting) = self.waiting.peek(member) else { return false };
        let (request, tokens) = (&waiting.request, waiting.tokens());
        let most = most_found(request, tokens, self.limits.block_tokens);
        let (mut chain, mut blocks) = (Vec::new(), Vec::new());
        let whose = whose(member, request.claim);
        self.prefixes.find(whose, tokens, most, &mut chain, &mut blocks);
        let held = self.is_being_read(whose, tokens, most, blocks.len());
        self.prefixes.leave(&mut chain);
        held
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
            self.puts.given_away(&given_up);
            self.pool.give_back(&mut given_up);
        }
        self.pool.take(count, to)
    }

    /// Full blocks that the step writes are there for whoever begins alike from the next step on.
    pub(super) fn keep_what_is_whole(&mut self) {
        (0..self.running.len()).for_each(|index| self.keep_whole(index));
    }

    pub(super) fn keep_whole(&mut self, index: usize) {
        let block_tokens = self.limits.block_tokens;
        loop {
            let sequence = &mut self.running[index];
            let at = sequence.chain.len();
            if !sequence.has_room()
                || at >= sequence.whole_blocks(block_tokens)
                || sequence.keeps == Keeps::Nothing
            {
                return;
            }
            let whose = whose(&sequence.request.member, sequence.request.claim);
            let (block, tokens) = (&mut sequence.blocks[at], &sequence.tokens);
            let kept = self.prefixes.keep(whose, &mut sequence.chain, tokens, *block);
            if kept != *block {
                // It was there already, and says the same.
                self.pool.give_back(&mut vec![std::mem::replace(block, kept)]);
            }
            self.offer(index, at);
        }
    }

    /// Takes a sequence's blocks away: those that are kept stay where they are.
    fn free_blocks(&mut self, index: usize) {
        let Sequence { blocks, chain, restoring, .. } = &mut self.running[index];
        // What still comes finds nobody who waits for it.
        *restoring = None;
        self.pool.give_back(&mut blocks.split_off(chain.len().min(blocks.len())));
        blocks.clear();
        self.prefixes.leave(chain);
    }

    /// Members with the fewest sequences that have room, for their weight, come first; of one member's, those that
    /// lost theirs. Those that are `held` do not come in this step.
    fn next_for_room(&self, held: &Held) -> Option<Next> {
        let room = |request: &Request| {
            fair::weighed(fair::with_room(&self.running, &request.member), request.claim)
        };
        // How much it has to read is known when nothing that was planned for it is still to be read back.
        let again = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, sequence)| !sequence.has_room() && !sequence.paused && !sequence.leaving)
            .filter(|(_, sequence)| sequence.planned == sequence.sampled())
            .filter(|(_, sequence)| !held.ids.contains(&sequence.id))
            .map(|(index, sequence)| (room(&sequence.request), index))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let free = self.free_slots.len();
        let rank = |waiting: &Waiting| {
            let Request { member, claim, .. } = &waiting.request;
            let running = fair::running(&self.running, member);
            let may = !held.members.contains(member) && fair::may_start(running, free, *claim);
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
    /// those is read back; not for a request that would not take it.
    pub(super) fn give_up_slots(&mut self) {
        let without = self.waiting.members().filter(|m| fair::running(&self.running, m) == 0);
        let without: Vec<MemberId> = without.cloned().collect();
        let leaving = self.running.iter().filter(|sequence| sequence.leaving).count();
        let there = self.free_slots.len() + leaving;
        let missing = match without.len() > there {
            true => without.iter().filter(|member| !self.is_held(member)).count(),
            false => 0,
        };
        for _ in 0..missing.saturating_sub(there) {
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
        let Sequence { id, request, tokens, known, masking, keeps, .. } = self.release(index);
        self.stats.slots_given_up += 1;
        let before = Some(Before { tokens, known, masking });
        self.waiting.push_again(Waiting { id, request, before, keeps });
    }

    /// Whether so many blocks may be given out for a text of `whole`. One for each sequence that has room stays free, so
    /// that a newcomer is not thrown out again by the next few decoded tokens; and beside others a long text leaves room to
    /// short ones.
    fn fits(&self, need: usize, whole: usize, whose: Whose<'_>) -> bool {
        let mut spare = self.running.iter().filter(|sequence| sequence.has_room()).count();
        let kept = self.kept();
        if spare > 0 && whole > kept.short {
            spare += kept.room.saturating_sub(self.short_ones(kept));
        }
        need + spare <= self.pool.available() + self.prefixes.idle_for(self.taker(whose))
    }

    /// Gives a member's next request a slot. Says whether it never had one before.
    fn start(&mut self, member: &MemberId, blocks: Vec<BlockId>, chain: Vec<NodeId>) -> bool {
        let Waiting { id, request, before, keeps } =
            self.waiting.pop(member).expect("just seen there");
        let slot = self.free_slots.pop().expect("just seen free");
        let room = self.capacity() - request.prompt.len() as u32;
        let fed = chain.len() as u32 * self.limits.block_tokens;
        let first_time = before.is_none();
        if first_time {
            self.stats.asked_tokens += request.prompt.len() as u64;
        }
        let Before { tokens, mut known, masking } = before.unwrap_or_else(|| Before {
            tokens: request.prompt.clone(),
            known: Known::default(),
            masking: request.grammar.clone().map(Masking::new),
        });
        self.stats.cached_tokens += u64::from(known.found(fed));
        self.running.push(Sequence {
            id,
            slot,
            fresh: true,
            planned: (tokens.len() - request.prompt.len()) as u32,
            tokens,
            blocks,
            chain,
            known,
            paused: false,
            fed,
            limit: if request.pooling.is_some() { 0 } else { request.max_tokens.min(room) },
            logits_planned: 0,
            leaving: false,
            restoring: None,
            keeps,
            // Under a grammar each guess would need a mask of its own.
            repeats: (self.config.draft_tokens > 0 && masking.is_none()).then(Repeats::default),
            draft: None,
            masking,
            pool: request.pooling.map(|pooling| Pool::new(pooling, request.prompt.len() as u32)),
            request,
        });
        first_time
    }

    /// Makes sure that the sequence owns the block of its next position, at the cost of others or,
    /// where it is the one to give up its blocks, not at all.
    pub(super) fn extend(&mut self, index: usize) {
        let need = blocks_for(self.running[index].fed + 1, self.limits.block_tokens);
        let missing = need.saturating_sub(self.running[index].blocks.len());
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

    /// Makes room for guesses behind the sequence's next position, without taking any from a sequence: how many of them
    /// have some. What is kept makes room as it would for the answer itself a moment later.
    pub(super) fn extend_for_guesses(&mut self, index: usize, guesses: usize) -> usize {
        let Sequence { fed, blocks, request: Request { member, claim, .. }, .. } =
            &self.running[index];
        let need = blocks_for(fed + 1 + guesses as u32, self.limits.block_tokens);
        let there = blocks.len() * self.limits.block_tokens as usize - *fed as usize - 1;
        let missing = need.saturating_sub(blocks.len());
        let (member, claim) = (member.clone(), *claim);
        let whose = whose(&member, claim);
        let enough = missing == 0
            || (self.fits(missing, 0, whose) && self.extend_by(missing, index, Some(whose)));
        if enough { guesses } else { guesses.min(there) }
    }

    fn extend_by(&mut self, missing: usize, index: usize, taker: Taker<'_>) -> bool {
        let mut blocks = std::mem::take(&mut self.running[index].blocks);
        let there = self.take_blocks(missing, taker, &mut blocks);
        self.running[index].blocks = blocks;
        there
    }

    pub(super) fn preempt(&mut self, index: usize) {
        self.free_blocks(index);
        self.running[index].fed = 0;
        self.stats.preemptions += 1;
    }

    pub(super) fn release(&mut self, index: usize) -> Sequence {
        self.free_blocks(index);
        let sequence = self.running.remove(index);
        self.free_slots.push(sequence.slot);
        sequence
    }
}

/// How many blocks of these tokens need not be read where they are kept. The last token is read in any case: what follows
/// it is asked for. So is a prompt that is judged, or whose mean is wanted.
fn most_found(request: &Request, tokens: &[TokenId], block_tokens: u32) -> usize {
    match (request.prompt_logprobs, request.pooling) {
        (None, None | Some(Pooling::Last)) => (tokens.len() - 1) / block_tokens as usize,
        _ => 0,
    }
}

pub(super) fn whose(member: &MemberId, claim: Claim) -> Whose<'_> {
    if claim.trusting { Whose::Trusting } else { Whose::Member(member) }
}
