//! What it takes to bring a long conversation back from host memory, beside the bus, beside reading it again, and beside others' answers:
//! Qwen3-30B-A3B's shape, drawn weights, the whole engine.
//!
//! `restore [--tokens 32768] [--streams 8] [--kv bf16|fp8]`
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

#[path = "models/drawn.rs"]
mod drawn;
#[path = "models/shapes.rs"]
mod shapes;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_backend::{Backend, Begun, BlockId, HostBlock, Sampling, TokenId};
use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_kv::{ModelDigest, Store, StoreOptions};
use polder_scheduler::{
    Claim, Config, EngineHandle, Event, MemberId, Request, RequestId, spawn_with_store,
};

const HOST_BYTES: u64 = 14 << 30;

/// How blocks go out and come in.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Nothing,
    BetweenSteps,
    BesideSteps,
}

fn main() {
    let (mut tokens, mut streams, mut kv) = (32_768, 8, KvFormat::Bf16);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap();
        match argument.as_str() {
            "--tokens" => tokens = value.parse().unwrap(),
            "--streams" => streams = value.parse().unwrap(),
            "--kv" => kv = if value == "fp8" { KvFormat::Fp8 } else { KvFormat::Bf16 },
            other => panic!("{other}"),
        }
    }
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let bytes = {
        let mut backend = load(&device, kv, tokens);
        let bytes = backend.limits().block_bytes() * (tokens as u64 / 16);
        println!(
            "{}: {tokens} tokens, {kv:?}, {:.2} GB of KV in blocks of {} KiB",
            device.name(),
            bytes as f64 / 1e9,
            backend.limits().block_bytes() >> 10
        );
        bus(&device, bytes);
        copies(&mut backend, tokens / 16, bytes);
        bytes
    };
    for keeps in [Keeps::Nothing, Keeps::BetweenSteps, Keeps::BesideSteps] {
        engine(&device, kv, tokens, streams, keeps, bytes);
    }
}

fn load(device: &Device, kv: KvFormat, tokens: usize) -> CudaBackend {
    let options = CudaOptions {
        kv,
        // One long conversation and the others, and never two long ones.
        kv_tokens: (tokens + tokens / 2 + 8192) as u32,
        slots: 32,
        step_tokens: 2048,
        ..CudaOptions::default()
    };
    drawn::load(device, options)
}

fn told(what: &str, seconds: f64, bytes: u64) {
    println!("  {what}: {:.1} ms, {:.1} GB/s", seconds * 1e3, bytes as f64 / seconds / 1e9);
}

/// What the bus takes for so many bytes, in one piece of pinned memory.
fn bus(device: &Device, bytes: u64) {
    let piece = 1 << 30;
    let (stream, buffer) = (device.stream().unwrap(), device.buffer::<u8>(piece).unwrap());
    let mut host = device.pinned::<u8>(piece).unwrap();
    for _ in 0..2 {
        let began = Instant::now();
        // SAFETY: waited for.
        unsafe { stream.upload(&buffer, 0, &host).unwrap() };
        stream.synchronize().unwrap();
        let up = began.elapsed().as_secs_f64() * bytes as f64 / piece as f64;
        let began = Instant::now();
        // SAFETY: the same.
        unsafe { stream.download(&mut host, &buffer, 0).unwrap() };
        stream.synchronize().unwrap();
        let down = began.elapsed().as_secs_f64() * bytes as f64 / piece as f64;
        told("the bus, to the card", up, bytes);
        told("the bus, from the card", down, bytes);
    }
}

/// The back end alone, with no step beside it.
fn copies(backend: &mut CudaBackend, blocks: usize, bytes: u64) {
    let began = Instant::now();
    let memory = backend.host_memory(HOST_BYTES).unwrap();
    println!("  pinned memory begins after {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    for what in ["out, and memory is taken", "out again"] {
        let (mut out, mut next, mut waits): (Vec<Arc<HostBlock>>, u32, u32) = (Vec::new(), 0, 0);
        let began = Instant::now();
        while out.len() < blocks {
            let room = backend.export_room().min(blocks - next as usize).min(32);
            if room > 0 {
                let some: Vec<BlockId> = (next..next + room as u32).map(BlockId).collect();
                assert!(matches!(backend.begin_export(&some).unwrap(), Begun::Later(_)));
                next += room as u32;
            }
            match backend.carried(room == 0).unwrap() {
                Some(carried) => out.extend(carried.blocks.into_iter().map(Arc::new)),
                None if room == 0 => {
                    waits += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
                None => {}
            }
        }
        told(what, began.elapsed().as_secs_f64(), bytes);
        println!("    {waits} waits for memory; {memory:?}");
        let began = Instant::now();
        let mut begins = 0.0;
        for first in (0..blocks).step_by(128) {
            let some = (first..blocks.min(first + 128))
                .map(|n| (BlockId(n as u32), Arc::clone(&out[n])))
                .collect();
            let before = Instant::now();
            backend.begin_import(some).unwrap();
            begins += before.elapsed().as_secs_f64();
        }
        while backend.carried(true).unwrap().is_some() {}
        told("in", began.elapsed().as_secs_f64(), bytes);
        println!("    of which {:.1} ms to begin", begins * 1e3);
    }
}

fn text(seed: u64, length: usize) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            TokenId((state >> 33) as u32 % 150_000)
        })
        .collect()
}

fn request(member: &str, prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        member: MemberId::new(member),
        claim: Claim::default(),
        prompt,
        max_tokens,
        stop_tokens: [].into(),
        sampling: Sampling::greedy(),
        prompt_logprobs: None,
        grammar: None,
        pooling: None,
    }
}

fn ask(handle: &EngineHandle, request: Request) -> (RequestId, Receiver<(Instant, Event)>) {
    let (tell, heard) = channel();
    let sink = Box::new(move |event: Event| tell.send((Instant::now(), event)).is_ok());
    (handle.submit(vec![(request, sink)])[0], heard)
}

/// Seconds to the first token of the answer, and how much of the prompt was known.
fn first(handle: &EngineHandle, request: Request) -> (f64, u32) {
    let began = Instant::now();
    let (_, heard) = ask(handle, request);
    let (mut known, mut took) = (0, 0.0);
    for (when, event) in heard {
        match event {
            Event::Begun { cached } => known = cached,
            Event::Token(_) if took == 0.0 => took = (when - began).as_secs_f64(),
            Event::Finished { .. } => return (took, known),
            Event::Refused(why) => panic!("{why}"),
            Event::Failed => panic!("the engine failed"),
            _ => {}
        }
    }
    panic!("no answer");
}

fn engine(device: &Device, kv: KvFormat, tokens: usize, streams: usize, keeps: Keeps, bytes: u64) {
    let mut backend: Box<dyn Backend> = Box::new(load(device, kv, tokens));
    let block = backend.limits().block_bytes() as usize;
    let memory = match keeps {
        Keeps::BesideSteps => backend.host_memory(HOST_BYTES),
        _ => None,
    };
    let options = StoreOptions {
        host_bytes: HOST_BYTES,
        memory,
        ..StoreOptions::new(ModelDigest([1; 32]), block, 16)
    };
    let store = (keeps != Keeps::Nothing).then(|| Arc::new(Store::open(options).unwrap()));
    let config = Config { steps_ahead: 1, step_tokens: 1024, draft_tokens: 0, ..Config::default() };
    let thread = spawn_with_store(backend, config, store).unwrap();
    let handle = thread.handle();
    println!(
        "{}",
        match keeps {
            Keeps::Nothing => "nothing is kept",
            Keeps::BetweenSteps => "kept between steps, in memory of any kind",
            Keeps::BesideSteps => "kept beside steps, in pinned memory",
        }
    );
    // Graphs are recorded, clocks are up.
    first(&handle, request("warm", text(99, 4096), 40));
    let ada = |n| request("ada", text(n, tokens), 2);
    for n in [1, 2, 3] {
        let (took, known) = first(&handle, ada(n));
        println!(
            "  read, {tokens} tokens ({known} known): {:.0} ms to the first token",
            took * 1e3
        );
        let began = Instant::now();
        let settled = handle.settle(Duration::from_secs(60));
        let kept = handle.kept().map_or(0, |kept| kept.host_bytes);
        println!(
            "    settled {settled} {:.0} ms later, {:.2} GB in host memory",
            began.elapsed().as_secs_f64() * 1e3,
            kept as f64 / 1e9
        );
    }
    if keeps != Keeps::Nothing {
        for n in [1, 2, 3, 1, 2] {
            let before = handle.stats().restored_tokens;
            let (took, _) = first(&handle, ada(n));
            let restored = handle.stats().restored_tokens - before;
            told(&format!("{restored} tokens restored, to the first token"), took, bytes);
        }
    }
    // Others' answers meanwhile.
    let marks: Arc<Mutex<Vec<(usize, Instant)>>> = Arc::default();
    let ids: Vec<RequestId> = (0..streams)
        .map(|n| {
            let marks = Arc::clone(&marks);
            let sink = Box::new(move |event: Event| {
                if matches!(event, Event::Token(_)) {
                    marks.lock().unwrap().push((n, Instant::now()));
                }
                true
            });
            let asked = request(&format!("other {n}"), text(100 + n as u64, 1024), 100_000);
            handle.submit(vec![(asked, sink)])[0]
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1500));
    let between = |from: Instant, to: Instant| {
        let marks = marks.lock().unwrap();
        let mut times: Vec<Instant> = marks
            .iter()
            .filter(|(n, at)| *n == 0 && (from..=to).contains(at))
            .map(|(_, at)| *at)
            .collect();
        times.sort();
        let mut gaps: Vec<f64> =
            times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64() * 1e3).collect();
        gaps.sort_by(f64::total_cmp);
        match gaps.len() {
            0 => "no two tokens".to_owned(),
            n => format!(
                "{n} steps, median {:.2}, 95 % {:.2}, worst {:.2} ms",
                gaps[n / 2],
                gaps[n * 95 / 100],
                gaps[n - 1]
            ),
        }
    };
    let quiet = Instant::now();
    std::thread::sleep(Duration::from_millis(700));
    println!("  {streams} other streams, nothing else: {}", between(quiet, Instant::now()));
    if keeps != Keeps::Nothing {
        for n in [3, 1, 2] {
            let (began, before) = (Instant::now(), handle.stats().restored_tokens);
            let (took, _) = first(&handle, ada(n));
            let restored = handle.stats().restored_tokens - before;
            told(&format!("{restored} tokens restored beside them"), took, bytes);
            println!("    their steps: {}", between(began, Instant::now()));
        }
    }
    let began = Instant::now();
    let (took, known) = first(&handle, ada(4));
    println!("  read beside them ({known} known): {:.0} ms", took * 1e3);
    println!("    their steps: {}", between(began, Instant::now()));
    println!("  {:?}", handle.stats());
    ids.into_iter().for_each(|id| handle.cancel(id));
    drop(handle);
    thread.join().unwrap();
}
