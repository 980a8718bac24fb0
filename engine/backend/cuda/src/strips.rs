//! Strips straight from the bytes that a checkpoint stores, by whole words. [`pack_strip`](crate::tiles::pack_strip) says what
//! comes out, one value at a time; a test holds the two against each other.

use half::f16;
use polder_model::{Method, Stored4};

use crate::tiles::{COLUMNS, STRIP, TileFormat, bf16_piece};

/// Sixteen outputs of a stored matrix: the first one's number there, a multiple of 8.
pub(crate) type Sixteen<'a> = (Stored4<'a>, usize);

/// Packs strips of four bits. 64 columns of all, then the next 64: where outputs lie beside each other (AWQ, GPTQ), what a
/// cache line holds is then used while it is there.
///
/// # Panics
/// If columns or groups are no multiple of the format's, or a length is wrong.
pub(crate) fn four_bits(strips: &[Sixteen<'_>], columns: usize, group: usize, out: &mut [u8]) {
    let format = TileFormat::Int4 { group };
    let bytes = format.strip_bytes(columns);
    assert!(columns.is_multiple_of(group), "{columns} columns in groups of {group}");
    assert_eq!(out.len(), strips.len() * bytes, "bytes of strips");
    for first in (0..columns).step_by(COLUMNS) {
        let at = first / group * format.chunk_bytes() + first % group * 8;
        for ((stored, output), out) in strips.iter().zip(out.chunks_exact_mut(bytes)) {
            unit(stored, *output, first, &mut out[at..at + 512]);
        }
    }
    for ((stored, output), out) in strips.iter().zip(out.chunks_exact_mut(bytes)) {
        for (n, chunk) in out.chunks_exact_mut(format.chunk_bytes()).enumerate() {
            let given = n * group / stored.group;
            for (row, about) in chunk[group * 8..].chunks_exact_mut(4).enumerate() {
                let scale = f16::from_f32(stored.scale(output + row, given)).to_bits();
                // 128 and a little more: the last bits of a bf16.
                let zero = 0x4300 + u32::from(stored.zero(output + row, given));
                about.copy_from_slice(&(u32::from(scale) | zero << 16).to_le_bytes());
            }
        }
    }
}

/// 64 columns of a strip. A lane's four words are 16 columns of row `lane / 4` and of the row 8 below it, so word `16 * g + n` has
/// the columns `4 * n` and the three after: of row `g` in the even nibbles, of row `g + 8` in the odd ones, in the order 0, 2, 1, 3.
fn unit(stored: &Stored4<'_>, output: usize, first: usize, out: &mut [u8]) {
    let mut put = |g: usize, n: usize, word: u32| {
        out[(16 * g + n) * 4..][..4].copy_from_slice(&word.to_le_bytes());
    };
    match stored.method {
        Method::Awq => {
            let row = stored.outputs / 2;
            for n in 0..16 {
                // Rows 0 to 7 in the even nibbles, 8 to 15 in the odd ones: byte b has what AWQ keeps in nibble 2b, or 2b + 1.
                let (even, odd): ([u32; 4], [u32; 4]) = {
                    let pair = |i: usize| {
                        let at = (first + 4 * n + i) * row + output / 2;
                        let (a, b) = (word(stored.words, at), word(stored.words, at + 4));
                        (a & LOW | (b & LOW) << 4, a >> 4 & LOW | b & LOW << 4)
                    };
                    let all: [(u32, u32); 4] = std::array::from_fn(pair);
                    (all.map(|(even, _)| even), all.map(|(_, odd)| odd))
                };
                for (words, rows) in [(turned(even), [0, 4, 1, 5]), (turned(odd), [2, 6, 3, 7])] {
                    words.into_iter().zip(rows).for_each(|(word, g)| put(g, n, word));
                }
            }
        }
        // Eight inputs to a word: eight columns of one output.
        by_input => {
            let place = |g: usize, n: usize| match by_input {
                Method::Gptq { .. } => ((first / 8 + n) * stored.outputs + output + g) * 4,
                _ => ((output + g) * (stored.inputs / 8) + first / 8 + n) * 4,
            };
            for n in 0..8 {
                for g in 0..8 {
                    let a = word(stored.words, place(g, n));
                    let b = word(stored.words, place(g + 8, n));
                    put(g, 2 * n, apart(a & 0xffff) | apart(b & 0xffff) << 4);
                    put(g, 2 * n + 1, apart(a >> 16) | apart(b >> 16) << 4);
                }
            }
        }
    }
}

/// The low nibble of each byte.
const LOW: u32 = 0x0f0f_0f0f;

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = &bytes[at..at + 4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Byte `b` of four words (columns 0 to 3), in the order 0, 2, 1, 3: word `b`.
fn turned([c0, c1, c2, c3]: [u32; 4]) -> [u32; 4] {
    const EVEN: u32 = 0x00ff_00ff;
    let (low, high) = (c0 & EVEN | (c2 & EVEN) << 8, c1 & EVEN | (c3 & EVEN) << 8);
    let (low_odd, high_odd) = (c0 >> 8 & EVEN | c2 & EVEN << 8, c1 >> 8 & EVEN | c3 & EVEN << 8);
    [
        low & 0xffff | high << 16,
        low_odd & 0xffff | high_odd << 16,
        low >> 16 | high & 0xffff_0000,
        low_odd >> 16 | high_odd & 0xffff_0000,
    ]
}

/// Four nibbles, of columns 0 to 3, to every second one in the order 0, 2, 1, 3.
fn apart(nibbles: u32) -> u32 {
    nibbles & 0x0f0f | (nibbles & 0xf0f0) << 12
}

/// Packs a strip of rows that are bf16, little-endian.
pub(crate) fn bf16(rows: &[&[u8]; STRIP], out: &mut [u8]) {
    for (chunk, out) in out.chunks_exact_mut(2048).enumerate() {
        for (n, to) in out.chunks_exact_mut(16).enumerate() {
            let (row, column) = bf16_piece(n);
            to.copy_from_slice(&rows[row][2 * (chunk * COLUMNS + column)..][..16]);
        }
    }
}

/// Packs a strip of bytes, with a scale for each row's 64 columns.
pub(crate) fn fp8(rows: &[&[u8]; STRIP], scales: &[Vec<f32>; STRIP], out: &mut [u8]) {
    for (chunk, out) in out.chunks_exact_mut(TileFormat::Fp8.chunk_bytes()).enumerate() {
        let (words, about) = out.split_at_mut(1024);
        for (at, to) in words.chunks_exact_mut(8).enumerate() {
            let (half, lane, load) = (at % 2, at / 2 % 32, at / 64);
            let column = chunk * COLUMNS + lane % 4 * 16 + 4 * (2 * load + half);
            let (a, b) = (&rows[lane / 4][column..], &rows[lane / 4 + 8][column..]);
            to[..2].copy_from_slice(&a[..2]);
            to[2..4].copy_from_slice(&b[..2]);
            to[4..6].copy_from_slice(&a[2..4]);
            to[6..].copy_from_slice(&b[2..4]);
        }
        for (scales, to) in scales.iter().zip(about.chunks_exact_mut(4)) {
            to.copy_from_slice(&scales[chunk].to_le_bytes());
        }
    }
}
