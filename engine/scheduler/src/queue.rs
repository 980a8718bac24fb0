//! Who waits, and who is next: one queue per member, members in turn.

use std::collections::{HashMap, VecDeque};

use polder_backend::TokenId;

use crate::grammar::Masking;
use crate::request::{MemberId, Request, RequestId};
use crate::sequence::Known;
use crate::tiers::Keeps;

/// A request without a slot.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// What it has said, and how much of its prompt was known, where it had a slot before.
    pub(crate) before: Option<Before>,
    /// What may be kept of it.
    pub(crate) keeps: Keeps,
}

/// What a sequence takes along when it gives up its slot.
#[derive(Debug)]
pub(crate) struct Before {
    /// The prompt, then what was sampled.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) known: Known,
    pub(crate) masking: Option<Masking>,
}

impl Waiting {
    /// What is to be read before it goes on.
    pub(crate) fn tokens(&self) -> &[TokenId] {
        self.before.as_ref().map_or(&self.request.prompt, |before| &before.tokens)
    }
}

/// Waiting requests. A member with a hundred of them gets one turn in each round, as a member
/// with one does.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// Members with something waiting, next one first.
    round: VecDeque<MemberId>,
    by_member: HashMap<MemberId, VecDeque<Waiting>>,
    len: usize,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Behind the member's others of its priority and above.
    pub(crate) fn push(&mut self, id: RequestId, request: Request) {
        let priority = request.claim.priority;
        let waiting = Waiting { id, request, before: None, keeps: Keeps::All };
        self.insert(waiting, |other| other.request.claim.priority >= priority);
    }

    /// One that had a slot goes before the member's others of its priority.
    pub(crate) fn push_again(&mut self, waiting: Waiting) {
        let priority = waiting.request.claim.priority;
        self.insert(waiting, |other| other.request.claim.priority > priority);
    }

    fn insert(&mut self, waiting: Waiting, goes_before: impl Fn(&Waiting) -> bool) {
        let member = waiting.request.member.clone();
        let queue = self.by_member.entry(member.clone()).or_default();
        if queue.is_empty() {
            self.round.push_back(member);
        }
        let at = queue.iter().rposition(goes_before).map_or(0, |last| last + 1);
        queue.insert(at, waiting);
        self.len += 1;
    }

    /// How many requests of a member wait and have not had a slot yet.
    pub(crate) fn newcomers_of(&self, member: &MemberId) -> usize {
        self.by_member.get(member).map_or(0, count_new)
    }

    /// How many requests wait and have not had a slot yet.
    pub(crate) fn newcomers(&self) -> usize {
        self.by_member.values().map(count_new).sum()
    }

    /// The member whose turn it is: of those who have a `rank`, one with the lowest, and among equals the one who waited
    /// longest for it.
    pub(crate) fn next<R: PartialOrd>(
        &self,
        rank: impl Fn(&Waiting) -> Option<R>,
    ) -> Option<&MemberId> {
        let mut best: Option<(R, &MemberId)> = None;
        for member in &self.round {
            let Some(rank) = self.peek(member).and_then(&rank) else { continue };
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, member));
            }
        }
        best.map(|(_, member)| member)
    }

    /// Whoever has something waiting.
    pub(crate) fn members(&self) -> impl Iterator<Item = &MemberId> {
        self.round.iter()
    }

    /// A member's next request.
    pub(crate) fn peek(&self, member: &MemberId) -> Option<&Waiting> {
        self.by_member.get(member)?.front()
    }

    /// Takes that request; its member goes to the end of the round.
    pub(crate) fn pop(&mut self, member: &MemberId) -> Option<Waiting> {
        let queue = self.by_member.get_mut(member)?;
        let next = queue.pop_front().expect("a member in the round has something waiting");
        let empty = queue.is_empty();
        self.round.retain(|other| other != member);
        if empty {
            self.by_member.remove(member);
        } else {
            self.round.push_back(member.clone());
        }
        self.len -= 1;
        Some(next)
    }

    /// Of these nothing is kept, whether they had a slot before or not.
    pub(crate) fn keep_nothing_of(&mut self, of: impl Fn(&Request) -> bool) {
        for waiting in self.by_member.values_mut().flatten().filter(|w| of(&w.request)) {
            waiting.keeps = Keeps::Nothing;
        }
    }

    /// Forgets one request; false where it does not wait here.
    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        let Some((member, at)) = self.by_member.iter().find_map(|(member, queue)| {
            queue.iter().position(|other| other.id == id).map(|at| (member.clone(), at))
        }) else {
            return false;
        };
        let queue = self.by_member.get_mut(&member).expect("just found there");
        queue.remove(at);
        if queue.is_empty() {
            self.by_member.remove(&member);
            self.round.retain(|other| *other != member);
        }
        self.len -= 1;
        true
    }
}

/// Those that had a slot take nobody's place to wait: they were let in already.
fn count_new(queue: &VecDeque<Waiting>) -> usize {
    queue.iter().filter(|waiting| waiting.before.is_none()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Claim;
    use polder_backend::Sampling;

    fn request(member: &str) -> Request {
        Request {
            member: MemberId::new(member),
            claim: Claim::default(),
            prompt: vec![TokenId(1)],
            max_tokens: 1,
            stop_tokens: [].into(),
            sampling: Sampling::greedy(),
            prompt_logprobs: None,
            grammar: None,
            pooling: None,
        }
    }

    /// Takes whoever is next while nobody runs.
    fn pop(queue: &mut WaitingQueue) -> Option<u64> {
        let next = queue.next(|_| Some(0))?.clone();
        queue.pop(&next).map(|waiting| waiting.id.0)
    }

    #[test]
    fn whoever_has_the_fewest_running_is_next() {
        let mut queue = WaitingQueue::default();
        for (id, member) in ["two", "one", "none", "also one"].into_iter().enumerate() {
            queue.push(RequestId(id as u64), request(member));
        }
        let running = |waiting: &Waiting| match &waiting.request.member {
            m if *m == MemberId::new("two") => 2,
            m if *m == MemberId::new("none") => 0,
            _ => 1,
        };
        let next = |may: fn(i32) -> bool| queue.next(|w| Some(running(w)).filter(|r| may(*r)));
        assert_eq!(next(|_| true), Some(&MemberId::new("none")));
        assert_eq!(next(|running| running > 0), Some(&MemberId::new("one")));
        assert_eq!(next(|_| false), None);
    }

    #[test]
    fn a_member_with_many_requests_does_not_keep_another_waiting() {
        let mut queue = WaitingQueue::default();
        for id in 0..3 {
            queue.push(RequestId(id), request("busy"));
        }
        queue.push(RequestId(3), request("quiet"));
        let order: Vec<u64> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, [0, 3, 1, 2]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_members_urgent_request_passes_their_own_and_nobody_elses() {
        let mut queue = WaitingQueue::default();
        let ask = |queue: &mut WaitingQueue, id, member, priority| {
            let claim = Claim { priority, ..Claim::default() };
            queue.push(RequestId(id), Request { claim, ..request(member) });
        };
        ask(&mut queue, 0, "other", 0);
        for (id, priority) in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1)] {
            ask(&mut queue, id, "m", priority);
        }
        let again =
            Waiting { id: RequestId(6), request: request("m"), before: None, keeps: Keeps::All };
        queue.push_again(again);
        let order: Vec<u64> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, [0, 2, 4, 6, 1, 3, 5]);
    }

    #[test]
    fn of_whoever_is_forgotten_nothing_is_kept_that_still_waits() {
        let mut queue = WaitingQueue::default();
        queue.push(RequestId(1), request("a"));
        queue.push(RequestId(2), request("b"));
        queue.keep_nothing_of(|request| request.member == MemberId::new("a"));
        let keeps = |queue: &mut WaitingQueue, member| {
            queue.pop(&MemberId::new(member)).map(|waiting| waiting.keeps)
        };
        assert_eq!(keeps(&mut queue, "a"), Some(Keeps::Nothing));
        assert_eq!(keeps(&mut queue, "b"), Some(Keeps::All));
    }

    #[test]
    fn a_removed_request_leaves_no_empty_turn_behind() {
        let mut queue = WaitingQueue::default();
        queue.push(RequestId(0), request("one"));
        queue.push(RequestId(1), request("two"));
        assert!(queue.remove(RequestId(0)));
        assert!(!queue.remove(RequestId(0)));
        assert_eq!(pop(&mut queue), Some(1));
        assert_eq!(pop(&mut queue), None);
    }
}
