//! What this card can do at best, measured in the same run: plain reads, a large matrix product by NVIDIA's own library, copies
//! from and to the host.

use std::ffi::{c_int, c_void};
use std::time::Instant;

use libloading::{Library, Symbol};
use polder_backend_cuda::device::{Buffer, Device, Ptr, Shape};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::sources::module;

/// Each in units a second; None where it could not be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ceilings {
    /// Bytes.
    pub(crate) reads: f64,
    /// Operations in bf16.
    pub(crate) products: Option<f64>,
    /// Bytes from and to pinned host memory.
    pub(crate) to_card: f64,
    pub(crate) from_card: f64,
}

pub(crate) fn measure(device: &Device, pack: &Pack) -> Ceilings {
    let (to_card, from_card) = copies(device);
    Ceilings { reads: reads(device, pack), products: products(device), to_card, from_card }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ReadArgs {
    from: Ptr,
    to: Ptr,
    count: u64,
}

/// 16 GiB, or half of what is free.
fn reads(device: &Device, pack: &Pack) -> f64 {
    let bytes = (16 << 30).min(device.free_memory().unwrap() / 2) as usize;
    let from: Buffer<u8> = device.buffer(bytes).unwrap();
    from.fill(0x11).unwrap();
    let to: Buffer<u32> = device.buffer(1).unwrap();
    let loaded = pack.load(module("synthetic"), device).unwrap();
    let kernel = loaded.kernel(c"read_all").unwrap();
    let stream = device.stream().unwrap();
    let arguments = ReadArgs { from: from.at(), to: to.at(), count: bytes as u64 / 16 };
    let (start, end) = (device.event().unwrap(), device.event().unwrap());
    let mut best = f64::MAX;
    for _ in 0..8 {
        stream.record(&start).unwrap();
        // SAFETY: the count is the buffer's, and the stream is waited for before it can be freed.
        unsafe { stream.launch(&kernel, &Shape::row(device.processors() * 8, 256), &arguments) }
            .unwrap();
        stream.record(&end).unwrap();
        end.wait().unwrap();
        best = best.min(f64::from(end.milliseconds_since(&start).unwrap()));
    }
    bytes as f64 / best * 1e3
}

/// A gibibyte in both directions, one after the other.
fn copies(device: &Device) -> (f64, f64) {
    let bytes = 1 << 30;
    let buffer: Buffer<u8> = device.buffer(bytes).unwrap();
    let mut host = device.pinned::<u8>(bytes).unwrap();
    let stream = device.stream().unwrap();
    let mut best = [f64::MAX; 2];
    for _ in 0..3 {
        // SAFETY: the stream is waited for before anybody looks.
        for (way, best) in best.iter_mut().enumerate() {
            let began = Instant::now();
            match way {
                0 => unsafe { stream.upload(&buffer, 0, &host) }.unwrap(),
                _ => unsafe { stream.download(&mut host, &buffer, 0) }.unwrap(),
            }
            stream.synchronize().unwrap();
            *best = best.min(began.elapsed().as_secs_f64());
        }
    }
    (bytes as f64 / best[0], bytes as f64 / best[1])
}

/// Of cuBLAS; its numbers for "bf16", "sums in f32" and "your own choice of a kernel".
const BF16: c_int = 14;
const SUMS: c_int = 68;
const ANY: c_int = -1;

type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
#[rustfmt::skip]
type Multiply = unsafe extern "C" fn(
    *mut c_void, c_int, c_int, c_int, c_int, c_int, *const c_void, u64, c_int, c_int,
    u64, c_int, c_int, *const c_void, u64, c_int, c_int, c_int, c_int,
) -> c_int;

/// 8192 x 8192 x 8192 by cuBLAS, where it is installed.
fn products(device: &Device) -> Option<f64> {
    const N: usize = 8192;
    let names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];
    // SAFETY: NVIDIA's library starts nothing by itself.
    let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
    let values: Vec<u16> = {
        let mut chance = 1_u64;
        // Numbers around zero of the size of weights: zeros would take less power, and so run faster.
        let mut draw = || {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            half::bf16::from_f32((chance >> 40) as f32 / (1 << 24) as f32 - 0.5).to_bits()
        };
        (0..N * N).map(|_| draw()).collect()
    };
    let [a, b] = [(); 2].map(|()| device.buffer_of(&values).unwrap());
    let c: Buffer<u16> = device.buffer(N * N).unwrap();
    // SAFETY: the signatures are cublas_api.h's, and the matrices have N x N values.
    unsafe {
        let create: Symbol<'_, Create> = library.get(b"cublasCreate_v2").ok()?;
        let multiply: Symbol<'_, Multiply> = library.get(b"cublasGemmEx").ok()?;
        let mut handle = std::ptr::null_mut();
        if create(&mut handle) != 0 {
            return None;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        let n = N as c_int;
        let run = || {
            #[rustfmt::skip]
            let done = multiply(
                handle, 1, 0, n, n, n, (&raw const one).cast(), a.at().0, BF16, n,
                b.at().0, BF16, n, (&raw const zero).cast(), c.at().0, BF16, n, SUMS, ANY,
            );
            done == 0
        };
        let mut best = f64::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            if !(0..20).all(|_| run()) {
                return None;
            }
            device.synchronize().unwrap();
            best = best.min(began.elapsed().as_secs_f64() / 20.0);
        }
        // Its memory goes with the process.
        std::mem::forget(library);
        Some(2.0 * (N as f64).powi(3) / best)
    }
}
