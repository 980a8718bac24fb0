//! Kernels for any machine, and the meaning of the others.

use half::{bf16, f16};

use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Page, Scales};

pub(super) fn int_tile(tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut Column<'_>) {
    for token in 0..out.rows() {
        let mut total = [0.0f32; LANES];
        for g in 0..rows.groups {
            let at = token * rows.groups + g;
            let (high, low) = rows.q[at * 2 * GROUP..][..2 * GROUP].split_at(GROUP);
            let scale = rows.scales[at];
            let sums = [rows.sums[2 * at], rows.sums[2 * at + 1]];
            let dots = |a| match tile.nibbles {
                true => nibble_dots(&tile.quants[g * 256..][..256], a),
                false => byte_dots(&tile.quants[g * 512..][..512], a),
            };
            let (high, low) = (dots(high), dots(low));
            let dot =
                |half: usize, r: usize| 256 * high[half][r] + low[half][r] - tile.zero * sums[half];
            let scales = |n: usize, of_mins: bool| -> [f32; LANES] {
                match tile.scales {
                    Scales::Stored(stored) => {
                        let halves = &stored[n * 2 * LANES..][..2 * LANES];
                        std::array::from_fn(|r| {
                            f16::from_le_bytes(halves.as_chunks::<2>().0[r]).to_f32()
                        })
                    }
                    Scales::Floats { scales, mins } => {
                        let all = if of_mins { mins } else { scales };
                        std::array::from_fn(|r| all[n * LANES + r])
                    }
                }
            };
            if tile.halves {
                for half in 0..2 {
                    let scales = scales(2 * g + half, false);
                    for r in 0..LANES {
                        total[r] += dot(half, r) as f32 * (scales[r] * scale);
                    }
                }
                continue;
            }
            let stored = matches!(tile.scales, Scales::Stored(_)) && tile.mins;
            let first = scales(if stored { 2 * g } else { g }, false);
            for r in 0..LANES {
                total[r] += (dot(0, r) + dot(1, r)) as f32 * (first[r] * scale);
            }
            if tile.mins {
                let mins = scales(if stored { 2 * g + 1 } else { g }, true);
                for r in 0..LANES {
                    total[r] += mins[r] * rows.offsets[at];
                }
            }
        }
        *out.row(token) = total;
    }
}

/// Sums of products over the first and the last 16 columns.
fn nibble_dots(quants: &[u8], a: &[i8]) -> [[i32; LANES]; 2] {
    let mut dots = [[0; LANES]; 2];
    for (j, line) in quants.as_chunks::<64>().0.iter().enumerate() {
        let (low, high) = a[8 * j..8 * j + 8].split_at(4);
        for (r, four) in line.as_chunks::<4>().0.iter().enumerate() {
            for i in 0..4 {
                dots[j / 2][r] += i32::from(four[i] & 15) * i32::from(low[i])
                    + i32::from(four[i] >> 4) * i32::from(high[i]);
            }
        }
    }
    dots
}

fn byte_dots(quants: &[u8], a: &[i8]) -> [[i32; LANES]; 2] {
    let mut dots = [[0; LANES]; 2];
    for (j, line) in quants.as_chunks::<64>().0.iter().enumerate() {
        let a = &a[4 * j..4 * j + 4];
        for (r, four) in line.as_chunks::<4>().0.iter().enumerate() {
            for i in 0..4 {
                dots[j / 4][r] += i32::from(four[i]) * i32::from(a[i]);
            }
        }
    }
    dots
}

pub(super) fn float_tile(
    kind: FloatKind,
    tile: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut Column<'_>,
) {
    let mut column = [0.0f32; LANES];
    (0..out.rows()).for_each(|token| out.row(token).fill(0.0));
    for (c, stored) in tile.chunks_exact(LANES * kind.bytes()).enumerate() {
        match kind {
            FloatKind::F32 => {
                for (w, b) in column.iter_mut().zip(stored.as_chunks::<4>().0) {
                    *w = f32::from_le_bytes(*b);
                }
            }
            FloatKind::F16 => {
                for (w, b) in column.iter_mut().zip(stored.as_chunks::<2>().0) {
                    *w = f16::from_le_bytes(*b).to_f32();
                }
            }
            FloatKind::BF16 => {
                for (w, b) in column.iter_mut().zip(stored.as_chunks::<2>().0) {
                    *w = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
        for token in 0..out.rows() {
            let x = x[token * cols + c];
            let out = out.row(token);
            for r in 0..LANES {
                out[r] += column[r] * x;
            }
        }
    }
}

pub(super) fn dots<const N: usize>(
    q: &[f32],
    k: Page<'_>,
    scale: f32,
    to: &mut [f32],
    stride: usize,
) {
    let mut total = [[0.0f32; LANES]; N];
    for (d, q) in q.as_chunks::<N>().0.iter().enumerate() {
        let k: [f32; LANES] = std::array::from_fn(|lane| k.at(d * LANES + lane));
        for (total, q) in total.iter_mut().zip(q) {
            for (total, k) in total.iter_mut().zip(k) {
                *total += q * k;
            }
        }
    }
    for (n, total) in total.iter().enumerate() {
        to[n * stride..][..LANES].copy_from_slice(&total.map(|total| total * scale));
    }
}

pub(super) fn weigh<const N: usize>(
    out: &mut [f32],
    dim: usize,
    weights: &[f32],
    stride: usize,
    values: Page<'_>,
) {
    for n in 0..values.len() / dim {
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let weight = weights[row * stride + n];
            for (d, out) in out.iter_mut().enumerate() {
                *out += weight * values.at(n * dim + d);
            }
        }
    }
}
