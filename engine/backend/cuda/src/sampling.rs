//! From logits to tokens on the card: what a step's rows ask for, packed for one upload, and what comes back as rows.
//!
//! Each slot's history (how often each token was sampled, whether it stood in the prompt) and its last token stay on the card and
//! are kept up in every step, whether its request uses penalties or not: it is little, and always right.
//!
//! In a step: [`Packed::fill`]; upload [`Packed::resets`] and run [`Sampler::reset`] before anything reads slots, where the step
//! has any; upload [`Packed::words`]; compute logits; [`Sampler::sample`], which can be recorded; download
//! [`Packed::results_len`] words of [`Memory::results`]; [`row`] for each output row. Row `i` on the card is output row `i`.

use polder_backend::check::{guesses, same_draft, usize_range};
use polder_backend::{
    BackendError, Input, OutputRow, Row, SampledToken, Sampling, StepBatch, TokenId, Want,
};

use crate::device::{Buffer, Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;

/// Most logprobs beside the chosen token's.
pub const MOST_TOPS: usize = 20;
/// Largest vocabulary: a token is 18 bits of the kernels' order.
pub const MOST_VOCAB: u32 = 1 << 18;
/// Entries of a bias that [`Room::most_words`] counts with.
const MOST_BIASES: usize = 4096;

/// Words of `RowParameters`.
const ROW_WORDS: usize = 18;
/// Words of a row's head in the results: status, token, logprob, number of tops.
const HEAD: usize = 4;
const TOP_WORDS: usize = 2 * MOST_TOPS;

const USED: u32 = 1;
const DRAWS: u32 = 2;
const PENALTIES: u32 = 4;
const MASK: u32 = 8;
const LOGPROBS: u32 = 16;
const FILTERS: u32 = 32;

const SAMPLED: u32 = 1;
const UNUSABLE: u32 = 2;
const VOID: u32 = 3;

const BINS: usize = 1024;
const GROUPS: usize = 2048;
const ADJUST_CHUNK: u32 = 2048;
const ADJUST_THREADS: u32 = 256;
const WEIGH_CHUNK: u32 = 8192;
const WEIGH_CHUNKS: usize = 32;
const CHOOSE_THREADS: u32 = 1024;
const CHOOSE_SHARED: u32 = 80 * 1024;

/// Which kernels a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Every row takes the best token, and nothing else is asked for.
    #[default]
    Greedy,
    /// Any parameters.
    General,
}

/// The way that does what all rows want.
pub fn way(outputs: &[OutputRow]) -> Way {
    let plain = |want: &Sampling| {
        want.temperature == 0.0
            && !penalises(want)
            && want.bias.is_empty()
            && want.mask.is_none()
            && want.logprobs.is_none()
    };
    match outputs.iter().all(|row| !matches!(&row.want, Want::Sample(want) if !plain(want))) {
        true => Way::Greedy,
        false => Way::General,
    }
}

fn penalises(want: &Sampling) -> bool {
    want.repetition_penalty != 1.0 || want.presence_penalty != 0.0 || want.frequency_penalty != 0.0
}

/// How much there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Most output rows of a step.
    pub rows: usize,
    /// Slots.
    pub slots: usize,
    /// Vocabulary, at most [`MOST_VOCAB`].
    pub vocab: u32,
}

impl Room {
    /// Words of parameters that a step can have, where no row biases more than 4096 tokens.
    pub fn most_words(&self) -> usize {
        let mask = self.vocab.div_ceil(32) as usize;
        self.rows * (ROW_WORDS + 1 + mask) + self.rows.min(self.slots) * 2 * MOST_BIASES
    }
}

/// What a step's rows want, as the card takes it. Used again and again.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// To [`Memory::words`].
    pub words: Vec<u32>,
    /// To [`Memory::resets`]; empty where no slot starts anew.
    pub resets: Vec<u32>,
    /// Slots that start anew.
    pub reset_slots: u32,
    /// Which kernels.
    pub way: Way,
    rows: usize,
    tops: bool,
}

impl Packed {
    /// Takes a step that has been checked. `rows` is at least its number of output rows: those behind them, and those that do not
    /// sample, are left alone on the card.
    pub fn fill(&mut self, step: &StepBatch, rows: usize, room: &Room) -> Result<(), BackendError> {
        let outputs = &step.outputs;
        if outputs.len() > rows || rows > room.rows {
            let most = rows.min(room.rows);
            return bad(format!("{} output rows, at most {most} fit", outputs.len()));
        }
        self.fill_resets(step);
        self.way = way(outputs);
        self.rows = rows;
        self.tops = false;
        self.words.clear();
        self.words.resize(rows * ROW_WORDS, 0);
        let mut start = 0;
        while start < outputs.len() {
            let goes_on = |pair: &[OutputRow]| same_draft(&pair[0], &pair[1]);
            let length = 1 + outputs[start..].windows(2).take_while(|pair| goes_on(pair)).count();
            self.fill_draft(step, start, length)?;
            start += length;
        }
        if self.words.len() > room.most_words() {
            return bad(format!(
                "{} words of sampling parameters (masks, biases), at most {} fit",
                self.words.len(),
                room.most_words()
            ));
        }
        Ok(())
    }

    /// Words to download after the step.
    pub fn results_len(&self) -> usize {
        self.rows * if self.tops { HEAD + TOP_WORDS } else { HEAD }
    }

    fn fill_draft(
        &mut self,
        step: &StepBatch,
        start: usize,
        length: usize,
    ) -> Result<(), BackendError> {
        let guesses_at = self.words.len() as u32;
        if length > 1 {
            self.words.extend(guesses(step, start + length - 1).iter().map(|guess| match guess {
                Input::Host(token) => token.0,
                Input::Sampled(_) => unreachable!("a checked draft has only tokens that are known"),
            }));
        }
        let mut biased: Option<(&[(TokenId, f32)], u32)> = None;
        for i in 0..length {
            let output = &step.outputs[start + i];
            let Want::Sample(want) = &output.want else { continue };
            let top = usize::from(want.logprobs.unwrap_or(0));
            if top > MOST_TOPS {
                return bad(format!("{top} logprobs for a token, at most {MOST_TOPS} fit"));
            }
            self.tops |= top > 0;
            // The rows of a draft are of one request.
            let bias_at = match biased {
                Some((bias, at)) if bias == want.bias => at,
                _ => self.push_bias(&want.bias),
            };
            biased = Some((&want.bias, bias_at));
            let mask_at = self.words.len() as u32;
            self.words.extend(want.mask.iter().flatten());
            let draws = want.temperature > 0.0;
            let flags = [
                (USED, true),
                (DRAWS, draws),
                (PENALTIES, penalises(want)),
                (MASK, want.mask.is_some()),
                (LOGPROBS, want.logprobs.is_some()),
                (FILTERS, draws && (want.top_k > 0 || want.top_p < 1.0)),
            ];
            let flags = flags.iter().filter(|(_, on)| *on).map(|(flag, _)| flag).sum();
            let draw = want.draw(step.positions[output.token as usize]) << 11;
            let words: [u32; ROW_WORDS] = [
                flags,
                u32::from(output.slot.0),
                if i == 0 { length as u32 } else { 0 },
                guesses_at,
                i as u32,
                bias_at,
                want.bias.len() as u32,
                mask_at,
                want.top_k,
                top as u32,
                want.temperature.to_bits(),
                want.top_p.to_bits(),
                want.min_p.to_bits(),
                want.presence_penalty.to_bits(),
                want.frequency_penalty.to_bits(),
                want.repetition_penalty.to_bits(),
                draw as u32,
                (draw >> 32) as u32,
            ];
            let at = (start + i) * ROW_WORDS;
            self.words[at..at + ROW_WORDS].copy_from_slice(&words);
        }
        Ok(())
    }

    /// A bias by ascending token; what one token gets twice stays in order.
    fn push_bias(&mut self, bias: &[(TokenId, f32)]) -> u32 {
        let at = self.words.len();
        let mut sorted: Vec<&(TokenId, f32)> = bias.iter().collect();
        sorted.sort_by_key(|(token, _)| *token);
        self.words.extend(sorted.iter().flat_map(|(token, value)| [token.0, value.to_bits()]));
        at as u32
    }

    fn fill_resets(&mut self, step: &StepBatch) {
        self.resets.clear();
        // Of a slot that starts twice, the last start counts.
        let later = |at: usize| step.resets[at + 1..].iter().map(|reset| reset.slot);
        let resets: Vec<_> = (step.resets.iter().enumerate())
            .filter(|(at, reset)| later(*at).all(|slot| slot != reset.slot))
            .map(|(_, reset)| reset)
            .collect();
        self.reset_slots = resets.len() as u32;
        let mut at = resets.len() * 4;
        for reset in &resets {
            let length = reset.history.len();
            self.resets.extend([
                u32::from(reset.slot.0),
                at as u32,
                length as u32,
                length as u32 - reset.sampled,
            ]);
            at += length;
        }
        for reset in &resets {
            self.resets.extend(step.histories[usize_range(&reset.history)].iter().map(|t| t.0));
        }
    }
}

fn bad<T>(what: String) -> Result<T, BackendError> {
    Err(BackendError::BadBatch(what))
}

/// What the card says of row `at` of a step with `rows` rows on the card; `logprobs`: whether the row asked for any.
pub fn row(results: &[u32], rows: usize, at: usize, logprobs: bool) -> Result<Row, BackendError> {
    let head = &results[at * HEAD..(at + 1) * HEAD];
    match head[0] {
        SAMPLED => {}
        UNUSABLE => return Ok(Row::Unusable),
        VOID => return Ok(Row::Void),
        other => {
            return Err(BackendError::Device(format!("row {at} was left in the state {other}")));
        }
    }
    let top = match head[3] as usize {
        0 => Vec::new(),
        count => {
            let tops = &results[rows * HEAD + at * TOP_WORDS..][..count.min(MOST_TOPS) * 2];
            tops.chunks(2).map(|top| (TokenId(top[0]), f32::from_bits(top[1]))).collect()
        }
    };
    let logprob = logprobs.then(|| f32::from_bits(head[2]));
    Ok(Row::Sampled(SampledToken { token: TokenId(head[1]), logprob, top }))
}

/// What sampling keeps on the card.
#[derive(Debug)]
pub struct Memory {
    /// Parameters of a step.
    pub words: Buffer<u32>,
    /// Slots that start anew, and their histories; see [`Memory::make_room`].
    pub resets: Buffer<u32>,
    /// `[slots]`: the token that each slot sampled last.
    pub last: Buffer<u32>,
    /// Heads, then tops.
    pub results: Buffer<u32>,
    room: Room,
    count_stride: u32,
    counts: Buffer<u16>,
    best: Buffer<u64>,
    likely: Buffer<u64>,
    chunk_sums: Buffer<u64>,
    bin_sums: Buffer<u64>,
    bin_counts: Buffer<u32>,
    maxima: Buffer<f32>,
    seen: Buffer<u32>,
    done: Buffer<u32>,
    drafted: Buffer<u32>,
}

impl Memory {
    /// Takes it, for slots that have seen nothing.
    ///
    /// # Panics
    /// If the vocabulary is larger than [`MOST_VOCAB`].
    pub fn new(device: &Device, room: Room) -> Result<Self, Failure> {
        assert!(room.vocab <= MOST_VOCAB, "a vocabulary of {}, at most {MOST_VOCAB}", room.vocab);
        let rows = room.rows;
        let count_stride = room.vocab.next_multiple_of(8);
        let memory = Self {
            words: device.buffer(room.most_words())?,
            resets: device.buffer(4096)?,
            last: device.buffer(room.slots)?,
            results: device.buffer(rows * (HEAD + TOP_WORDS))?,
            room,
            count_stride,
            counts: device.buffer(room.slots * count_stride as usize)?,
            best: device.buffer(rows)?,
            likely: device.buffer(rows)?,
            chunk_sums: device.buffer(rows * WEIGH_CHUNKS)?,
            bin_sums: device.buffer(rows * BINS)?,
            bin_counts: device.buffer(rows * BINS)?,
            maxima: device.buffer(rows * GROUPS)?,
            seen: device.buffer(rows)?,
            done: device.buffer(rows)?,
            drafted: device.buffer(rows)?,
        };
        let Self { last, bin_counts, seen, done, drafted, .. } = &memory;
        for words in [last, bin_counts, seen, done, drafted] {
            words.fill(0)?;
        }
        for words in [&memory.best, &memory.likely, &memory.bin_sums] {
            words.fill(0)?;
        }
        memory.counts.fill(0)?;
        Ok(memory)
    }

    /// Makes [`Memory::resets`] long enough. Waits for the card where it was not.
    pub fn make_room(&mut self, device: &Device, resets: usize) -> Result<(), Failure> {
        if self.resets.len() < resets {
            self.resets = device.buffer(resets.next_power_of_two())?;
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArgs {
    logits: Ptr,
    words: Ptr,
    counts: Ptr,
    last: Ptr,
    best: Ptr,
    likely: Ptr,
    chunk_sums: Ptr,
    bin_sums: Ptr,
    bin_counts: Ptr,
    maxima: Ptr,
    seen: Ptr,
    done: Ptr,
    drafted: Ptr,
    heads: Ptr,
    tops: Ptr,
    vocab: u32,
    stride: u32,
    count_stride: u32,
    chunk: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ResetArgs {
    resets: Ptr,
    counts: Ptr,
    last: Ptr,
    count_stride: u32,
}

/// The kernels.
#[derive(Debug)]
pub struct Sampler {
    greedy: Kernel,
    adjust: Kernel,
    weigh: Kernel,
    choose: Kernel,
    clear: Kernel,
    remember: Kernel,
    processors: u32,
    /// Kernels live as long as it.
    _loaded: Loaded,
}

impl Sampler {
    /// Loads them.
    pub fn load(pack: &Pack, device: &Device) -> Result<Self, KernelError> {
        let loaded = pack.load(module("sampling"), device)?;
        let choose = loaded.kernel(c"sample_choose")?;
        choose.allow_shared(CHOOSE_SHARED)?;
        Ok(Self {
            greedy: loaded.kernel(c"sample_greedy")?,
            adjust: loaded.kernel(c"sample_adjust")?,
            weigh: loaded.kernel(c"sample_weigh")?,
            choose,
            clear: loaded.kernel(c"sample_clear")?,
            remember: loaded.kernel(c"sample_remember")?,
            processors: device.processors(),
            _loaded: loaded,
        })
    }

    /// Starts `slots` slots anew, as [`Memory::resets`] says. Not for graphs: the number is fixed.
    ///
    /// # Safety
    /// What [`Packed::resets`] held was uploaded before in the stream, and `memory` stays until the work is done.
    pub unsafe fn reset(
        &self,
        stream: &Stream,
        memory: &Memory,
        slots: u32,
    ) -> Result<(), Failure> {
        if slots == 0 {
            return Ok(());
        }
        let arguments = ResetArgs {
            resets: memory.resets.at(),
            counts: memory.counts.at(),
            last: memory.last.at(),
            count_stride: memory.count_stride,
        };
        let shape = Shape { grid: [32, slots, 1], block: 256, shared: 0, overlaps: true };
        // SAFETY: the caller's promise; counts and last reach over all slots, and tokens are below the vocabulary.
        unsafe {
            stream.launch(&self.clear, &shape, &arguments)?;
            stream.launch(&self.remember, &shape, &arguments)
        }
    }

    /// Samples `rows` rows of logits, `[rows][stride]` f32, as [`Memory::words`] says, into [`Memory::results`] and the slots.
    /// Logits of rows with penalties, bias or mask are changed.
    ///
    /// # Safety
    /// What [`Packed::words`] held for so many rows and this way was uploaded before in the stream, or will be before the recorded
    /// graph runs; `logits` reaches as far as said, and it and `memory` stay until the work is done.
    ///
    /// # Panics
    /// If there are more rows than room, or `stride` is below the vocabulary or no multiple of 4.
    pub unsafe fn sample(
        &self,
        stream: &Stream,
        memory: &Memory,
        way: Way,
        (logits, stride): (Ptr, u32),
        rows: u32,
    ) -> Result<(), Failure> {
        let vocab = memory.room.vocab;
        assert!(rows as usize <= memory.room.rows, "{rows} rows of {}", memory.room.rows);
        assert!(stride >= vocab && stride.is_multiple_of(4), "rows of {stride} for {vocab} tokens");
        if rows == 0 {
            return Ok(());
        }
        let chunk = greedy_chunk(rows, vocab, self.processors);
        let arguments = SampleArgs {
            logits,
            words: memory.words.at(),
            counts: memory.counts.at(),
            last: memory.last.at(),
            best: memory.best.at(),
            likely: memory.likely.at(),
            chunk_sums: memory.chunk_sums.at(),
            bin_sums: memory.bin_sums.at(),
            bin_counts: memory.bin_counts.at(),
            maxima: memory.maxima.at(),
            seen: memory.seen.at(),
            done: memory.done.at(),
            drafted: memory.drafted.at(),
            heads: memory.results.at(),
            tops: memory.results.offset(rows as usize * HEAD),
            vocab,
            stride,
            count_stride: memory.count_stride,
            chunk,
        };
        let launch = |kernel: &Kernel, grid: [u32; 2], block: u32, shared: u32| {
            let shape = Shape { grid: [grid[0], grid[1], 1], block, shared, overlaps: true };
            // SAFETY: the caller's promise; everything else is as long as `room` says.
            unsafe { stream.launch(kernel, &shape, &arguments) }
        };
        match way {
            Way::Greedy => launch(&self.greedy, [vocab.div_ceil(chunk), rows], 256, 0),
            Way::General => {
                let chunks = |chunk| [vocab.div_ceil(chunk), rows];
                launch(&self.adjust, chunks(ADJUST_CHUNK), ADJUST_THREADS, 0)?;
                launch(&self.weigh, chunks(WEIGH_CHUNK), CHOOSE_THREADS, 0)?;
                launch(&self.choose, [rows, 1], CHOOSE_THREADS, CHOOSE_SHARED)
            }
        }
    }
}

/// Logits of one block where only the best is asked for: all blocks at once on the card, of at least one load for each thread.
fn greedy_chunk(rows: u32, vocab: u32, processors: u32) -> u32 {
    let blocks = (6 * processors / rows).max(1);
    vocab.div_ceil(blocks).next_multiple_of(1024)
}

#[cfg(test)]
mod tests {
    use polder_backend::check::Slots;
    use polder_backend::{BlockId, Limits, SequenceStep, Slot, SlotReset};
    use proptest::prelude::*;

    use super::*;

    const ROOM: Room = Room { rows: 64, slots: 4, vocab: 1000 };

    fn output(token: u32, slot: u16, want: Sampling) -> OutputRow {
        OutputRow { token, slot: Slot(slot), want: Want::Sample(want) }
    }

    fn step(tokens: u32, outputs: Vec<OutputRow>) -> StepBatch {
        StepBatch {
            inputs: (0..tokens).map(|t| Input::Host(TokenId(100 + t))).collect(),
            positions: (50..50 + tokens).collect(),
            outputs,
            ..StepBatch::default()
        }
    }

    fn packed(step: &StepBatch, rows: usize) -> Packed {
        let mut packed = Packed::default();
        packed.fill(step, rows, &ROOM).unwrap();
        packed
    }

    fn words(packed: &Packed, row: usize) -> &[u32] {
        &packed.words[row * ROW_WORDS..(row + 1) * ROW_WORDS]
    }

    #[test]
    fn only_rows_that_take_the_best_token_go_the_short_way() {
        let greedy = Sampling::greedy;
        let of = |want| way(&[output(0, 0, greedy()), output(1, 1, want)]);
        assert_eq!(of(greedy()), Way::Greedy);
        assert_eq!(of(Sampling { top_k: 40, top_p: 0.9, seed: 7, ..greedy() }), Way::Greedy);
        for want in [
            Sampling { temperature: 0.1, ..greedy() },
            Sampling { presence_penalty: 0.1, ..greedy() },
            Sampling { frequency_penalty: 0.1, ..greedy() },
            Sampling { repetition_penalty: 1.1, ..greedy() },
            Sampling { bias: vec![(TokenId(1), 1.0)], ..greedy() },
            Sampling { mask: Some(vec![1]), ..greedy() },
            Sampling { logprobs: Some(0), ..greedy() },
        ] {
            assert_eq!(of(want.clone()), Way::General, "{want:?}");
        }
        let hidden = OutputRow { token: 0, slot: Slot(0), want: Want::Hidden };
        assert_eq!(way(&[hidden]), Way::Greedy);
    }

    #[test]
    fn a_draft_is_packed_once_with_all_of_its_guesses() {
        let want =
            Sampling { bias: vec![(TokenId(9), 1.0), (TokenId(3), 2.0)], ..Sampling::greedy() };
        let other = OutputRow { token: 3, slot: Slot(2), want: Want::Logits };
        let mut rows: Vec<OutputRow> = (0..3).map(|t| output(t, 1, want.clone())).collect();
        rows.extend([other, output(4, 3, Sampling::greedy())]);
        let packed = packed(&step(5, rows), 8);
        let [draft, guesses_at, guesses, bias_at] = [2, 3, 4, 5];
        let field =
            |field: usize| -> Vec<u32> { (0..8).map(|row| words(&packed, row)[field]).collect() };
        assert_eq!(field(0), [USED, USED, USED, 0, USED, 0, 0, 0]);
        assert_eq!(field(draft), [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(field(guesses)[..3], [0, 1, 2]);
        let at = words(&packed, 2)[guesses_at] as usize;
        assert_eq!(packed.words[at..at + 2], [101, 102]);
        assert!(field(bias_at)[..3].iter().all(|at| *at == field(bias_at)[0]));
        let at = field(bias_at)[0] as usize;
        assert_eq!(packed.words[at..at + 4], [3, 2.0_f32.to_bits(), 9, 1.0_f32.to_bits()]);
        assert_eq!(packed.results_len(), 8 * HEAD);
    }

    #[test]
    fn a_slot_that_starts_twice_starts_as_the_last_one_says() {
        let reset = |slot, history, sampled| SlotReset { slot: Slot(slot), history, sampled };
        let step = StepBatch {
            resets: vec![reset(1, 0..2, 1), reset(0, 2..3, 0), reset(1, 3..6, 2)],
            histories: (10..16).map(TokenId).collect(),
            ..StepBatch::default()
        };
        let packed = packed(&step, 1);
        assert_eq!(packed.reset_slots, 2);
        assert_eq!(packed.resets, [0, 8, 1, 1, 1, 9, 3, 1, 12, 13, 14, 15]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_what_it_is() {
        let refused = |want: Sampling, rows| {
            let step = step(1, vec![output(0, 0, want)]);
            Packed::default().fill(&step, rows, &ROOM).unwrap_err().to_string()
        };
        let greedy = Sampling::greedy;
        assert!(refused(greedy(), 0).contains("1 output rows"));
        assert!(refused(greedy(), 65).contains("at most 64"));
        let want = Sampling { logprobs: Some(21), ..greedy() };
        assert!(refused(want, 1).contains("21 logprobs"));
        let bias = vec![(TokenId(1), 0.1); ROOM.most_words()];
        assert!(refused(Sampling { bias, ..greedy() }, 1).contains("words of sampling parameters"));
    }

    /// Rows of any kind for any slots; some steps are refused.
    fn any_step() -> impl Strategy<Value = StepBatch> {
        let token = || (0..ROOM.vocab + 2).prop_map(TokenId);
        let want = (
            prop::collection::vec((token(), -2.0..2.0_f32), 0..4),
            prop::option::of(prop::collection::vec(any::<u32>(), 32)),
            prop::option::of(0..22_u8),
            0.0..1.0_f32,
        );
        let want = want.prop_map(|(bias, mask, logprobs, temperature)| {
            Want::Sample(Sampling { bias, mask, logprobs, temperature, ..Sampling::greedy() })
        });
        let want = prop_oneof![9 => want, 1 => Just(Want::Logits), 1 => Just(Want::Hidden)];
        let sequence = prop::collection::vec((token(), want), 1..6);
        let reset = (0..4_u16, 0..4_u32, 0..3_u32, 0..2_u32);
        let histories = prop::collection::vec(token(), 5);
        let sequences = prop::collection::vec(sequence, 0..4);
        (0..4_u16, sequences, prop::collection::vec(reset, 0..3), histories).prop_map(
            |(slot, sequences, resets, histories)| {
                let mut step = StepBatch { histories, ..StepBatch::default() };
                for (i, rows) in (0_u16..).zip(sequences) {
                    let slot = (slot + i) % 4;
                    let start = step.inputs.len() as u32;
                    for (at, (token, want)) in rows.into_iter().enumerate() {
                        step.inputs.push(Input::Host(token));
                        step.positions.push(at as u32);
                        let token = start + at as u32;
                        step.outputs.push(OutputRow { token, slot: Slot(slot), want });
                    }
                    let tokens = start..step.inputs.len() as u32;
                    step.block_table = vec![BlockId(0)];
                    step.sequences.push(SequenceStep { slot: Slot(slot), tokens, blocks: 0..1 });
                }
                step.resets.extend(resets.into_iter().map(|(slot, start, length, sampled)| {
                    SlotReset { slot: Slot(slot), history: start..start + length, sampled }
                }));
                step
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn every_step_that_is_admitted_is_packed_within_what_is_uploaded(step in any_step()) {
            let limits = Limits {
                step_tokens: 64,
                slots: 4,
                blocks: 1,
                block_tokens: 16,
                context: 16,
                vocab: ROOM.vocab,
                kv_bytes_per_token: 1,
            };
            if Slots::new(4).admit(&step, &limits).is_err() {
                return Ok(());
            }
            let tops = |row: &OutputRow| matches!(&row.want,
                Want::Sample(want) if usize::from(want.logprobs.unwrap_or(0)) > MOST_TOPS);
            let mut packed = Packed::default();
            let filled = packed.fill(&step, 16, &ROOM);
            prop_assert_eq!(filled.is_err(), step.outputs.iter().any(tops) || step.outputs.len() > 16);
            if filled.is_err() {
                return Ok(());
            }
            let (mut rows, mut open) = (0, 0);
            for (at, output) in step.outputs.iter().enumerate() {
                let row = words(&packed, at);
                let Want::Sample(want) = &output.want else {
                    prop_assert!(row.iter().all(|word| *word == 0));
                    continue;
                };
                // Drafts follow each other without a gap, and every row is in one.
                if row[2] > 0 {
                    prop_assert_eq!(open, 0);
                    open = row[2];
                }
                open -= 1;
                rows += 1;
                let there = |at: u32, count: usize| packed.words.get(at as usize..at as usize + count);
                let before: Vec<u32> = guesses(&step, at)
                    .iter()
                    .map(|guess| if let Input::Host(token) = guess { token.0 } else { u32::MAX })
                    .collect();
                prop_assert_eq!(there(row[3], row[4] as usize), Some(&before[..]));
                let bias = there(row[5], 2 * want.bias.len()).unwrap();
                prop_assert!(bias.chunks(2).is_sorted_by_key(|entry| entry[0]));
                if let Some(mask) = &want.mask {
                    prop_assert_eq!(there(row[7], mask.len()), Some(&mask[..]));
                }
            }
            prop_assert_eq!(open, 0);
            let used = packed.words.chunks(ROW_WORDS).take(16).filter(|row| row[0] & USED > 0);
            prop_assert_eq!(used.count(), rows);
            for reset in packed.resets.chunks(4).take(packed.reset_slots as usize) {
                let end = (reset[1] + reset[2]) as usize;
                prop_assert!(end <= packed.resets.len() && reset[3] <= reset[2]);
            }
        }
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let mut results = vec![0; 3 * (HEAD + TOP_WORDS)];
        results[..12].copy_from_slice(&[
            UNUSABLE,
            0,
            0,
            0,
            SAMPLED,
            7,
            (-0.5_f32).to_bits(),
            2,
            VOID,
            0,
            0,
            0,
        ]);
        let tops = [7, (-0.5_f32).to_bits(), 9, (-1.5_f32).to_bits()];
        results[12 + TOP_WORDS..][..4].copy_from_slice(&tops);
        let read = |at| row(&results, 3, at, true).unwrap();
        assert_eq!(read(0), Row::Unusable);
        assert_eq!(read(2), Row::Void);
        let top = vec![(TokenId(7), -0.5), (TokenId(9), -1.5)];
        let sampled = SampledToken { token: TokenId(7), logprob: Some(-0.5), top };
        assert_eq!(read(1), Row::Sampled(sampled));
        results[0] = 0;
        assert!(row(&results, 3, 0, true).unwrap_err().to_string().contains("row 0"));
    }

    #[test]
    fn blocks_of_the_short_way_cover_the_row_and_the_card() {
        for rows in [1, 2, 8, 33, 64, 1000] {
            for vocab in [1, 1000, 49152, 151_936, 262_144] {
                let chunk = greedy_chunk(rows, vocab, 132);
                assert!(chunk.is_multiple_of(1024) && chunk < vocab + 1024);
                assert!(vocab.div_ceil(chunk) * rows <= 792.max(rows));
            }
        }
    }
}
