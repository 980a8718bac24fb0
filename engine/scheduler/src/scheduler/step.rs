//! What a step does: who goes on with their answer, and who reads how much.

use polder_backend::StepBatch;

use crate::cost::Cost;
use crate::request::{MemberId, Request};
use crate::scheduler::{Config, Scheduler};
use crate::sequence::{LOGIT_ROWS, RowOwner, Sequence};
use crate::share::{self, Demand};

/// One prompt's part of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    index: usize,
    /// Where its member stands among those who read.
    reader: usize,
    from: u32,
    /// Tokens that it could read, then those that it may.
    tokens: u32,
}

impl Scheduler {
    /// Plans one token for every sequence that is past its prompt, and says how much work that is.
    pub(super) fn plan_decodes(&mut self, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) -> f64 {
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
        let mut drafts = self.drafts(goes_on).into_iter();
        let mut work = 0.0;
        for sequence in &mut self.running {
            if goes_on(sequence) {
                let guesses = drafts.next().unwrap_or_default();
                let cost = self.config.cost;
                let own =
                    cost.decode(sequence.fed) + cost.read(sequence.fed + 1, guesses.len() as u32);
                let Request { member, claim, .. } = &sequence.request;
                self.accounts.spend(member, own, claim.weight.factor());
                work += own;
                sequence.plan(1, &guesses, self.limits.block_tokens, batch, rows);
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
    pub(super) fn plan_prompts(
        &mut self,
        decoded: f64,
        batch: &mut StepBatch,
        rows: &mut Vec<RowOwner>,
    ) {
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
                readers.push((
                    member,
                    Demand { used, weight: claim.weight.factor(), need: 0.0, gets: 0.0 },
                ));
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
        let read =
            (whole * self.pace.part() - decoded).max(whole / 4.0 * self.pace.part().max(0.25));
        share::turns(&mut demands, read);
        share::fill(&mut demands, read);
        share_out(&mut shares, &demands, cost, step_tokens - batch.inputs.len() as u32);
        for share in &shares {
            if share.tokens > 0 {
                let sequence = &mut self.running[share.index];
                let Request { member, claim, .. } = &sequence.request;
                let work = cost.read(share.from, share.tokens);
                self.accounts.spend(member, work, claim.weight.factor());
                sequence.plan(share.tokens, &[], self.limits.block_tokens, batch, rows);
                self.stats.prompt_tokens += u64::from(share.tokens);
            }
        }
        self.shares = shares;
    }
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
        let gets = demands[prompts[0].reader].gets;
        if gets == 0.0 {
            // It is not their turn, and what others leave over is not worth a walk over their history.
            prompts.iter_mut().for_each(|share| share.tokens = 0);
            continue;
        }
        work += gets;
        let oldest = prompts.iter().map(|share| share.index).min();
        let (first, mut rest): (Vec<_>, Vec<_>) =
            prompts.iter_mut().partition(|share| Some(share.index) == oldest);
        // Half of it, and a token at least: what its token lacks is not given away beside it in step after step.
        let half = |share: &Share| (work / 2.0).max(cost.read(share.from, 1)).min(work);
        let kept = first.iter().map(|share| need(share).min(half(share))).sum::<f64>();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How many tokens of these prompts of one member are read for so much work.
    fn shared(tokens: &[u32], work: f64, cost: Cost, most: u32) -> Vec<u32> {
        let of = |(index, tokens)| Share { index, reader: 0, from: 0, tokens };
        let mut shares: Vec<Share> = tokens.iter().copied().enumerate().map(of).collect();
        let demand = Demand { used: 0.0, weight: 1.0, need: 1e9, gets: work };
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
    fn the_oldest_prompts_next_token_is_read_though_it_takes_more_than_half_of_the_work() {
        let cost = Cost { read_slope: 0.5, decode_slope: 0.0 };
        let share = |index, from, tokens| Share { index, reader: 0, from, tokens };
        let mut shares = [share(0, 30, 1), share(1, 0, 8)];
        let demand = Demand { used: 0.0, weight: 1.0, need: 1e9, gets: 24.0 };
        share_out(&mut shares, &[demand], cost, 24);
        assert_eq!(shares.map(|share| share.tokens), [1, 4]);
    }

    #[test]
    fn work_for_less_than_a_token_still_reads_one() {
        assert_eq!(shared(&[5, 5], 1.0, Cost::default(), 9).iter().sum::<u32>(), 1);
        assert_eq!(shared(&[5, 5], 0.4, Cost::default(), 9).iter().sum::<u32>(), 1);
        assert_eq!(shared(&[5, 5], 0.4, Cost::default(), 0), [0, 0]);
    }

    #[test]
    fn what_a_member_leaves_over_goes_to_the_next() {
        let demand = |gets| Demand { used: 0.0, weight: 1.0, need: 1e9, gets };
        let share = |index, reader| Share { index, reader, from: 0, tokens: 900 };
        let mut shares = [share(0, 1), share(1, 0)];
        share_out(&mut shares, &[demand(10.5), demand(10.5)], Cost::default(), 512);
        assert_eq!((shares[1].tokens, shares[0].tokens), (10, 11));
    }
}
