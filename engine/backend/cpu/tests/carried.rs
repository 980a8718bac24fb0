//! A block that was carried out of the pool and back, or into another engine, is the same to the bit.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{blocks, feed, host, load, logits, step, teacher_force, tiny, want_last};
use polder_backend::{Backend, BackendError, BlockId, Limits, StepBatch, StepOutput, Ticket, Want};
use polder_backend_cpu::{CpuBackend, Precision};

const BOTH: [Precision; 2] = [Precision::F32, Precision::Stored];

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 29 + 7) % 64).collect()
}

fn export(backend: &mut CpuBackend, block: BlockId) -> Vec<u8> {
    // What was in it before does not matter.
    let mut bytes = vec![1, 2, 3];
    backend.export_block(block, &mut bytes).unwrap();
    bytes
}

/// The logits after the last token, the ones before it being in the table's blocks.
fn next(backend: &mut CpuBackend, tokens: &[u32], table: &[BlockId]) -> Vec<f32> {
    let mut batch = StepBatch::default();
    let last = tokens.len() - 1;
    feed(&mut batch, 0, &host(&tokens[last..]), last as u32, table);
    want_last(&mut batch, 0, Want::Logits);
    logits(step(backend, &batch).rows.pop().unwrap())
}

#[test]
fn a_text_goes_on_in_another_engine_with_the_same_bits() {
    for name in ["qwen3", "mixed"] {
        let model = tiny(name);
        for precision in BOTH {
            let tokens = prompt(65);
            let (mut one, mut other) = (load(&model, precision), load(&model, precision));
            let whole = teacher_force(&mut one, &tokens, 65, &blocks(3, 5)).pop().unwrap();
            let table = [9, 2, 7, 30, 4].map(BlockId);
            let bytes = one.limits().block_bytes();
            for (from, to) in blocks(3, 4).iter().zip(table) {
                let block = export(&mut one, *from);
                assert_eq!(block.len() as u64, bytes, "{name} {precision:?}");
                other.import_block(to, &block).unwrap();
                assert_eq!(export(&mut other, to), block);
            }
            assert_eq!(next(&mut other, &tokens, &table), whole, "{name} {precision:?}");
        }
    }
}

#[test]
fn every_byte_and_no_neighbour_is_written() {
    for precision in BOTH {
        let mut backend = load(&tiny("mixed"), precision);
        let length = backend.limits().block_bytes() as usize;
        // All patterns, those of NaN among them.
        let random = |mut state: u32| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            (0..length).map(|_| next()).collect()
        };
        for block in 4..7 {
            backend.import_block(BlockId(block), &random(block)).unwrap();
        }
        backend.import_block(BlockId(5), &vec![0xff; length]).unwrap();
        assert_eq!(export(&mut backend, BlockId(4)), random(4));
        assert_eq!(export(&mut backend, BlockId(5)), vec![0xff; length]);
        assert_eq!(export(&mut backend, BlockId(6)), random(6));
        assert_eq!(export(&mut backend, BlockId(7)), vec![0; length]);
    }
}

#[test]
fn a_block_is_carried_between_the_steps_before_and_after_the_call() {
    let mut backend = load(&tiny("qwen3"), Precision::Stored);
    let empty = export(&mut backend, BlockId(0));
    let write = |tokens: &[u32]| {
        let mut batch = StepBatch::default();
        feed(&mut batch, 0, &host(tokens), 0, &blocks(0, 1));
        batch
    };
    // Submitted and not collected: the block has what it writes.
    let first = backend.submit(&write(&prompt(16))).unwrap();
    let after_first = export(&mut backend, BlockId(0));
    let second = backend.submit(&write(&[5; 16])).unwrap();
    // The second step runs before this is written, and does not write over it.
    backend.import_block(BlockId(0), &after_first).unwrap();
    assert_eq!(export(&mut backend, BlockId(0)), after_first);
    assert_ne!(after_first, empty);
    for ticket in [first, second] {
        assert_eq!(backend.collect(ticket).unwrap(), StepOutput::default());
    }
}

#[test]
fn what_is_no_block_is_refused_and_nothing_is_written() {
    let mut backend = load(&tiny("qwen3"), Precision::Stored);
    let Limits { blocks, .. } = backend.limits();
    let length = backend.limits().block_bytes() as usize;
    let (mut kept, refused) = (vec![7], "a refusal");
    let error = backend.export_block(BlockId(blocks), &mut kept).expect_err(refused);
    assert_eq!(error.to_string(), format!("KV block refused: number {blocks} of {blocks}"));
    assert_eq!(kept, [7]);
    for wrong in [0, length - 1, length + 1] {
        let error = backend.import_block(BlockId(0), &vec![9; wrong]).expect_err(refused);
        assert!(matches!(error, BackendError::BadBlock(_)), "{error}");
    }
    assert!(backend.import_block(BlockId(blocks), &vec![9; length]).is_err());
    assert_eq!(export(&mut backend, BlockId(0)), vec![0; length]);
}

#[test]
fn a_back_end_that_cannot_carry_blocks_says_so() {
    struct Other(Limits);
    impl Backend for Other {
        fn limits(&self) -> Limits {
            self.0
        }
        fn submit(&mut self, _: &StepBatch) -> Result<Ticket, BackendError> {
            Err(BackendError::Unsupported("run steps"))
        }
        fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
            Err(BackendError::UnknownTicket(ticket.0))
        }
    }
    let mut other = Other(load(&tiny("qwen3"), Precision::Stored).limits());
    let error = other.export_block(BlockId(0), &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "this back end cannot read KV blocks out");
    let error = other.import_block(BlockId(0), &[]).unwrap_err();
    assert_eq!(error.to_string(), "this back end cannot write KV blocks");
}
