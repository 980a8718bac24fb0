//! A step as the kernels read it: one run of words, written by the host, taken by the card in one copy.

use std::ops::Range;

use polder_backend::{Input, OutputRow, StepBatch, TokenId, Want};

/// Set in a token that is a slot's last one.
pub(crate) const FROM_SLOT: u32 = 1 << 31;
/// In `kv_rows`: this token's keys and values are written nowhere.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Words of one entry of `sequences`.
pub(crate) const SEQUENCE: usize = 4;

/// How large a step is, as kernels are started for it. Real steps are filled up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Size {
    /// Tokens.
    pub(crate) tokens: usize,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Rows that sample.
    pub(crate) rows: usize,
    /// Rows that are read out in another way.
    pub(crate) others: usize,
}

/// Tokens of steps of which every token samples one: those are recorded once and played again.
const BUCKETS: [usize; 11] = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64];

/// Sequences of those with guesses, and tiles of attention: fewer sizes, so that there are not too many together.
const FEW: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The largest of them.
pub(crate) const RECORDED: usize = 64;

impl Size {
    /// Of a step, exactly.
    pub(crate) fn of(step: &StepBatch) -> Self {
        Self {
            tokens: step.inputs.len(),
            sequences: step.sequences.len(),
            rows: step.outputs.iter().filter(|output| samples(output)).count(),
            others: step.outputs.iter().filter(|output| !samples(output)).count(),
        }
    }

    /// The size of the recorded step that does for this one, if one does.
    pub(crate) fn recorded(step: &StepBatch) -> Option<Self> {
        let exact = Self::of(step);
        if exact.rows != exact.tokens || exact.others > 0 {
            return None;
        }
        let tokens = BUCKETS.into_iter().find(|size| *size >= exact.tokens)?;
        let sequences = match exact.sequences == exact.tokens {
            true => tokens,
            false => FEW.into_iter().find(|size| *size >= exact.sequences)?,
        };
        Some(Self { tokens, sequences, rows: tokens, others: 0 })
    }
}

/// Fills tiles of attention up to a number that is recorded: the last one is done again, with the same result. False where there are too many.
pub(crate) fn fill_up(tiles: &mut Vec<[u32; 2]>) -> bool {
    let Some(last) = tiles.last().copied() else { return true };
    let size = FEW.into_iter().find(|size| *size >= tiles.len());
    tiles.resize(size.unwrap_or(tiles.len()), last);
    size.is_some()
}

/// Whether a row samples.
pub(crate) fn samples(output: &OutputRow) -> bool {
    matches!(output.want, Want::Sample(_))
}

/// Where each part lies in the run of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) tokens: Range<usize>,
    pub(crate) positions: Range<usize>,
    pub(crate) kv_rows: Range<usize>,
    pub(crate) sequences: Range<usize>,
    /// Which tokens' rows are read out: those that sample, those whose logits are wanted, those whose hidden states are.
    pub(crate) picks: Range<usize>,
    /// Block tables, end to end; as long as it must be.
    pub(crate) table: usize,
}

impl Layout {
    /// For steps of this size. It depends on nothing else, so that a recorded step finds everything again.
    pub(crate) fn of(size: Size) -> Self {
        let mut end = 0;
        let mut part = |len: usize| {
            let start = end;
            // Sixteen bytes each.
            end = (start + len).next_multiple_of(4);
            start..start + len
        };
        let [tokens, positions, kv_rows] = [(); 3].map(|()| part(size.tokens));
        let sequences = part(size.sequences * SEQUENCE);
        let picks = part(size.rows + size.others);
        Self { tokens, positions, kv_rows, sequences, picks, table: end }
    }

    /// Words that a step takes.
    pub(crate) fn words(&self, step: &StepBatch) -> usize {
        self.table + step.block_table.len()
    }
}

/// Writes a checked step.
pub(crate) fn write(step: &StepBatch, layout: &Layout, block_tokens: u32, words: &mut [u32]) {
    let fill = |words: &mut [u32], values: &mut dyn Iterator<Item = u32>, rest: u32| {
        for word in words {
            *word = values.next().unwrap_or(rest);
        }
    };
    let tokens = step.inputs.iter().map(|input| match input {
        Input::Host(TokenId(token)) => *token,
        Input::Sampled(slot) => FROM_SLOT | u32::from(slot.0),
    });
    fill(&mut words[layout.tokens.clone()], &mut { tokens }, 0);
    fill(&mut words[layout.positions.clone()], &mut step.positions.iter().copied(), 0);
    words[layout.kv_rows.clone()].fill(NOWHERE);
    words[layout.sequences.clone()].fill(0);
    for (n, sequence) in step.sequences.iter().enumerate() {
        let tokens = sequence.tokens.start as usize..sequence.tokens.end as usize;
        let table = &step.block_table[sequence.blocks.start as usize..sequence.blocks.end as usize];
        for token in tokens.clone() {
            let position = step.positions[token];
            let block = table[(position / block_tokens) as usize].0;
            words[layout.kv_rows.start + token] = block * block_tokens + position % block_tokens;
        }
        let length = step.positions[tokens.end - 1] + 1;
        let entry = [sequence.tokens.start, tokens.len() as u32, sequence.blocks.start, length];
        words[layout.sequences.start + n * SEQUENCE..][..SEQUENCE].copy_from_slice(&entry);
    }
    let rows =
        |kind: fn(&OutputRow) -> bool| step.outputs.iter().filter(move |output| kind(output));
    let others = rows(|output| output.want == Want::Logits)
        .chain(rows(|output| output.want == Want::Hidden));
    // A recorded step has more rows than sample; those behind them are read out for nobody.
    let picks = rows(samples).chain(others).map(|output| output.token);
    fill(&mut words[layout.picks.clone()], &mut { picks }, 0);
    let table = &mut words[layout.table..layout.table + step.block_table.len()];
    table.iter_mut().zip(&step.block_table).for_each(|(word, block)| *word = block.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use polder_backend::{BlockId, Sampling, SequenceStep, Slot};

    /// `sequences`: how many tokens each feeds, and its first position.
    fn step(sequences: &[(u32, u32)]) -> StepBatch {
        let mut step = StepBatch::default();
        for (n, (count, position)) in sequences.iter().enumerate() {
            let first = step.inputs.len() as u32;
            step.inputs.extend((0..*count).map(|i| match i {
                0 => Input::Sampled(Slot(n as u16)),
                _ => Input::Host(TokenId(i)),
            }));
            step.positions.extend(*position..*position + count);
            let blocks = step.block_table.len() as u32;
            step.block_table
                .extend((0..(position + count).div_ceil(16)).map(|b| BlockId(b * 7 + n as u32)));
            step.sequences.push(SequenceStep {
                slot: Slot(n as u16),
                tokens: first..first + count,
                blocks: blocks..step.block_table.len() as u32,
            });
            let token = first + count - 1;
            step.outputs.push(OutputRow {
                token,
                slot: Slot(n as u16),
                want: Want::Sample(Sampling::greedy()),
            });
        }
        step
    }

    #[test]
    fn steps_that_go_on_with_answers_are_recorded_in_few_sizes_and_others_are_not() {
        let size = |n| Some(Size { tokens: n, sequences: n, rows: n, others: 0 });
        assert_eq!(Size::recorded(&step(&[(1, 5)])), size(1));
        assert_eq!(Size::recorded(&step(&[(1, 5); 5])), size(8));
        assert_eq!(Size::recorded(&step(&[(1, 5); 64])), size(64));
        assert_eq!(BUCKETS[BUCKETS.len() - 1], RECORDED);
        assert_eq!(Size::recorded(&step(&[(1, 5); 65])), None);
        // A prompt of two tokens, of which one samples.
        assert_eq!(Size::recorded(&step(&[(1, 5), (2, 5)])), None);
        let guesses = |counts: &[(u32, u32)]| {
            let mut step = step(counts);
            step.outputs = step
                .sequences
                .iter()
                .flat_map(|sequence| {
                    let slot = sequence.slot;
                    let want = || Want::Sample(Sampling::greedy());
                    sequence.tokens.clone().map(move |token| OutputRow {
                        token,
                        slot,
                        want: want(),
                    })
                })
                .collect();
            Size::recorded(&step)
        };
        let size = |tokens, sequences| Some(Size { tokens, sequences, rows: tokens, others: 0 });
        assert_eq!(guesses(&[(5, 9)]), size(8, 1));
        assert_eq!(guesses(&[(4, 9), (1, 3), (4, 7)]), size(12, 4));
        assert_eq!(guesses(&[(33, 9), (33, 9)]), None);
        let mut asks = step(&[(1, 5)]);
        asks.outputs[0].want = Want::Logits;
        assert_eq!(Size::recorded(&asks), None);
    }

    #[test]
    fn tiles_are_filled_up_with_one_that_is_there_already() {
        let mut tiles = vec![[0, 1], [0, 0], [2, 0]];
        assert!(fill_up(&mut tiles));
        assert_eq!(tiles, [[0, 1], [0, 0], [2, 0], [2, 0]]);
        let mut none = Vec::new();
        assert!(fill_up(&mut none) && none.is_empty());
        assert!(!fill_up(&mut vec![[0, 0]; 65]));
    }

    #[test]
    fn a_step_is_written_where_its_size_says_and_filled_up_with_nothing() {
        let step = step(&[(1, 20), (1, 3)]);
        let layout = Layout::of(Size { tokens: 4, sequences: 4, rows: 4, others: 0 });
        let mut words = vec![99; layout.words(&step)];
        write(&step, &layout, 16, &mut words);
        assert_eq!(words[layout.tokens.clone()], [FROM_SLOT, FROM_SLOT | 1, 0, 0]);
        assert_eq!(words[layout.positions.clone()], [20, 3, 0, 0]);
        // Block 7 of the first one's table holds position 20; the second has block 1.
        assert_eq!(words[layout.kv_rows.clone()], [7 * 16 + 4, 16 + 3, NOWHERE, NOWHERE]);
        assert_eq!(words[layout.sequences.clone()][..8], [0, 1, 0, 21, 1, 1, 2, 4]);
        assert!(words[layout.sequences.clone()][8..].iter().all(|word| *word == 0));
        assert_eq!(words[layout.picks.clone()], [0, 1, 0, 0]);
        assert_eq!(words[layout.table..], [0, 7, 1]);
    }
}
