//! Kernels for any machine, and the meaning of the others.

use half::{bf16, f16};

use super::{FloatKind, GROUP, IntRows, IntTile, LANES};

pub(super) fn int_tile(tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut [f32]) {
    for (token, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut total = [0.0f32; LANES];
        for g in 0..rows.groups {
            let at = token * rows.groups + g;
            let a = &rows.q[at * GROUP..][..GROUP];
            let scale = rows.scales[at];
            let sums = [rows.sums[2 * at], rows.sums[2 * at + 1]];
            let dots = match tile.nibbles {
                true => nibble_dots(&tile.quants[g * 256..][..256], a),
                false => byte_dots(&tile.quants[g * 512..][..512], a),
            };
            if tile.halves {
                for half in 0..2 {
                    let scales = &tile.scales[(2 * g + half) * LANES..][..LANES];
                    for r in 0..LANES {
                        let dot = dots[half][r] - tile.zero * sums[half];
                        total[r] += dot as f32 * (scales[r] * scale);
                    }
                }
                continue;
            }
            let sum = sums[0] + sums[1];
            let scales = &tile.scales[g * LANES..][..LANES];
            for r in 0..LANES {
                let dot = dots[0][r] + dots[1][r] - tile.zero * sum;
                total[r] += dot as f32 * (scales[r] * scale);
            }
            if !tile.mins.is_empty() {
                let mins = &tile.mins[g * LANES..][..LANES];
                let sum = scale * sum as f32;
                for r in 0..LANES {
                    total[r] += mins[r] * sum;
                }
            }
        }
        out.copy_from_slice(&total);
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

pub(super) fn float_tile(kind: FloatKind, tile: &[u8], cols: usize, x: &[f32], out: &mut [f32]) {
    let mut column = [0.0f32; LANES];
    out.fill(0.0);
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
        for (token, out) in out.chunks_exact_mut(LANES).enumerate() {
            let x = x[token * cols + c];
            for r in 0..LANES {
                out[r] += column[r] * x;
            }
        }
    }
}
