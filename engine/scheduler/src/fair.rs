//! Who gets what where there is too little for all: places to wait, slots, KV blocks.

use crate::request::{Claim, MemberId};
use crate::sequence::Sequence;

/// Whether a member may have `mine` requests waiting where that leaves `left` places to others.
/// One place is everyone's as long as there is one; more may be taken only while as many stay
/// free. Whoever comes therefore finds a place even beside several who take all they can get.
pub(crate) fn may_wait(mine: usize, left: usize) -> bool {
    mine <= 1 || mine <= left
}

/// Most places that [`may_wait`] gives to a member who is alone.
pub(crate) fn most_waiting(places: usize) -> usize {
    (places / 2).max(1)
}

/// Whether a member with `running` sequences may take one of the `free` slots: the last one is
/// kept for somebody who has none.
pub(crate) fn may_start(running: usize, free: usize, claim: Claim) -> bool {
    free > usize::from(running > 0) && running < usize::from(claim.most_running.max(1))
}

/// How much a member has, beside others of another weight.
pub(crate) fn weighed(count: usize, claim: Claim) -> f64 {
    count as f64 / claim.weight.factor()
}

/// Whose slot goes to a member who has none: of the member with the most for their weight, and two at
/// least, the least urgent that came last. Not that of one who waits for a reader: it would only be in the way again.
pub(crate) fn leaver(all: &[Sequence]) -> Option<usize> {
    let stays = |sequence: &Sequence| !sequence.leaving;
    let of =
        |member: &MemberId| all.iter().filter(|s| stays(s) && s.request.member == *member).count();
    let can = all.iter().enumerate().filter(|(_, sequence)| {
        stays(sequence)
            && !sequence.paused
            && sequence.request.prompt_logprobs.is_none()
            && sequence.request.pooling.is_none()
            && of(&sequence.request.member) > 1
    });
    can.max_by(|(a, x), (b, y)| {
        let has = |s: &Sequence| weighed(of(&s.request.member), s.request.claim);
        (has(x).total_cmp(&has(y)))
            .then(y.request.claim.priority.cmp(&x.request.claim.priority))
            .then(a.cmp(b))
    })
    .map(|(index, _)| index)
}

/// A member's sequences in slots.
pub(crate) fn running(all: &[Sequence], member: &MemberId) -> usize {
    all.iter().filter(|sequence| sequence.request.member == *member).count()
}

/// A member's sequences that own blocks.
pub(crate) fn with_room(all: &[Sequence], member: &MemberId) -> usize {
    let mine = |sequence: &&Sequence| sequence.has_room() && sequence.request.member == *member;
    all.iter().filter(mine).count()
}

/// Whose blocks go first: those of a sequence that waits for its reader; then, of the member with
/// the most sequences that own some, the one that came last. The oldest that is not paused is never
/// it while another one has blocks, so something always ends.
pub(crate) fn victim(all: &[Sequence]) -> Option<usize> {
    let owners = all.iter().enumerate().filter(|(_, sequence)| sequence.has_room());
    owners
        .max_by_key(|(index, sequence)| {
            (sequence.paused, with_room(all, &sequence.request.member), *index)
        })
        .map(|(index, _)| index)
}

/// Whose blocks may be taken so that `member` gets some: those of a paused sequence, and those of
/// a member with several sequences for one with none.
pub(crate) fn spare(all: &[Sequence], member: &MemberId) -> Option<usize> {
    victim(all).filter(|victim| {
        let victim = &all[*victim];
        victim.paused || (with_room(all, member) == 0 && with_room(all, &victim.request.member) > 1)
    })
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
