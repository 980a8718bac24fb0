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
                Event::Finished { reason: FinishReason::Stop, sampled: sequence.sampled() }
            }
            (Next::Stuck(why), _) => Event::Stuck(why),
            (Next::Mask(_), None) => Event::Stuck("its grammar was lost".into()),
        };
        events.push((id, event));
        self.release(index);
    }
}
