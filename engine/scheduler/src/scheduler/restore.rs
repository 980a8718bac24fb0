//! What goes to the tiers beside the device, and what comes back from them.

use polder_backend::BlockId;
use polder_kv::Tier;

use crate::prefix::{NodeId, Whose};
use crate::request::{MemberId, RequestId};
use crate::scheduler::Scheduler;
use crate::scheduler::room::whose;
use crate::tiers::{Keeps, Owner, PutWork, RestoreId, RestoreWork, Restoring, Tiers};

impl Scheduler {
    /// Keeps full blocks in these tiers too. Before the first step.
    pub fn with_tiers(mut self, tiers: Box<dyn Tiers>) -> Self {
        self.prefixes.address_from(tiers.root());
        self.tiers = Some(tiers);
        self
    }

    /// Takes out blocks that are to be kept beside the device, parents before children, and no more than there is `room` for. What they hold is
    /// written once all submitted steps have run; with the next planned step they may belong to somebody else.
    ///
    /// As many as a step can fill and no more, so that nobody's answer stands still for thousands of them where the tiers lost a long
    /// text: those that are left do not grow in number from step to step, and are good until they are taken out.
    pub fn put_work(&mut self, room: usize, to: &mut Vec<PutWork>) {
        let full = self.config.step_tokens.div_ceil(self.limits.block_tokens);
        let most = full as usize + usize::from(self.limits.slots);
        self.puts.take(most.min(room), to);
    }

    /// Whether [`Scheduler::put_work`] has something.
    pub fn has_puts(&self) -> bool {
        !self.puts.is_empty()
    }

    /// A block of this sequence was not kept: what comes after it would not be found, so none of it is offered.
    pub fn not_kept(&mut self, id: RequestId) {
        self.puts.refused(id);
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id)
            && sequence.keeps == Keeps::All
        {
            sequence.keeps = Keeps::OnDevice;
        }
    }

    /// Takes out what is to be brought back. Until all of it has come, or was given up, its sequence is not run.
    pub fn restore_work(&mut self, to: &mut Vec<RestoreWork>) {
        to.append(&mut self.restores);
    }

    /// Where a block that has come belongs. None where nobody waits for it any more: then it must not be written.
    pub fn place_of(&self, id: RestoreId, at: usize) -> Option<BlockId> {
        let sequence = &self.running[self.restoring(id)?];
        let restoring = sequence.restoring.as_ref()?;
        let waited_for = restoring.came.get(at).is_some_and(|came| !came);
        waited_for.then(|| sequence.blocks.get(restoring.first + at).copied()).flatten()
    }

    /// A block is back, in the place that [`Scheduler::place_of`] said.
    pub fn restored(&mut self, id: RestoreId, at: usize) {
        self.go_on_restoring(id, |restoring| {
            if let Some(came) = restoring.came.get_mut(at) {
                *came = true;
            }
        });
    }

    /// A block does not come back: it and what follows it are read again.
    pub fn not_restored(&mut self, id: RestoreId, at: usize) {
        self.go_on_restoring(id, |restoring| restoring.came.truncate(at));
    }

    /// Nothing more comes back. What has come without a gap is used, the rest is read again.
    pub fn stop_restoring(&mut self, id: RestoreId) {
        self.go_on_restoring(id, |restoring| {
            let there = restoring.there();
            restoring.came.truncate(there);
        });
    }

    /// Whether somebody still waits for this.
    pub fn is_restoring(&self, id: RestoreId) -> bool {
        self.restoring(id).is_some()
    }

    /// Nothing that was kept on the device for this member is found again, and what runs for them keeps nothing more. What members who trust each
    /// other have together goes too: nobody can tell whose it is.
    pub fn forget(&mut self, member: &MemberId) {
        let mut blocks = Vec::new();
        for whose in [Whose::Member(member), Whose::Trusting] {
            self.prefixes.forget(whose, &mut blocks);
        }
        self.pool.give_back(&mut blocks);
        let of =
            |owner: &Owner| *owner == Owner::Trusting || *owner == Owner::Member(member.clone());
        self.puts.forget(of);
        let mut restores = Vec::new();
        for sequence in &mut self.running {
            if of(&owner(whose(&sequence.request.member, sequence.request.claim))) {
                sequence.keeps = Keeps::Nothing;
                restores.extend(sequence.restoring.as_ref().map(|restoring| restoring.id));
            }
        }
        for id in restores {
            self.stop_restoring(id);
        }
        self.waiting.keep_nothing_of(|request| of(&owner(whose(&request.member, request.claim))));
    }

    fn restoring(&self, id: RestoreId) -> Option<usize> {
        let is = |restoring: &Restoring| restoring.id == id;
        self.running.iter().position(|sequence| sequence.restoring.as_ref().is_some_and(is))
    }

    fn go_on_restoring(&mut self, id: RestoreId, change: impl FnOnce(&mut Restoring)) {
        let Some(index) = self.restoring(id) else { return };
        let sequence = &mut self.running[index];
        let Some(restoring) = &mut sequence.restoring else { return };
        change(restoring);
        if !restoring.is_over() {
            return;
        }
        let there = restoring.there();
        let tokens = there as u32 * self.limits.block_tokens;
        sequence.fed = (restoring.first as u32) * self.limits.block_tokens + tokens;
        self.stats.restored_tokens += u64::from(sequence.known.found(sequence.fed));
        sequence.restoring = None;
        self.keep_whole(index);
    }

    /// Begins to bring back what the tiers have of a sequence that was just given blocks, beyond what the device has, if that is
    /// worth it; and offers them what the device has and they have lost.
    pub(super) fn look_beside(&mut self, index: usize, most: usize, first_time: bool) {
        let Some(tiers) = &mut self.tiers else { return };
        let sequence = &mut self.running[index];
        if most == 0 || sequence.keeps == Keeps::Nothing {
            return;
        }
        let owner = owner(whose(&sequence.request.member, sequence.request.claim));
        let mut found = tiers.find(&owner, &sequence.tokens);
        found.truncate(most);
        let first = sequence.chain.len();
        if first_time {
            let unread = sequence.request.prompt.len() as u64 - u64::from(sequence.fed);
            self.stats.looked_up_tokens += unread;
        }
        if found.len() <= first {
            for at in found.len()..first {
                self.offer(index, at);
            }
            return;
        }
        let blocks = found.split_off(first);
        let slowest = blocks.iter().any(|block| block.tier == Tier::Disk);
        let tier = if slowest { Tier::Disk } else { Tier::Host };
        if !tiers.worth_restoring(blocks.len(), tier) {
            return;
        }
        self.last_restore += 1;
        let id = RestoreId(self.last_restore);
        sequence.restoring = Some(Restoring { id, first, came: vec![false; blocks.len()] });
        self.restores.push(RestoreWork { id, owner, blocks });
    }

    /// Notes that a block of a sequence's chain is to be kept beside the device, where it is not.
    pub(super) fn offer(&mut self, index: usize, at: usize) {
        let Some(tiers) = &mut self.tiers else { return };
        let sequence = &self.running[index];
        if sequence.keeps != Keeps::All {
            return;
        }
        let owner = owner(whose(&sequence.request.member, sequence.request.claim));
        let before = at.checked_sub(1).map(|before| sequence.chain[before]);
        let digest = |node: NodeId| self.prefixes.digest(node);
        let (Some(own), Some(parent)) =
            (digest(sequence.chain[at]), before.map_or(Some(tiers.root()), digest))
        else {
            return;
        };
        if tiers.contains(&owner, &own) {
            return;
        }
        let from = at * self.limits.block_tokens as usize;
        let tokens = sequence.tokens[from..from + self.limits.block_tokens as usize].into();
        let (id, block) = (sequence.id, sequence.blocks[at]);
        self.puts.push(PutWork { id, owner, parent, tokens, block });
    }
}

fn owner(whose: Whose<'_>) -> Owner {
    match whose {
        Whose::Member(member) => Owner::Member(member.clone()),
        Whose::Trusting => Owner::Trusting,
    }
}
