//! Stored values to `f32`, for every [`Format`].
//!
//! Block formats (all little-endian), with `d`, `m` as f16:
//! - `Q8_0`: 32 signed bytes; `d * q`.
//! - `Q4_0`, `Q5_0`: 4 or 5 bits, `d * (q - 8)`, `d * (q - 16)`. Values 0-15 are the low nibbles of
//!   16 bytes, 16-31 the high ones; the fifth bits are bits 0-31 of a 32-bit word.
//! - `Q4_1`, `Q5_1`: the same packing, `d * q + m`.
//! - `Q3_K`: 256 values in 16 groups of 16; `d * (s_g - 32) * (q - 4)`, with 6-bit `s_g` packed into 12 bytes. Two bits of a
//!   `q` and the third are apart.
//! - `Q4_K`, `Q5_K`: 256 values in 8 groups of 32; `d * s_g * q - dmin * m_g`, with 6-bit `s_g` and
//!   `m_g` packed into 12 bytes.
//! - `Q6_K`: 256 values in 16 groups of 16; `d * s_g * (q - 32)`, with `s_g` a signed byte.

use half::{bf16, f16};

use crate::tensor::Format;

/// Turns whole blocks into values; `out` must hold exactly what `bytes` stores.
///
/// # Panics
/// If the lengths do not match.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(format.bytes(out.len()), Some(bytes.len()), "lengths of stored bytes and values");
    let blocks = bytes.chunks_exact(format.block_bytes());
    let outs = out.chunks_exact_mut(format.block_values());
    for (b, y) in blocks.zip(outs) {
        match format {
            Format::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Format::F16 => y[0] = f16_at(b, 0),
            Format::BF16 => y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Format::F8E4M3 => y[0] = e4m3(b[0]),
            Format::Grouped4 | Format::I32 | Format::I64 => {
                unreachable!("the loader takes these apart")
            }
            _ => block(format, b, y),
        }
    }
}

/// A block's integers and the numbers that scale them: value `i` is
/// `scales[g] * q[i] + mins[g]` with `g = i / group`.
#[derive(Debug, Clone)]
pub struct Block {
    /// The integers, offset removed (so `Q4_0` runs from -8 to 7).
    pub q: [i8; 256],
    /// Super scale.
    pub d: f16,
    /// Super minimum; zero where the format has none. Added in `Q4_1` and `Q5_1`, subtracted in
    /// `Q4_K` and `Q5_K`.
    pub m: f16,
    /// Integer scales of the groups (1 where the format has none).
    pub group_scales: [i8; 16],
    /// Integer minima of the groups.
    pub group_mins: [u8; 16],
}

/// Takes a block of a quantized format apart without rounding anything.
///
/// # Panics
/// If `bytes` is not one block, or the format has no blocks.
pub fn unpack(format: Format, bytes: &[u8]) -> Block {
    assert_eq!(bytes.len(), format.block_bytes(), "one block");
    let zero = f16::from_bits(0);
    let mut out =
        Block { q: [0; 256], d: zero, m: zero, group_scales: [1; 16], group_mins: [1; 16] };
    let half_at = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    match format {
        Format::Q8_0 => {
            out.d = half_at(0);
            for (q, b) in out.q.iter_mut().zip(&bytes[2..34]) {
                *q = *b as i8;
            }
        }
        Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => {
            out.d = half_at(0);
            let has_min = matches!(format, Format::Q4_1 | Format::Q5_1);
            let five = matches!(format, Format::Q5_0 | Format::Q5_1);
            let mut at = 2;
            if has_min {
                out.m = half_at(at);
                at += 2;
            }
            let mut high = 0;
            if five {
                high = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                at += 4;
            }
            let zero_point = match format {
                Format::Q4_0 => 8,
                Format::Q5_0 => 16,
                _ => 0,
            };
            for (i, b) in bytes[at..at + 16].iter().enumerate() {
                let low = (b & 15) | (((high >> i) & 1) << 4) as u8;
                let top = (b >> 4) | (((high >> (i + 16)) & 1) << 4) as u8;
                out.q[i] = low as i8 - zero_point;
                out.q[i + 16] = top as i8 - zero_point;
            }
        }
        Format::Q3_K => {
            let (high, low, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
            out.d = half_at(108);
            for (g, scale) in out.group_scales.iter_mut().enumerate() {
                let four = if g < 8 { scales[g] & 15 } else { scales[g - 8] >> 4 };
                let top = (scales[8 + g % 4] >> (g / 4 * 2)) & 3;
                *scale = (four | (top << 4)) as i8 - 32;
            }
            for (i, q) in out.q.iter_mut().enumerate() {
                let (half, quarter, at) = (i / 128, i / 32 % 4, i % 32);
                let two = (low[half * 32 + at] >> (2 * quarter)) & 3;
                let third = (high[at] >> (half * 4 + quarter)) & 1;
                *q = (two | (third << 2)) as i8 - 4;
            }
        }
        Format::Q4_K | Format::Q5_K => {
            out.d = half_at(0);
            out.m = half_at(2);
            let packed = &bytes[4..16];
            for g in 0..8 {
                let (s, m) = six_bits(packed, g);
                out.group_scales[g] = s as i8;
                out.group_mins[g] = m;
            }
            let (high, low) = match format {
                Format::Q5_K => (Some(&bytes[16..48]), &bytes[48..176]),
                _ => (None, &bytes[16..144]),
            };
            for g in 0..8 {
                let nibbles = &low[g / 2 * 32..][..32];
                for (i, b) in nibbles.iter().enumerate() {
                    let four = if g % 2 == 0 { b & 15 } else { b >> 4 };
                    let fifth = high.map_or(0, |h| (h[i] >> g) & 1);
                    out.q[g * 32 + i] = (four | (fifth << 4)) as i8;
                }
            }
        }
        Format::Q6_K => {
            let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
            out.d = half_at(208);
            for (s, b) in out.group_scales.iter_mut().zip(scales) {
                *s = *b as i8;
            }
            for half in 0..2 {
                for i in 0..32 {
                    let (l0, l1) = (low[half * 64 + i], low[half * 64 + 32 + i]);
                    let h = high[half * 32 + i];
                    let quarter = [
                        (l0 & 15) | ((h & 3) << 4),
                        (l1 & 15) | (((h >> 2) & 3) << 4),
                        (l0 >> 4) | (((h >> 4) & 3) << 4),
                        (l1 >> 4) | ((h >> 6) << 4),
                    ];
                    for (part, q) in quarter.into_iter().enumerate() {
                        out.q[half * 128 + part * 32 + i] = q as i8 - 32;
                    }
                }
            }
        }
        _ => unreachable!("plain formats have no blocks"),
    }
    out
}

fn block(format: Format, bytes: &[u8], y: &mut [f32]) {
    let b = unpack(format, bytes);
    let (d, m) = (b.d.to_f32(), b.m.to_f32());
    for (i, y) in y.iter_mut().enumerate() {
        let q = f32::from(b.q[i]);
        *y = match format {
            Format::Q4_1 | Format::Q5_1 => q * d + m,
            Format::Q4_K | Format::Q5_K => {
                let g = i / 32;
                d * f32::from(b.group_scales[g]) * q - m * f32::from(b.group_mins[g])
            }
            Format::Q3_K | Format::Q6_K => d * f32::from(b.group_scales[i / 16]) * q,
            _ => q * d,
        };
    }
}

/// Scale and minimum of group `g` from the 12 packed bytes: the first four pairs are the low six
/// bits of bytes 0-3 and 4-7; the last four take their low nibbles from bytes 8-11 and their top
/// two bits from the top bits of the first eight.
fn six_bits(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (
            (packed[g + 4] & 15) | ((packed[g - 4] >> 6) << 4),
            (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4),
        )
    }
}

/// OCP FP8 e4m3: no infinity, all ones is not a number; exponents begin at 2^-6, and below there are eighths of it.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * (-6f32).exp2(),
        _ => (1.0 + mantissa / 8.0) * ((exponent - 7) as f32).exp2(),
    };
    if byte < 128 { size } else { -size }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
