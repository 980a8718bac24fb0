//! Weights packed, kept in a file and read from it, into plain memory instead of a card's.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/fragments.rs"]
mod fragments;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use polder_backend_cuda::device::Failure;
use polder_backend_cuda::loading::{Came, Target, bring};
use polder_backend_cuda::packed::{Keeping, Opened, PackedTiles};
use polder_backend_cuda::packing::{Piece, Plan};
use polder_model::drawn::{Drawing, write};
use polder_model::{FfnWeights, Model, Tensor};

/// Plain memory. It keeps a slot back until it is asked twice, as a copy on its way would.
struct Memory {
    parts: Vec<Vec<u8>>,
    on_their_way: Vec<Vec<u8>>,
    slots: Cell<usize>,
    most_slots: usize,
    takes_most: usize,
}

impl Memory {
    fn of(plan: &Plan<'_>) -> Self {
        Self {
            parts: plan.parts.iter().map(|part| vec![0xee; part.bytes]).collect(),
            on_their_way: Vec::new(),
            slots: Cell::new(0),
            most_slots: usize::MAX,
            takes_most: usize::MAX,
        }
    }
}

fn failure() -> Failure {
    Failure { what: "for memory".into(), why: "there is none".into(), out_of_memory: true }
}

impl Target for Memory {
    type Slot = Vec<u8>;

    fn slot(&self, bytes: usize) -> Result<Vec<u8>, Failure> {
        self.slots.set(self.slots.get() + 1);
        if self.slots.get() > self.most_slots { Err(failure()) } else { Ok(vec![0xdd; bytes]) }
    }

    fn take(&mut self, piece: &Piece, slot: Vec<u8>) -> Result<(), Failure> {
        self.takes_most = self.takes_most.checked_sub(1).ok_or_else(failure)?;
        self.parts[piece.part][piece.from..][..piece.bytes].copy_from_slice(&slot[..piece.bytes]);
        self.on_their_way.push(slot);
        Ok(())
    }

    fn back(&mut self, wait: bool) -> Result<Option<Vec<u8>>, Failure> {
        let enough = wait || self.on_their_way.len() > 3;
        Ok((enough && !self.on_their_way.is_empty()).then(|| self.on_their_way.remove(0)))
    }
}

const DENSE: &str = r#"{"quantization_config":{"quant_method":"awq","bits":4,"group_size":128},"model_type":"qwen3","hidden_size":128,"num_hidden_layers":3,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":64,"intermediate_size":256,"vocab_size":1001,"max_position_embeddings":512,
    "rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false}"#;

fn drawn() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let drawing = Drawing { seed: 3, shard_bytes: 1 << 30 };
    write(folder.path(), DENSE, &drawing).unwrap();
    Model::open(folder.path()).unwrap()
}

fn kept(folder: &Path) -> PackedTiles {
    PackedTiles {
        path: folder.join("packed").join("tiles.bin"),
        weights: "sha256 of all of them".into(),
        least_bytes: 0,
        reserve_bytes: 0,
        least_packing: 50,
    }
}

/// Loads as a card is loaded, waits until what is kept is written, and answers with where the weights came from and with what came.
fn start(plan: &Plan<'_>, kept: &PackedTiles) -> (Came, Vec<Vec<u8>>) {
    let opened = Opened::find(kept, plan);
    let mut memory = Memory::of(plan);
    let came = bring(plan, opened.as_ref(), &mut memory, 3, |_| ()).unwrap().came;
    if came != Came::Read
        && let Some(keeping) = Keeping::of(kept, plan, 100)
    {
        let parts = memory.parts.clone();
        let bytes = move |piece: &Piece, to: &mut Vec<u8>| {
            to.clear();
            to.extend_from_slice(&parts[piece.part][piece.from..][..piece.bytes]);
            Ok::<_, Failure>(())
        };
        keeping.start(bytes).unwrap().settle();
    }
    (came, memory.parts)
}

fn files(kept: &PackedTiles) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(kept.path.parent().unwrap());
    folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Rows of tensors, one below the other.
fn stack(tensors: Vec<&Tensor>) -> Vec<(&Tensor, usize)> {
    tensors.into_iter().flat_map(|t| (0..t.rows).map(move |row| (t, row))).collect()
}

#[test]
fn every_value_of_a_checkpoint_is_in_its_tiles_whatever_its_format() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cpu/goldens");
    let mut paths: Vec<PathBuf> = ["families", "families-gguf"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(goldens.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() > 15);
    for path in paths {
        let model = Model::open(&path).unwrap();
        let plan = Plan::in_pieces(&model, 20_000).unwrap();
        let mut memory = Memory::of(&plan);
        bring(&plan, None, &mut memory, 2, |_| ()).unwrap();
        let mut parts = plan.parts.iter().zip(&memory.parts);
        let (_, embedding) = parts.next().unwrap();
        let rows = model.values(&model.weights.embedding);
        for (bytes, value) in embedding.as_chunks::<2>().0.iter().zip(rows) {
            assert_eq!(half::bf16::from_le_bytes(*bytes), half::bf16::from_f32(value));
        }
        // Rows as they should lie in the next part; of several matrices one after the other.
        let mut check = |matrices: Vec<Vec<(&Tensor, usize)>>| {
            let (part, bytes) = parts.next().unwrap();
            assert_eq!(
                (part.count, part.shape.0),
                (matrices.len(), matrices[0].len()),
                "{}",
                part.name
            );
            for (rows, bytes) in matrices.iter().zip(bytes.chunks(part.bytes / part.count)) {
                let found = fragments::values(bytes, part.shape.0, part.shape.1, part.format);
                for ((tensor, row), found) in rows.iter().zip(found) {
                    let mut right = vec![0.0; tensor.cols];
                    model.row(tensor, *row, &mut right);
                    for (right, found) in right.iter().zip(found) {
                        let right = f64::from(*right);
                        // Of bf16; of a scale that was rounded to f16 (or below its numbers) elsewhere.
                        let near = (right - found).abs() <= right.abs() / 250.0 + 1e-6;
                        assert!(near, "{path:?} {}: {found} for {right}", part.name);
                    }
                }
            }
        };
        for layer in &model.weights.layers {
            check(vec![stack(vec![&layer.q, &layer.k, &layer.v])]);
            check(vec![stack(vec![&layer.o])]);
            let gated = match &layer.ffn {
                FfnWeights::Dense(gated) => std::slice::from_ref(gated),
                FfnWeights::Moe { router, experts } => {
                    check(vec![stack(vec![router])]);
                    experts.as_slice()
                }
            };
            let turns = gated.iter().map(|g| {
                let strips = (0..g.gate.rows / 16).flat_map(|s| [(&g.gate, s), (&g.up, s)]);
                strips.flat_map(|(t, s)| (16 * s..16 * s + 16).map(move |row| (t, row))).collect()
            });
            check(turns.collect());
            check(gated.iter().map(|g| stack(vec![&g.down])).collect());
        }
        let head = model.weights.output.as_ref().unwrap_or(&model.weights.embedding);
        check(vec![stack(vec![head])]);
        assert!(parts.next().is_none());
    }
}

#[test]
fn the_second_start_reads_what_the_first_one_packed() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let kept = kept(folder.path());
    for pieces in [5_000, 8 << 20] {
        let plan = Plan::in_pieces(&model, pieces).unwrap();
        let (came, first) = start(&plan, &kept);
        assert_eq!(came, Came::Packed);
        assert_eq!(files(&kept), std::slice::from_ref(&kept.path));
        assert_eq!(start(&plan, &kept), (Came::Read, first));
    }
}

#[test]
fn what_was_packed_of_other_weights_goes_and_the_newest_take_its_place() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let plan = Plan::of(&model).unwrap();
    let ours = kept(folder.path());
    start(&plan, &ours);
    let others = PackedTiles { weights: "others".into(), ..ours.clone() };
    for kept in [&others, &ours] {
        // Before anything is written: both would need room.
        assert!(Opened::find(kept, &plan).is_none());
        assert!(files(kept).is_empty());
        assert_eq!(start(&plan, kept).0, Came::Packed);
        assert_eq!(start(&plan, kept).0, Came::Read);
    }
}

#[test]
fn a_damaged_file_is_noticed_wherever_it_is_damaged_and_made_anew() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let plan = Plan::in_pieces(&model, 50_000).unwrap();
    let kept = kept(folder.path());
    let (_, right) = start(&plan, &kept);
    let whole = std::fs::read(&kept.path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let mut damaged: Vec<Vec<u8>> = (0..64).map(|at| flipped(at * 3)).collect();
    let first = plan.pieces.iter().map(|piece| 4096 + piece.at as usize);
    let ends = plan.pieces.iter().map(|piece| 4095 + piece.at as usize + piece.bytes);
    damaged.extend(first.chain(ends).map(flipped));
    damaged.extend([0, 1, 16, 20, 24, 100, 5000].map(|length| whole[..length].to_vec()));
    damaged.push([whole.as_slice(), &[0; 4096]].concat());
    damaged.push(whole[..whole.len() - 1].to_vec());
    for bytes in damaged {
        std::fs::write(&kept.path, &bytes).unwrap();
        let (came, found) = start(&plan, &kept);
        assert_ne!(came, Came::Read, "{} bytes", bytes.len());
        assert!(found == right, "other weights");
        assert!(std::fs::read(&kept.path).unwrap() == whole, "another file");
    }
    assert_eq!(start(&plan, &kept).0, Came::Read);
}

#[test]
fn a_small_model_and_a_disk_that_is_full_keep_nothing() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let plan = Plan::of(&model).unwrap();
    for kept in [
        PackedTiles { least_bytes: 1 << 40, ..kept(folder.path()) },
        PackedTiles { reserve_bytes: u64::MAX, ..kept(folder.path()) },
    ] {
        assert_eq!(start(&plan, &kept).0, Came::Packed);
        assert!(files(&kept).is_empty());
    }
    // Nor does a folder that cannot be.
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(start(&plan, &kept(&file)).0, Came::Packed);
}

#[test]
fn what_is_read_no_sooner_than_it_is_packed_is_not_kept() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let plan = Plan::of(&model).unwrap();
    let kept = kept(folder.path());
    // The cores have waited for the disk.
    assert!(Keeping::of(&kept, &plan, 49).is_none());
    assert!(Keeping::of(&kept, &plan, 50).is_some());
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cpu/goldens");
    let mut longer = 0;
    for file in std::fs::read_dir(goldens.join("families-gguf")).unwrap() {
        let model = Model::open(file.unwrap().path()).unwrap();
        let plan = Plan::of(&model).unwrap();
        let grows = plan.bytes() > model.bytes_of_files() / 4 * 5;
        assert_eq!(Keeping::of(&kept, &plan, 100).is_none(), grows);
        longer += usize::from(grows);
    }
    assert!(longer > 0, "formats of ggml become bf16");
}

#[test]
fn how_much_of_the_time_the_cores_packed_is_told() {
    let model = drawn();
    let plan = Plan::in_pieces(&model, 5_000).unwrap();
    let quick = bring(&plan, None, &mut Memory::of(&plan), 1, |_| ()).unwrap();
    assert!((1..=100).contains(&quick.packing), "{quick:?}");
    let slow = |_| std::thread::sleep(std::time::Duration::from_millis(2));
    let slow = bring(&plan, None, &mut Memory { most_slots: 2, ..Memory::of(&plan) }, 4, slow);
    assert!(slow.unwrap().packing < 50);
}

#[test]
fn a_writer_that_is_dropped_or_fails_leaves_nothing_behind() {
    let (model, folder) = (drawn(), tempfile::tempdir().unwrap());
    let plan = Plan::in_pieces(&model, 5_000).unwrap();
    let kept = kept(folder.path());
    std::fs::create_dir_all(kept.path.parent().unwrap()).unwrap();
    // A writer that was killed.
    std::fs::write(kept.path.with_extension("1.partial"), "x").unwrap();
    let failing = |_: &Piece, _: &mut Vec<u8>| Err(failure());
    Keeping::of(&kept, &plan, 100).unwrap().start(failing).unwrap().settle();
    assert!(files(&kept).is_empty());
    let slow = |piece: &Piece, to: &mut Vec<u8>| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        to.resize(piece.bytes, 0);
        Ok::<_, Failure>(())
    };
    drop(Keeping::of(&kept, &plan, 100).unwrap().start(slow));
    assert!(files(&kept).is_empty());
}

#[test]
fn progress_only_grows_and_ends_with_all_bytes_even_with_two_slots_for_many_threads() {
    let model = drawn();
    let plan = Plan::in_pieces(&model, 5_000).unwrap();
    assert!(plan.pieces.len() > 50);
    for most_slots in [2, 3, 100] {
        let heard = Cell::new(0);
        let mut memory = Memory { most_slots, ..Memory::of(&plan) };
        let told = |bytes| {
            assert!(bytes > heard.get());
            heard.set(bytes);
        };
        bring(&plan, None, &mut memory, 8, told).unwrap();
        assert_eq!(heard.get(), plan.bytes());
    }
}

#[test]
fn a_target_that_fails_ends_the_loading_and_not_the_program() {
    let model = drawn();
    let plan = Plan::in_pieces(&model, 5_000).unwrap();
    for (most_slots, takes_most) in [(0, 100), (1, 100), (50, 0), (50, 7)] {
        let mut memory = Memory { most_slots, takes_most, ..Memory::of(&plan) };
        assert_eq!(bring(&plan, None, &mut memory, 4, |_| ()), Err(failure()));
    }
}
