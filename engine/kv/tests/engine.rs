//! A conversation goes on after a restart, from disk, with the same bits as if everything had been read again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use polder_backend::{
    Backend, BlockId, Input, OutputRow, Row, SequenceStep, Slot, StepBatch, TokenId, Want,
};
use polder_backend_cpu::{CpuBackend, CpuOptions, Precision};
use polder_kv::{Kept, ModelDigest, Store, StoreOptions, Tier};
use polder_model::Model;

fn engine(model: &Arc<Model>, precision: Precision) -> CpuBackend {
    let options =
        CpuOptions { precision, kv_tokens: 512, slots: 1, threads: 1, ..CpuOptions::default() };
    CpuBackend::load(model, &options).unwrap()
}

/// Feeds the tokens from this position on and returns the logits after the last one.
fn read(engine: &mut CpuBackend, text: &[TokenId], from: usize, table: &[BlockId]) -> Vec<f32> {
    let count = (text.len() - from) as u32;
    let step = StepBatch {
        inputs: text[from..].iter().copied().map(Input::Host).collect(),
        positions: (from as u32..text.len() as u32).collect(),
        sequences: vec![SequenceStep {
            slot: Slot(0),
            tokens: 0..count,
            blocks: 0..table.len() as u32,
        }],
        block_table: table.to_vec(),
        outputs: vec![OutputRow { token: count - 1, slot: Slot(0), want: Want::Logits }],
        ..StepBatch::default()
    };
    let ticket = engine.submit(&step).unwrap();
    match engine.collect(ticket).unwrap().rows.pop() {
        Some(Row::Logits(logits)) => logits,
        other => panic!("expected logits, got {other:?}"),
    }
}

#[test]
fn a_conversation_goes_on_from_disk_with_the_same_bits_as_one_that_is_read_again() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/cpu/goldens/tiny");
    for name in ["qwen3", "mixed"] {
        let model = Arc::new(Model::open(models.join(name).join("model.gguf")).unwrap());
        for precision in [Precision::F32, Precision::Stored] {
            let text: Vec<TokenId> = (0..100).map(|n| TokenId((n * 29 + 7) % 64)).collect();
            let folder = tempfile::tempdir().unwrap();
            let mut first = engine(&model, precision);
            let block_bytes = first.limits().block_bytes() as usize;
            let options = || StoreOptions {
                folder: Some(folder.path().to_owned()),
                host_bytes: 1 << 20,
                disk_bytes: 1 << 20,
                disk_reserve_bytes: 0,
                ..StoreOptions::new(ModelDigest([1; 32]), block_bytes, 16)
            };

            // The first 70 tokens are read, and four blocks are full.
            let table: Vec<BlockId> = (0..7).map(BlockId).collect();
            read(&mut first, &text[..70], 0, &table[..5]);
            let store = Store::open(options()).unwrap();
            let mut parent = store.root();
            for (block, tokens) in table.iter().zip(text[..70].chunks_exact(16)) {
                let mut bytes = Vec::new();
                first.export_block(*block, &mut bytes).unwrap();
                let put = store.put("ada", &parent, tokens, bytes);
                assert_eq!(put.kept, Kept::New);
                parent = put.digest;
            }
            let whole = read(&mut first, &text, 70, &table);
            assert!(store.settle(Duration::from_secs(60)));
            drop((store, first));

            let (store, mut second) = (Store::open(options()).unwrap(), engine(&model, precision));
            assert!(store.find("bob", &text).blocks.is_empty());
            let found = store.find("ada", &text);
            assert_eq!(found.blocks.len(), 4);
            let (done, blocks) = channel();
            for (at, handle) in found.blocks.iter().enumerate() {
                assert_eq!(handle.tier, Tier::Disk);
                let done = done.clone();
                store.read(handle, move |bytes| done.send((at, bytes.unwrap())).unwrap());
            }
            // Elsewhere in the pool than before.
            let table: Vec<BlockId> = [9, 3, 20, 1, 8, 30, 7].map(BlockId).to_vec();
            for (at, bytes) in blocks.iter().take(4) {
                second.import_block(table[at], &bytes).unwrap();
            }
            assert_eq!(read(&mut second, &text, 64, &table), whole, "{name}, {precision:?}");
        }
    }
}
