//! How fast a model of true shape comes to this card, beside what disk, cores and bus can do: cold from a drawn checkpoint, then from
//! packed weights, then to the first token. `make bench-gpu` runs it. It needs 34 GB on the disk and 18 GB on the card.
//!
//! `loading [SHAPE] [--folder FOLDER]`
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use polder_backend::{
    Backend, BlockId, Input, OutputRow, Sampling, SequenceStep, Slot, SlotReset, StepBatch,
    TokenId, Want,
};
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::{Device, Failure, Pinned};
use polder_backend_cuda::loading::{Target, bring};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::packed::PackedTiles;
use polder_backend_cuda::packing::{Piece, Plan};
use polder_backend_cuda::weights::DeviceWeights;
use polder_model::Model;
use polder_model::drawn::{Drawing, write};
use polder_recipes::Shape;
use rustix::fs::{Advice, OFlags, fadvise};

fn main() {
    let (mut shape, mut folder) = ("qwen3-30b-a3b".to_owned(), std::env::temp_dir());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--folder" => folder = arguments.next().unwrap().into(),
            name => name.clone_into(&mut shape),
        }
    }
    let shape = Shape::find(&shape).unwrap_or_else(|e| panic!("{e}"));
    let folder = folder.join(format!("polder-loading-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{}: {}, {threads} cores", shape.name, device.name());
    let bus = bus(&device);
    println!("  bus: {bus:.1} GB/s of pinned memory");

    let began = Instant::now();
    let drawing = Drawing { seed: 1, shard_bytes: 4 << 30 };
    let bytes = write(&folder, shape.config, &drawing).unwrap_or_else(|e| panic!("{e}"));
    let files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    rate("a drawn checkpoint written", began, bytes);
    let began = Instant::now();
    files.iter().for_each(|file| File::open(file).unwrap().sync_all().unwrap());
    rate("on the disk", began, bytes);
    files.iter().for_each(|file| forget(file));
    let mut shards: Vec<&PathBuf> = files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "safetensors"))
        .collect();
    shards.sort();
    let mut best = 0.0_f64;
    let ways = [(threads, 8 << 20, true), (64, 1 << 20, true), (threads, 8 << 20, false)];
    for (n, (threads, bytes, direct)) in ways.into_iter().enumerate() {
        let found = disk(shards[n % shards.len()], threads, bytes, direct);
        let way = if direct { "past" } else { "through" };
        let each = bytes >> 20;
        println!("  disk: {found:.2} GB/s {way} the cache, {threads} threads, {each} MiB each");
        best = best.max(found);
    }
    let disk = best;
    files.iter().for_each(|file| forget(file));

    let packed = PackedTiles {
        path: folder.join("packed").join("tiles.bin"),
        weights: "drawn".into(),
        least_bytes: 0,
        reserve_bytes: 0,
        // It is measured whether it is worth it or not.
        least_packing: 0,
    };
    let tiles = {
        let model = Model::open(&folder).unwrap();
        Plan::of(&model).unwrap().bytes()
    };
    drop(load("cold, nothing in the cache", &folder, None, tiles, (disk, bus)));
    {
        let model = Model::open(&folder).unwrap();
        let plan = Plan::of(&model).unwrap();
        for _ in 0..2 {
            let began = Instant::now();
            bring(&plan, None, &mut Nowhere(&device, None), threads, |_| ()).unwrap();
            rate("packing alone, files in the cache", began, tiles);
        }
    }
    let mut backend = load(
        "cold, files in the cache, and to be kept",
        &folder,
        Some(&packed),
        tiles,
        (disk, bus),
    );
    first_token(&mut backend, "while packed weights are written");
    let began = Instant::now();
    backend.settle();
    rate("packed weights written behind that", began, tiles);
    drop(backend);
    forget(&packed.path);
    files.iter().for_each(|file| forget(file));
    let mut backend =
        load("warm, nothing in the cache", &folder, Some(&packed), tiles, (disk, bus));
    first_token(&mut backend, "of a warm start");
    drop(backend);
    // Into the cache.
    let began = Instant::now();
    std::io::copy(&mut File::open(&packed.path).unwrap(), &mut std::io::sink()).unwrap();
    rate("packed weights into the cache", began, tiles);
    drop(load("warm, all in the cache", &folder, Some(&packed), tiles, (disk, bus)));
    std::fs::remove_dir_all(&folder).unwrap();
    largest(&device, &folder, bus);
}

fn rate(what: &str, began: Instant, bytes: u64) {
    let seconds = began.elapsed().as_secs_f64();
    let gigabytes = bytes as f64 / 1e9;
    println!("  {what}: {gigabytes:.2} GB in {seconds:.2} s, {:.2} GB/s", gigabytes / seconds);
}

/// Loads it until it is ready to serve.
fn load(
    what: &str,
    folder: &Path,
    packed: Option<&PackedTiles>,
    tiles: u64,
    (disk, bus): (f64, f64),
) -> CudaBackend {
    let options = CudaOptions {
        pack: pack(),
        packed: packed.cloned(),
        kv_tokens: 65536,
        slots: 16,
        step_tokens: 2048,
        ..CudaOptions::default()
    };
    let began = Instant::now();
    let model = Arc::new(Model::open(folder).unwrap());
    let opened = began.elapsed().as_secs_f64();
    let there = std::cell::Cell::new(0.0);
    let told = |thousandths| {
        if thousandths == 1000 {
            there.set(began.elapsed().as_secs_f64());
        }
    };
    let backend = CudaBackend::load(&model, &options, told).unwrap_or_else(|e| panic!("{e}"));
    let ready = began.elapsed().as_secs_f64();
    let gigabytes = tiles as f64 / 1e9;
    println!(
        "  {what}: ready after {ready:.2} s (files open {opened:.2}, weights there {:.2}: {:.2} GB/s; the disk needs {:.2} s, the bus {:.2})",
        there.get(),
        gigabytes / there.get(),
        gigabytes / disk,
        gigabytes / bus
    );
    backend
}

fn pack() -> Pack {
    Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    }
}

fn first_token(backend: &mut CudaBackend, when: &str) {
    for n in 1..=2 {
        let began = Instant::now();
        let mut batch = StepBatch::default();
        batch.resets.push(SlotReset { slot: Slot(0), history: 0..0, sampled: 0 });
        batch.inputs.extend((0..512).map(|n| Input::Host(TokenId(n * 77 % 150_000))));
        batch.positions.extend(0..512);
        batch.block_table.extend((0..32).map(BlockId));
        batch.sequences.push(SequenceStep { slot: Slot(0), tokens: 0..512, blocks: 0..32 });
        let want = Want::Sample(Sampling::greedy());
        batch.outputs.push(OutputRow { token: 511, slot: Slot(0), want });
        let ticket = backend.submit(&batch).unwrap();
        backend.collect(ticket).unwrap();
        println!(
            "  token behind 512, {when}, try {n}: {:.0} ms",
            began.elapsed().as_secs_f64() * 1e3
        );
    }
}

/// What the system's cache has of a file goes. It is on the disk.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// GB/s of the first 2 GB of a file, so many threads with so many bytes each at a time: past the cache, or through it.
fn disk(path: &Path, threads: usize, bytes: usize, direct: bool) -> f64 {
    let flags = if direct { OFlags::DIRECT.bits().cast_signed() } else { 0 };
    let file = File::options().read(true).custom_flags(flags).open(path).unwrap();
    let pieces = (file.metadata().unwrap().len() as usize).min(2 << 30) / bytes;
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut memory = vec![0_u8; bytes + 4096];
                let skip = memory.as_ptr().align_offset(4096);
                let to = &mut memory[skip..skip + bytes];
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= pieces {
                        break;
                    }
                    file.read_exact_at(to, (n * bytes) as u64).unwrap();
                }
            });
        }
    });
    (pieces * bytes) as f64 / 1e9 / began.elapsed().as_secs_f64()
}

/// GB/s of copies of 64 MiB.
fn bus(device: &Device) -> f64 {
    const BYTES: usize = 64 << 20;
    let (from, to) = (device.pinned::<u8>(BYTES).unwrap(), device.buffer::<u8>(BYTES).unwrap());
    let stream = device.stream().unwrap();
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let began = Instant::now();
        for _ in 0..8 {
            // SAFETY: it is waited for below.
            unsafe { stream.upload(&to, 0, &from) }.unwrap();
        }
        stream.synchronize().unwrap();
        best = best.max(8.0 * BYTES as f64 / 1e9 / began.elapsed().as_secs_f64());
    }
    best
}

/// A target that takes nothing: what is left is what the cores do.
struct Nowhere<'a>(&'a Device, Option<Pinned<u8>>);

impl Target for Nowhere<'_> {
    type Slot = Pinned<u8>;

    fn slot(&self, bytes: usize) -> Result<Pinned<u8>, Failure> {
        self.0.pinned(bytes)
    }

    fn take(&mut self, _: &Piece, slot: Pinned<u8>) -> Result<(), Failure> {
        self.1 = Some(slot);
        Ok(())
    }

    fn back(&mut self, _: bool) -> Result<Option<Pinned<u8>>, Failure> {
        Ok(self.1.take())
    }
}

/// Some layers of the largest model, whole as it does not fit onto every disk: its files in the cache, packed, and to the card.
fn largest(device: &Device, folder: &Path, bus: f64) {
    const LAYERS: u64 = 10;
    let shape = Shape::find("qwen3-235b-a22b").unwrap();
    let mut config: serde_json::Value = serde_json::from_str(shape.config).unwrap();
    config["num_hidden_layers"] = LAYERS.into();
    std::fs::create_dir_all(folder).unwrap();
    let began = Instant::now();
    let drawing = Drawing { seed: 2, shard_bytes: 4 << 30 };
    let bytes = write(folder, &config.to_string(), &drawing).unwrap();
    rate(&format!("{} with {LAYERS} layers drawn", shape.name), began, bytes);
    for _ in 0..2 {
        let began = Instant::now();
        let model = Model::open(folder).unwrap();
        let (weights, _) =
            DeviceWeights::load(&model, device, None, |_| ()).unwrap_or_else(|e| panic!("{e}"));
        rate("its weights packed and to the card", began, weights.matrix_bytes());
    }
    println!("  (the bus takes {bus:.1} GB/s)");
    std::fs::remove_dir_all(folder).unwrap();
}
