//! Packed strips, read as `tiles.cuh` reads them, without a card.
#![allow(dead_code, clippy::unwrap_used, reason = "tests share it, each a part")]

use half::{bf16, f16};
use polder_backend_cuda::tiles::{COLUMNS, STRIP, TileFormat};

/// What a lane feeds to step `j` of 64 columns: the eight values of `a[0]` to `a[3]`, before the scale.
pub(crate) fn left(
    chunk: &[u8],
    format: TileFormat,
    unit: usize,
    lane: usize,
    j: usize,
) -> [f64; 8] {
    match format {
        TileFormat::Bf16 => {
            let (g, t) = (lane / 4, lane % 4);
            std::array::from_fn(|i| {
                // Of row g or g + 8, columns 8 to 15 of the lane's sixteen from step 2 on.
                let piece = (i / 2 % 2 * 2 + j / 2) * 32 + g * 4 + (t ^ (g / 2));
                let at = piece * 16 + (j % 2 * 4 + i / 4 * 2 + i % 2) * 2;
                let bits = u16::from_le_bytes([chunk[at], chunk[at + 1]]);
                bf16::from_bits(bits).to_f64()
            })
        }
        TileFormat::Int4 { group } => {
            let at = unit * 512 + lane * 16 + j * 4;
            let word = u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
            let zero = |row: usize| {
                let at = group * 8 + row * 4 + 2;
                bf16::from_bits(u16::from_le_bytes([chunk[at], chunk[at + 1]])).to_f64()
            };
            std::array::from_fn(|i| {
                // Register i / 2 takes four bits of each half, as 128 and more.
                let q = word >> (i / 2 * 4 + i % 2 * 16) & 15;
                128.0 + f64::from(q) - zero(lane / 4 + i / 2 % 2 * 8)
            })
        }
        TileFormat::Fp8 => {
            let at = j / 2 * 512 + lane * 16 + j % 2 * 8;
            std::array::from_fn(|i| e4m3(chunk[at + i]))
        }
    }
}

/// What row `row` of the strip is multiplied with in this chunk.
pub(crate) fn scale(chunk: &[u8], format: TileFormat, row: usize) -> f64 {
    match format {
        TileFormat::Bf16 => 1.0,
        TileFormat::Int4 { group } => {
            let at = group * 8 + row * 4;
            f16::from_bits(u16::from_le_bytes([chunk[at], chunk[at + 1]])).to_f64()
        }
        TileFormat::Fp8 => {
            let at = 1024 + row * 4;
            f64::from(f32::from_le_bytes(chunk[at..at + 4].try_into().unwrap()))
        }
    }
}

pub(crate) fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// The values of a packed matrix's rows.
pub(crate) fn values(
    packed: &[u8],
    rows: usize,
    columns: usize,
    format: TileFormat,
) -> Vec<Vec<f64>> {
    let mut all = vec![vec![0.0; columns]; rows.next_multiple_of(STRIP)];
    let strip_bytes = format.strip_bytes(columns);
    for (strip, bytes) in packed.chunks_exact(strip_bytes).enumerate() {
        for first in (0..columns).step_by(COLUMNS) {
            let chunk =
                &bytes[first / format.group() * format.chunk_bytes()..][..format.chunk_bytes()];
            let unit = first % format.group() / COLUMNS;
            for (lane, j) in (0..32).flat_map(|lane| (0..4).map(move |j| (lane, j))) {
                for (i, value) in left(chunk, format, unit, lane, j).into_iter().enumerate() {
                    let row = lane / 4 + i / 2 % 2 * 8;
                    let column = first + lane % 4 * 16 + 4 * j + i % 2 + i / 4 * 2;
                    all[strip * STRIP + row][column] = value * scale(chunk, format, row);
                }
            }
        }
    }
    all.truncate(rows);
    all
}
