//! Sequences under a grammar: who waits for a mask, and what a mask that came means.

use crate::grammar::{MaskDone, MaskWork, Masking, Next, Stand};
use crate::request::{Event, FinishReason, RequestId};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Takes out the masks that are to be computed. Each comes back once, whenever and in whatever
    /// order, through [`Scheduler::take_mask`]; until then its sequence samples nothing.
    pub fn mask_work(&mut self, to: &mut Vec<MaskWork>) {
        to.extend(self.running.iter_mut().filter_map(|sequence| {
            let id = sequence.id;
            sequence.masking.as_mut()?.work(id)
        }));
    }

    /// Takes a mask back, and appends what happened to `events` where it ends its sequence. One
    /// that comes too late is dropped.
    pub fn take_mask(&mut self, done: MaskDone, events: &mut Vec<(RequestId, Event)>) {
        let MaskDone { id, next, matcher } = done;
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else {
            return;
        };
        let sequence = &mut self.running[index];
        let event = match (next, matcher) {
            (Next::Mask(mask), Some(matcher)) => {
                sequence.masking = Some(Masking::Ready(Stand::Begun(matcher), mask));
                return;
            }
            (Next::Complete, _) => {
                self.begin(index, events);
                let sequence = &self.running[index];
                Event::Finished { reason: FinishReason::Stop, sampled: sequence.sampled() }
            }
            (Next::Stuck(why), _) => Event::Stuck(why),
            (Next::Mask(_), None) => Event::Stuck("its grammar was lost".into()),
        };
        events.push((id, event));
        self.release(index);
    }
}

#[cfg(test)]
mod tests {
    use polder_backend::{Limits, Sampling, StepBatch, TokenId};

    use super::*;
    use crate::request::{Claim, MemberId, Request};
    use crate::scheduler::Config;

    #[test]
    fn an_answer_that_is_complete_before_a_token_begins_before_it_ends() {
        let limits = Limits {
            step_tokens: 16,
            slots: 1,
            blocks: 4,
            block_tokens: 16,
            context: 64,
            vocab: 9,
            kv_bytes_per_token: 1,
        };
        let mut scheduler = Scheduler::new(limits, Config::default()).unwrap();
        let request = Request {
            member: MemberId::new("ada"),
            claim: Claim::default(),
            prompt: vec![TokenId(1)],
            max_tokens: 5,
            stop_tokens: [].into(),
            sampling: Sampling::greedy(),
            prompt_logprobs: None,
            grammar: None,
            pooling: None,
        };
        let id = RequestId(7);
        scheduler.admit(vec![(id, request)]).unwrap();
        assert!(scheduler.plan_step(&mut StepBatch::default()));
        let mut events = Vec::new();
        scheduler.take_mask(MaskDone { id, next: Next::Complete, matcher: None }, &mut events);
        let finished = Event::Finished { reason: FinishReason::Stop, sampled: 0 };
        assert_eq!(events, [(id, Event::Begun { cached: 0 }), (id, finished)]);
    }
}
