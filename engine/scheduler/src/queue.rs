//! Who waits, and who is next: one queue per member, members in turn.

use std::collections::{HashMap, VecDeque};

use crate::request::{MemberId, Request, RequestId};

/// Waiting requests. A member with a hundred of them gets one turn in each round, as a member
/// with one does.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// Members with something waiting, next one first.
    round: VecDeque<MemberId>,
    by_member: HashMap<MemberId, VecDeque<(RequestId, Request)>>,
    len: usize,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, id: RequestId, request: Request) {
        let member = request.member.clone();
        let queue = self.by_member.entry(member.clone()).or_default();
        if queue.is_empty() {
            self.round.push_back(member);
        }
        queue.push_back((id, request));
        self.len += 1;
    }

    /// How many requests of a member wait.
    pub(crate) fn of(&self, member: &MemberId) -> usize {
        self.by_member.get(member).map_or(0, VecDeque::len)
    }

    /// The member whose turn it is: of those who may have a turn, one with the fewest `running`,
    /// and among equals the one who waited longest for it.
    pub(crate) fn next(
        &self,
        running: impl Fn(&MemberId) -> usize,
        may: impl Fn(usize) -> bool,
    ) -> Option<&MemberId> {
        let ranked = self.round.iter().map(|member| (running(member), member));
        ranked.filter(|(rank, _)| may(*rank)).min_by_key(|(rank, _)| *rank).map(|(_, next)| next)
    }

    /// A member's next request.
    pub(crate) fn peek(&self, member: &MemberId) -> Option<&Request> {
        self.by_member.get(member)?.front().map(|(_, request)| request)
    }

    /// Takes that request; its member goes to the end of the round.
    pub(crate) fn pop(&mut self, member: &MemberId) -> Option<(RequestId, Request)> {
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

    /// Forgets one request; false where it does not wait here.
    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        let Some((member, at)) = self.by_member.iter().find_map(|(member, queue)| {
            queue.iter().position(|(other, _)| *other == id).map(|at| (member.clone(), at))
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

#[cfg(test)]
mod tests {
    use super::*;
    use polder_backend::{Sampling, TokenId};

    fn request(member: &str) -> Request {
        Request {
            member: MemberId::new(member),
            prompt: vec![TokenId(1)],
            max_tokens: 1,
            stop_tokens: [].into(),
            sampling: Sampling::greedy(),
            prompt_logprobs: None,
            pooling: None,
        }
    }

    /// Takes whoever is next while nobody runs.
    fn pop(queue: &mut WaitingQueue) -> Option<u64> {
        let next = queue.next(|_| 0, |_| true)?.clone();
        queue.pop(&next).map(|(id, _)| id.0)
    }

    #[test]
    fn whoever_has_the_fewest_running_is_next() {
        let mut queue = WaitingQueue::default();
        for (id, member) in ["two", "one", "none", "also one"].into_iter().enumerate() {
            queue.push(RequestId(id as u64), request(member));
        }
        let running = |member: &MemberId| match member {
            m if *m == MemberId::new("two") => 2,
            m if *m == MemberId::new("none") => 0,
            _ => 1,
        };
        let next = |may: fn(usize) -> bool| queue.next(running, may).cloned();
        assert_eq!(next(|_| true), Some(MemberId::new("none")));
        assert_eq!(next(|running| running > 0), Some(MemberId::new("one")));
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
