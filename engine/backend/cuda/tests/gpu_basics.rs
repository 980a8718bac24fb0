//! Embedding, norms and copies against references in f64.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may, and kernels are started")]

mod common;

use common::{Chance, POISON, bits, device, error, from_bits, kernel, loaded, rounded};
use polder_backend_cuda::device::{Ptr, Shape};

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: Ptr,
    add: Ptr,
    add_norm: Ptr,
    weight: Ptr,
    pick: Ptr,
    out: Ptr,
    out_f32: Ptr,
    eps: f32,
    hidden: u32,
    padded: u32,
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_norm_is_the_norm_of_the_stream_after_what_is_added() {
    let device = device();
    let module = loaded(&device, "basics");
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(1);
    for (rows, hidden, post) in [(1, 576, false), (5, 2048, true), (3, 5120, false)] {
        let x = chance.normals(rows * hidden, 1.0);
        let add = rounded(&chance.normals(rows * hidden, 0.5));
        let [weight, post_weight] = [0, 1].map(|_| chance.normals(hidden, 1.0));
        let eps = 1e-5;
        let buffers = (
            device.buffer_of(&x).unwrap(),
            device.buffer_of(&bits(&add)).unwrap(),
            device.buffer_of(&weight).unwrap(),
            device.buffer_of(&post_weight).unwrap(),
            device.buffer::<u16>(rows * hidden).unwrap(),
        );
        buffers.4.fill(POISON).unwrap();
        let args = NormArgs {
            x: buffers.0.at(),
            add: buffers.1.at(),
            add_norm: if post { buffers.3.at() } else { Ptr(0) },
            weight: buffers.2.at(),
            pick: Ptr(0),
            out: buffers.4.at(),
            out_f32: Ptr(0),
            eps,
            hidden: hidden as u32,
            padded: 0,
        };
        // SAFETY: the buffers are as long as the kernel goes.
        unsafe {
            stream.launch(&kernel(&module, "rms_norm"), &Shape::row(rows as u32, 256), &args)
        }
        .unwrap();
        let norm = |row: &[f64], weight: &[f32]| -> Vec<f64> {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / hidden as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            row.iter().zip(weight).map(|(v, w)| v * scale * f64::from(*w)).collect()
        };
        let (mut streams, mut norms) = (Vec::new(), Vec::new());
        for (x, add) in x.chunks(hidden).zip(add.chunks(hidden)) {
            let mut add: Vec<f64> = add.iter().copied().map(f64::from).collect();
            if post {
                add = norm(&add, &post_weight);
            }
            let sum: Vec<f64> = x.iter().zip(&add).map(|(x, a)| f64::from(*x) + a).collect();
            norms.extend(norm(&sum, &weight));
            streams.extend(sum);
        }
        assert!(error(&buffers.0.values().unwrap(), &streams) < 1e-6);
        assert!(error(&from_bits(&buffers.4.values().unwrap()), &norms) < 3e-3);
    }
}
