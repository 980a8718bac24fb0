//! What tests on a card share. They are named `gpu_…` and ignored: `make test-gpu` runs them where there is one.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used)]

use std::sync::OnceLock;

use half::bf16;
use polder_backend_cuda::device::{Device, Kernel, Loaded, Stream};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::sources::module;

/// The first card. Tests on it run one after the other (`--test-threads=1`): while one records a graph, no thread may wait for the
/// card, and reads, writes and fills of buffers do.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Device::open(0).expect("these tests need a card"));
    device.enter().unwrap();
    device.clone()
}

/// One module, compiled where it is not kept.
pub fn loaded(device: &Device, name: &str) -> Loaded {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made }
        .load(module(name), device)
        .unwrap()
}

/// Median milliseconds of `work` when it is put into a graph and that is run again and again.
pub fn median_ms(device: &Device, stream: &Stream, repeats: usize, work: impl Fn()) -> f32 {
    work();
    stream.synchronize().unwrap();
    let graph = stream
        .capture(|| {
            work();
            Ok(())
        })
        .unwrap();
    // A card that has idled runs at a fifth of its clock, and takes a while to notice that it has work.
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_millis(20) {
        // SAFETY: what it was recorded with is borrowed by `work`.
        unsafe { stream.replay(&graph) }.unwrap();
        stream.synchronize().unwrap();
    }
    let (start, end) = (device.event().unwrap(), device.event().unwrap());
    let mut times: Vec<f32> = (0..repeats + 3)
        .map(|_| {
            stream.record(&start).unwrap();
            // SAFETY: what it was recorded with is borrowed by `work`.
            unsafe { stream.replay(&graph) }.unwrap();
            stream.record(&end).unwrap();
            end.wait().unwrap();
            end.milliseconds_since(&start).unwrap()
        })
        .skip(3)
        .collect();
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}

/// Numbers that are drawn, the same for the same seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Around zero, as a bell.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    pub fn normals(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| (self.normal() * scale) as f32).collect()
    }
}

/// Rounded to bf16 and back, so that both sides start from the same numbers.
pub fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

pub fn bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect()
}

pub fn from_bits(values: &[u16]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_bits(*v).to_f32()).collect()
}

/// Length of the difference over length of the reference. NaN anywhere makes it NaN, which no bound lets through.
pub fn error(out: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(out.len(), reference.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut out.iter().zip(reference).map(|(a, b)| f64::from(*a) - b));
    (difference / square(&mut reference.iter().copied()).max(1e-30)).sqrt()
}

/// What a buffer is filled with before a kernel writes it: NaN as f32 and as bf16.
pub const POISON: u8 = 0xff;

/// The kernel of that name.
pub fn kernel(loaded: &Loaded, name: &str) -> Kernel {
    loaded.kernel(&std::ffi::CString::new(name).unwrap()).unwrap()
}
