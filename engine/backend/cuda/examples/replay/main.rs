//! Agents and people who chat on one card: how many agents before those who chat notice? The scheduler and the back end are the
//! real ones, weights are drawn. `make bench-gpu` runs it.
//!
//! `replay [MODEL] [--trace FILE] [--agents 4,8] [--first 4] [--most 64] [--points 4] [--seconds 40] [--kv fp8|bf16] [--host-gib 0]
//! [--drafts 0] [--step 1024] [--read-slope 1.0] [--decode-slope 1.0] [--first-bound 1.0] [--gap-bound 0.05] [--gap-ms 0]`, or
//! `replay --write FILE [--seed 1] [--speakers 64] [--people 4]` for the trace alone, which others can play too.
#![allow(clippy::unwrap_used, reason = "it measures; what fails ends it")]

mod figures;
mod play;
#[path = "../models/shapes.rs"]
mod shapes;
mod traffic;

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backend::Backend;
use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::cost;
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;
use polder_kv::{ModelDigest, Store, StoreOptions};
use polder_scheduler::{Config, Cost, EngineHandle, Stats, spawn_with_store};

use figures::{Bounds, Seen};
use play::Play;

struct Asked {
    model: String,
    trace: Option<String>,
    write: Option<String>,
    agents: Vec<usize>,
    first: usize,
    most: usize,
    points: usize,
    seconds: f64,
    warm: f64,
    kv: KvFormat,
    host_gib: u64,
    drafts: u32,
    step: u32,
    slopes: (f64, f64),
    bounds: Bounds,
    /// What a step that reads beside answers may take, if not what an engine is given; nothing for no such bound.
    gap: Option<Duration>,
    seed: u64,
    speakers: usize,
    people: usize,
}

impl Asked {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut asked = Self {
            model: "qwen3-30b-a3b".to_owned(),
            trace: None,
            write: None,
            agents: Vec::new(),
            first: 4,
            most: 64,
            points: 4,
            seconds: 40.0,
            warm: 60.0,
            kv: KvFormat::Fp8,
            host_gib: 0,
            drafts: 0,
            step: cost::STEP_WORK,
            slopes: (1.0, 1.0),
            bounds: Bounds { first_p95: 1.0, gap_p99: 0.05 },
            gap: None,
            seed: 1,
            speakers: 64,
            people: 4,
        };
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--trace" => asked.trace = Some(value()),
                "--write" => asked.write = Some(value()),
                "--agents" => {
                    asked.agents = value().split(',').map(|n| n.parse().unwrap()).collect();
                }
                "--first" => asked.first = value().parse().unwrap(),
                "--most" => asked.most = value().parse().unwrap(),
                "--points" => asked.points = value().parse().unwrap(),
                "--seconds" => asked.seconds = value().parse().unwrap(),
                "--warm" => asked.warm = value().parse().unwrap(),
                "--kv" => {
                    asked.kv = if value() == "bf16" { KvFormat::Bf16 } else { KvFormat::Fp8 };
                }
                "--host-gib" => asked.host_gib = value().parse().unwrap(),
                "--drafts" => asked.drafts = value().parse().unwrap(),
                "--step" => asked.step = value().parse().unwrap(),
                "--read-slope" => asked.slopes.0 = value().parse().unwrap(),
                "--decode-slope" => asked.slopes.1 = value().parse().unwrap(),
                "--first-bound" => asked.bounds.first_p95 = value().parse().unwrap(),
                "--gap-bound" => asked.bounds.gap_p99 = value().parse().unwrap(),
                "--gap-ms" => asked.gap = Some(Duration::from_millis(value().parse().unwrap())),
                "--seed" => asked.seed = value().parse().unwrap(),
                "--speakers" => asked.speakers = value().parse().unwrap(),
                "--people" => asked.people = value().parse().unwrap(),
                name if shapes::model(name).is_some() => asked.model = name.to_owned(),
                other => panic!("{other} is neither a model nor an option"),
            }
        }
        asked
    }
}

fn main() {
    let asked = Asked::read(std::env::args().skip(1));
    let says = match &asked.trace {
        Some(path) => traffic::read(BufReader::new(File::open(path).unwrap())).unwrap(),
        None => traffic::draw(asked.seed, asked.speakers.max(asked.most), asked.people),
    };
    if let Some(path) = &asked.write {
        return traffic::write(&says, BufWriter::new(File::create(path).unwrap())).unwrap();
    }
    let began = Instant::now();
    let (mut backend, device) = load(&asked);
    let config = config(&asked);
    let limits = backend.limits();
    let store = (asked.host_gib > 0).then(|| {
        let model = ModelDigest::of([&b"replay"[..]]);
        let (bytes, tokens) = (limits.block_bytes() as usize, limits.block_tokens as usize);
        let host_bytes = asked.host_gib << 30;
        // As an engine opens it: memory that the card copies from and to by itself.
        let memory = backend.host_memory(host_bytes);
        if memory.is_none() {
            eprintln!("the driver gives no such host memory: copies are slower than an engine's");
        }
        let options =
            StoreOptions { host_bytes, memory, ..StoreOptions::new(model, bytes, tokens) };
        Arc::new(Store::open(options).unwrap())
    });
    println!(
        "{} on {}, {:?} KV: room for {} positions, {} GiB of host memory beside it, {} guesses, {} units of work a step; {:.1} s to load\n",
        asked.model,
        device.name(),
        asked.kv,
        limits.blocks * limits.block_tokens,
        asked.host_gib,
        asked.drafts,
        config.step_tokens,
        began.elapsed().as_secs_f64(),
    );
    let engine = spawn_with_store(Box::new(backend), config, store).unwrap();
    let mut play = Play::new(engine.handle(), says);
    println!("{}", Seen::heading());
    let mut tried = Vec::new();
    let mut notes = Vec::new();
    let mut best = 0;
    for point in 0.. {
        let agents = match asked.agents.get(point) {
            Some(agents) => Some(*agents),
            None if !asked.agents.is_empty() || point >= asked.points => None,
            None => figures::next(&tried, asked.first, asked.most),
        };
        let Some(agents) = agents else { break };
        let (seen, note) = watch(&mut play, &engine.handle(), agents, &asked);
        println!("{}", seen.row(&asked.bounds));
        notes.push(note);
        let held = seen.holds(&asked.bounds);
        tried.push((agents, held));
        if held {
            best = best.max(agents);
        }
    }
    println!("\n{}", notes.join("\n"));
    println!(
        "\nmost agents tried with which chats see TTFT p95 <= {} s and ITL p99 <= {:.0} ms: {best}",
        asked.bounds.first_p95,
        asked.bounds.gap_p99 * 1e3
    );
    drop(play);
    engine.join().unwrap();
}

fn load(asked: &Asked) -> (CudaBackend, Device) {
    let (spec, format) = shapes::model(&asked.model).unwrap();
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let pack = Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    };
    let weights =
        synthetic::draw(&spec, format, &pack, &device, 1).unwrap_or_else(|e| panic!("{e}"));
    let options = CudaOptions {
        pack,
        kv: asked.kv,
        // What the card has left.
        kv_tokens: u32::MAX / 16 * 16,
        slots: 64,
        // Guesses come on top of the work.
        step_tokens: 2 * asked.step,
        ..CudaOptions::default()
    };
    let backend = CudaBackend::with_weights(&spec, weights, &device, &options)
        .unwrap_or_else(|e| panic!("{e}"));
    (backend, device)
}

/// As an engine is run, but for what is asked for.
fn config(asked: &Asked) -> Config {
    let (spec, _) = shapes::model(&asked.model).unwrap();
    let slopes = cost::slopes(&spec);
    Config {
        cost: Cost {
            read_slope: slopes.read * asked.slopes.0,
            decode_slope: slopes.decode * asked.slopes.1,
        },
        step_tokens: asked.step,
        gap: Some(asked.gap.unwrap_or(cost::gap(&spec))).filter(|gap| !gap.is_zero()),
        steps_ahead: 1,
        draft_tokens: asked.drafts,
        ..Config::default()
    }
}

/// What is seen with so many agents, and a line about what the engine did.
fn watch(play: &mut Play, engine: &EngineHandle, agents: usize, asked: &Asked) -> (Seen, String) {
    let began = Instant::now();
    play.gather(agents);
    play.warm_up(Duration::from_secs_f64(asked.warm));
    let warm = began.elapsed().as_secs_f64();
    let before = engine.stats();
    let seen = play.watch(Duration::from_secs_f64(asked.seconds), asked.bounds.first_p95);
    let note = note(agents, warm, seen.seconds, &before, &engine.stats());
    (seen, note)
}

fn note(agents: usize, warm: f64, seconds: f64, before: &Stats, after: &Stats) -> String {
    let steps = (after.steps - before.steps).max(1) as f64;
    format!(
        "{agents} agents: {warm:.0} s before it was looked at; {:.1} ms a step, {:.0} prompt tokens and {:.0} others a second, {} of {} blocks in use and {} kept, {} preempted, {} given up, {} tokens restored; {} run, {} wait",
        seconds / steps * 1e3,
        (after.prompt_tokens - before.prompt_tokens) as f64 / seconds,
        (after.sampled_tokens - before.sampled_tokens) as f64 / seconds,
        after.blocks_used,
        after.blocks_total,
        after.blocks_kept,
        after.preemptions - before.preemptions,
        after.evictions - before.evictions,
        after.restored_tokens - before.restored_tokens,
        after.running,
        after.waiting,
    )
}
