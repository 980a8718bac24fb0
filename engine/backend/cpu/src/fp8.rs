//! Eight bits for a number: a sign, four bits of exponent, three of fraction (e4m3, no infinities), times a power of two that
//! several share.

use std::sync::LazyLock;

/// The largest number.
const MOST: f32 = 448.0;
/// The exponent of the smallest normal number.
const LEAST: i32 = -6;

static DECODED: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|byte| decoded(byte as u8)));

/// The least power of two that these numbers must be divided by so that all of them fit; as small numbers as there are, lose
/// nothing by it.
pub(crate) fn exponent(values: &[f32]) -> i8 {
    let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    if most == 0.0 || !most.is_finite() {
        return if most == 0.0 { 0 } else { i8::MAX };
    }
    let mut exponent = (most / MOST).log2().ceil() as i32;
    // A logarithm may be off by the last bit.
    if most * (-exponent as f32).exp2() > MOST {
        exponent += 1;
    }
    exponent.clamp(-100, 120) as i8
}

/// Two to that power.
pub(crate) fn scale(exponent: i8) -> f32 {
    f32::from(exponent).exp2()
}

/// The nearest of the 253 numbers; the even one of two. NaN stays that.
pub(crate) fn encode(value: f32, exponent: i8) -> u8 {
    let value = value * (-f32::from(exponent)).exp2();
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let value = value.abs();
    if value.is_nan() {
        return sign | 0x7f;
    }
    let value = value.min(MOST);
    // The exponent of the value, and how far apart numbers are there.
    let binary = ((value.to_bits() >> 23) as i32 - 127).max(LEAST);
    let steps = (value * ((3 - binary) as f32).exp2()).round_ties_even() as i32;
    // Eight and more steps have the hidden bit; sixteen are the next exponent's eight.
    let bits = steps + (binary - LEAST) * 8;
    sign | bits as u8
}

/// The number that a byte stands for, before its power of two.
pub(crate) fn decode(byte: u8) -> f32 {
    DECODED[usize::from(byte)]
}

fn decoded(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        15 if byte & 7 == 7 => f32::NAN,
        0 => fraction / 8.0 * (LEAST as f32).exp2(),
        _ => (1.0 + fraction / 8.0) * ((exponent - 7) as f32).exp2(),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_and_what_lies_between_goes_to_the_nearest() {
        for byte in 0..=255u8 {
            let value = decode(byte);
            if value.is_nan() {
                assert!(decode(encode(value, 0)).is_nan());
                continue;
            }
            assert_eq!(encode(value, 0), byte, "{value}");
            assert_eq!(encode(value * 32.0, 5), byte);
        }
        let all: Vec<f32> = (0..127).map(decode).collect();
        assert!(all.is_sorted() && all[126] == MOST);
        for pair in all.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            for (part, nearest) in [(0.49, pair[0]), (0.51, pair[1])] {
                let value = pair[0] + (pair[1] - pair[0]) * part;
                assert_eq!(decode(encode(value, 0)), nearest, "{value}");
                assert_eq!(decode(encode(-value, 0)), -nearest);
            }
            assert_eq!(encode(middle, 0) % 2, 0, "{middle}");
        }
        assert_eq!(decode(encode(1e9, 0)), MOST);
    }

    #[test]
    fn the_shared_power_is_the_least_with_which_all_fit() {
        for most in [1e-20f32, 0.3, 448.0, 448.1, 896.0, 1e20] {
            let exponent = exponent(&[0.1 * most, -most]);
            let scaled = most / scale(exponent);
            assert!(scaled <= MOST && scaled > MOST / 2.0, "{most}: {scaled}");
            let back = decode(encode(most, exponent)) * scale(exponent);
            assert!((back / most - 1.0).abs() <= 1.0 / 16.0, "{most}: {back}");
        }
        assert_eq!(exponent(&[0.0, 0.0]), 0);
        assert!(exponent(&[f32::INFINITY]) == i8::MAX);
    }
}
