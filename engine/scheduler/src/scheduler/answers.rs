//! What a step's answer means for its sequences.

use polder_backend::{Row, SampledToken, StepOutput, TokenId};

use crate::request::{Event, FinishReason, PromptLogprob, RequestId, SchedulerError};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;

impl Scheduler {
    /// Reads the answer to the oldest step in flight and appends what happened to `events`.
    pub fn take(
        &mut self,
        output: StepOutput,
        events: &mut Vec<(RequestId, Event)>,
    ) -> Result<(), SchedulerError> {
        let step = self.in_flight.pop_front().ok_or(SchedulerError::NothingInFlight)?;
        let mut owners = step.rows;
        let wrong = SchedulerError::WrongAnswer { expected: owners.len(), got: output.rows.len() };
        if owners.len() != output.rows.len() {
            return Err(wrong);
        }
        for (owner, row) in owners.iter().zip(output.rows) {
            let index = self.running.iter().position(|sequence| sequence.id == owner.id);
            let void = matches!(row, Row::Void);
            match (index, owner.guess) {
                (Some(index), Some(guess)) if self.is_void(index, guess) != void => {
                    return Err(wrong);
                }
                (_, Some(_)) if void => continue,
                _ => {}
            }
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
        token: SampledToken,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        self.begin(index, events);
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
            events.push((id, Event::Finished { reason, sampled }));
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
        self.begin(index, events);
        match events.last_mut() {
            Some((other, Event::Prompt(list))) if *other == id => list.push(judged),
            _ => events.push((id, Event::Prompt(vec![judged]))),
        }
        if ended {
            events.push((id, Event::Finished { reason: FinishReason::Length, sampled: 0 }));
            self.release(index);
        }
        Ok(())
    }

    fn take_hidden(&mut self, index: usize, state: &[f32], events: &mut Vec<(RequestId, Event)>) {
        let Sequence { id, pool: Some(pool), .. } = &mut self.running[index] else {
            return;
        };
        let id = *id;
        if pool.take(state).is_none() {
            return self.give_up(index, events);
        }
        if let Some(vector) = pool.vector() {
            self.begin(index, events);
            events.push((id, Event::Vector(vector)));
            events.push((id, Event::Finished { reason: FinishReason::Length, sampled: 0 }));
            self.release(index);
        }
    }

    /// Before a sequence's first answer: from here on nothing of its prompt is found any more.
    pub(super) fn begin(&mut self, index: usize, events: &mut Vec<(RequestId, Event)>) {
        let sequence = &mut self.running[index];
        if let Some(cached) = sequence.known.tell() {
            events.push((sequence.id, Event::Begun { cached }));
        }
    }

    /// Ends a sequence for which the model computed no distribution. Others go on: a broken
    /// weight may touch some tokens alone.
    pub(super) fn give_up(&mut self, index: usize, events: &mut Vec<(RequestId, Event)>) {
        log::error!("the model computed NaN or infinity instead of probabilities; an answer ends");
        events.push((self.running[index].id, Event::Unusable));
        self.release(index);
    }
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
