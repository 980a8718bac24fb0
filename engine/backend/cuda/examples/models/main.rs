//! How fast whole models run on this card, beside what it could do: true shapes, drawn weights. `make bench-gpu` runs it.
//!
//! `models [MODEL...] [--only ceilings,decode,prefill,kv] [--kv bf16|fp8] [--streams 1,8,32] [--context 1024] [--steps 128]
//! [--prefill 2048,8192] [--lengths 1024,...,65536]`
//!
//! Without arguments every table is printed. What is named with `--streams` or `--context` is measured in place of the table's own rows.
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

mod ceilings;
mod drive;
mod energy;
mod goals;
mod shapes;

use std::time::Instant;

use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::ModelSpec;

use ceilings::Ceilings;
use drive::{STEP, Streams};
use energy::Meter;

/// One row of a decode table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    streams: usize,
    context: usize,
    kv: KvFormat,
}

/// What is asked for.
#[derive(Debug)]
struct Asked {
    models: Vec<String>,
    only: Vec<String>,
    kv: Option<KvFormat>,
    streams: Option<Vec<usize>>,
    context: Option<usize>,
    steps: usize,
    prefills: Vec<usize>,
    lengths: Vec<usize>,
}

impl Asked {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let list = |text: String| text.split(',').map(|n| n.parse().unwrap()).collect::<Vec<_>>();
        let mut asked = Self {
            models: Vec::new(),
            only: Vec::new(),
            kv: None,
            streams: None,
            context: None,
            steps: 128,
            prefills: vec![2048, 8192],
            lengths: (10..17).map(|power| 1 << power).collect(),
        };
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--only" => asked.only = value().split(',').map(str::to_owned).collect(),
                "--streams" => asked.streams = Some(list(value())),
                "--context" => asked.context = Some(value().parse().unwrap()),
                "--steps" => asked.steps = value().parse().unwrap(),
                "--prefill" => asked.prefills = list(value()),
                "--lengths" => asked.lengths = list(value()),
                "--kv" => {
                    asked.kv = Some(if value() == "fp8" { KvFormat::Fp8 } else { KvFormat::Bf16 });
                }
                name if shapes::model(name).is_some() => asked.models.push(name.to_owned()),
                other => panic!("{other} is neither a model nor an option"),
            }
        }
        asked
    }

    fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == section)
    }

    fn cases(&self, model: &str) -> Vec<Case> {
        let chosen = match (&self.streams, self.context) {
            (None, None) => goals::cases(model),
            (streams, context) => {
                let of = |streams: &usize| Case {
                    streams: *streams,
                    context: context.unwrap_or(1024),
                    kv: self.kv.unwrap_or(KvFormat::Bf16),
                };
                streams.as_deref().unwrap_or(&[1, 8, 32]).iter().map(of).collect()
            }
        };
        chosen.into_iter().filter(|case| self.kv.is_none_or(|kv| kv == case.kv)).collect()
    }
}

fn main() {
    let asked = Asked::read(std::env::args().skip(1));
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let pack = Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    };
    let meter = Meter::open(0);
    let ceilings = ceilings::measure(&device, &pack);
    println!("{}, measured in this run:\n", device.name());
    println!("| ceiling | |\n|---|---|");
    println!("| plain reads | {:.0} GB/s |", ceilings.reads / 1e9);
    match ceilings.products {
        Some(products) => println!("| bf16 8192^3 by cuBLAS | {:.0} TFLOP/s |", products / 1e12),
        None => println!("| bf16 8192^3 by cuBLAS | it is not on this machine |"),
    }
    println!("| host to card, pinned | {:.1} GB/s |", ceilings.to_card / 1e9);
    println!("| card to host, pinned | {:.1} GB/s |", ceilings.from_card / 1e9);
    if meter.is_none() {
        println!("\nThis card does not count its energy.");
    }
    let bench = Bench { asked, device, pack, meter, ceilings };
    for name in shapes::MODELS {
        if bench.asked.models.is_empty() || bench.asked.models.iter().any(|n| n == name) {
            bench.model(name);
        }
    }
}

struct Bench {
    asked: Asked,
    device: Device,
    pack: Pack,
    meter: Option<Meter>,
    ceilings: Ceilings,
}

impl Bench {
    fn model(&self, name: &str) {
        let (spec, format) = shapes::model(name).expect("one of ours");
        let asked = &self.asked;
        let cases = if asked.wants("decode") { asked.cases(name) } else { Vec::new() };
        let prefills: &[usize] = if asked.wants("prefill") { &asked.prefills } else { &[] };
        let lengths: Vec<usize> = if asked.wants("kv") && goals::compares_kv(name) {
            asked.lengths.clone()
        } else {
            Vec::new()
        };
        let mut compared: Vec<(KvFormat, Vec<Option<f64>>)> = Vec::new();
        for kv in [KvFormat::Bf16, KvFormat::Fp8] {
            let cases: Vec<Case> = cases.iter().copied().filter(|case| case.kv == kv).collect();
            let prefills = if kv == asked.kv.unwrap_or(KvFormat::Bf16) { prefills } else { &[] };
            if cases.is_empty() && prefills.is_empty() && lengths.is_empty() {
                continue;
            }
            let longest = prefills.iter().copied();
            // Each stream's own, in whole blocks.
            let room = |streams: usize, context: usize| {
                (context + asked.steps + 16).next_multiple_of(64) * streams
            };
            let longest = longest.chain(cases.iter().map(|case| room(case.streams, case.context)));
            let longest = longest.chain(lengths.iter().map(|length| room(1, *length)));
            let positions = longest.max().unwrap_or(0);
            let Some(mut backend) = self.load(name, &spec, format, (kv, positions)) else {
                return;
            };
            self.decode(&spec, format, &cases, &mut backend, name);
            self.prefill(&spec, prefills, &mut backend);
            let one = |length: &usize| {
                let case = Case { streams: 1, context: *length, kv };
                self.step(&case, &mut backend, None).map(|measured| measured.milliseconds)
            };
            compared.push((kv, lengths.iter().map(one).collect()));
        }
        if let ([(_, bf16), (_, fp8)], false) = (&compared[..], lengths.is_empty()) {
            println!("\n{name}, one stream, ms a step by how KV is kept\n");
            println!("| length | bf16 | FP8 | FP8 is faster by |\n|---|---|---|---|");
            for ((length, bf16), fp8) in lengths.iter().zip(bf16).zip(fp8) {
                let (Some(bf16), Some(fp8)) = (bf16, fp8) else { continue };
                println!(
                    "| {length} | {bf16:.3} | {fp8:.3} | {:.1} % |",
                    (bf16 / fp8 - 1.0) * 100.0
                );
            }
        }
    }

    /// None where the card has too little memory for it, which is said.
    fn load(
        &self,
        name: &str,
        spec: &ModelSpec,
        format: TileFormat,
        (kv, positions): (KvFormat, usize),
    ) -> Option<CudaBackend> {
        let began = Instant::now();
        let weights = match synthetic::draw(spec, format, &self.pack, &self.device, 1) {
            Ok(weights) => weights,
            Err(why) => {
                println!("\n{name}: not on this card ({why})");
                return None;
            }
        };
        let bytes = weights.matrix_bytes();
        let options = CudaOptions {
            pack: self.pack.clone(),
            kv,
            kv_tokens: positions as u32 + 64,
            slots: 64,
            step_tokens: STEP as u32,
            ..CudaOptions::default()
        };
        match CudaBackend::with_weights(spec, weights, &self.device, &options) {
            Ok(backend) => {
                let took = began.elapsed().as_secs_f64();
                println!(
                    "\n{name}, {}: {:.1} GB of matrices, drawn in {took:.1} s",
                    kv_name(kv),
                    bytes as f64 / 1e9
                );
                Some(backend)
            }
            Err(why) => {
                println!("\n{name}: not on this card ({why})");
                None
            }
        }
    }

    fn step(
        &self,
        case: &Case,
        backend: &mut CudaBackend,
        meter: Option<&Meter>,
    ) -> Option<drive::Measured> {
        let room = case.context + self.asked.steps + 16;
        let streams = Streams { count: case.streams, context: case.context, room };
        if !streams.fit(backend) {
            return None;
        }
        streams.fill(backend);
        Some(streams.decode(backend, self.asked.steps, meter))
    }

    fn decode(
        &self,
        spec: &ModelSpec,
        format: TileFormat,
        cases: &[Case],
        backend: &mut CudaBackend,
        name: &str,
    ) {
        if cases.is_empty() {
            return;
        }
        println!(
            "\n| decode | KV | ms a step | tok/s a stream | in all | roof, tok/s a stream | of the roof | J a token | goal |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for case in cases {
            let Case { streams, context, kv } = *case;
            let Some(measured) = self.step(case, backend, self.meter.as_ref()) else {
                println!(
                    "| {streams} x {context} | {} | no room for it on this card |",
                    kv_name(kv)
                );
                continue;
            };
            let bytes =
                shapes::bytes_of_step(spec, (format, kv), streams, context + self.asked.steps / 2);
            let roof = self.ceilings.reads / bytes;
            let rate = 1e3 / measured.milliseconds;
            println!(
                "| {streams} x {context} | {} | {:.3} | {rate:.1} | {:.0} | {roof:.0} | {:.0} % | {} | {} |",
                kv_name(kv),
                measured.milliseconds,
                rate * streams as f64,
                rate / roof * 100.0,
                joules(measured.joules.map(|joules| joules / streams as f64)),
                goals::verdict(name, case, rate, roof),
            );
        }
    }

    fn prefill(&self, spec: &ModelSpec, lengths: &[usize], backend: &mut CudaBackend) {
        if lengths.is_empty() {
            return;
        }
        println!(
            "\n| prefill | ms | tok/s | TFLOP/s | of cuBLAS here | of 789 | J a token |\n|---|---|---|---|---|---|---|"
        );
        for length in lengths {
            let measured = drive::prefill(backend, *length, self.meter.as_ref());
            let seconds = measured.milliseconds / 1e3;
            let rate = shapes::operations_of_prompt(spec, *length) / seconds;
            println!(
                "| {length} | {:.1} | {:.0} | {:.0} | {} | {:.0} % | {} |",
                measured.milliseconds,
                *length as f64 / seconds,
                rate / 1e12,
                self.ceilings
                    .products
                    .map_or_else(|| "?".to_owned(), |most| format!("{:.0} %", rate / most * 100.0)),
                rate / 789e10,
                joules(measured.joules.map(|joules| joules / *length as f64)),
            );
        }
    }
}

fn kv_name(kv: KvFormat) -> &'static str {
    match kv {
        KvFormat::Bf16 => "bf16",
        KvFormat::Fp8 => "FP8",
    }
}

fn joules(found: Option<f64>) -> String {
    found.map_or_else(|| "?".to_owned(), |joules| format!("{joules:.3}"))
}
