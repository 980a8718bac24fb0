//! Elementwise work and small reductions: one plain body each, compiled once per form so that
//! the compiler vectorises it. Sums run in sixteen fixed lanes.

use half::f16;

use super::{Form, GROUP, Isa, LANES};

/// `a * b + c`, fused where the machine does that in one instruction.
#[inline(always)]
fn madd<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles `$body::<FUSED>` for each form and picks one by `isa`.
macro_rules! forms {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body::<true>($($arg),*)
            }
            match isa.0 {
                Form::Portable => $body::<false>($($arg),*),
                // SAFETY: `Isa` proves the instructions; the code is safe otherwise.
                #[cfg(target_arch = "x86_64")]
                Form::Avx2 | Form::AvxVnni => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Form::Avx512 => unsafe { avx512($($arg),*) },
                // Every such machine has NEON, and it fuses.
                #[cfg(target_arch = "aarch64")]
                Form::Dotprod | Form::I8mm => $body::<true>($($arg),*),
            }
        }
    };
}

forms! {
    /// The largest number; NaN is none.
    largest = largest_body(x: &[f32]) -> f32
}

#[inline(always)]
fn largest_body<const FUSED: bool>(x: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, x) in most.iter_mut().zip(chunk) {
            *most = if *x > *most { *x } else { *most };
        }
    }
    for (most, x) in most.iter_mut().zip(rest) {
        *most = if *x > *most { *x } else { *most };
    }
    most.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

forms! {
    /// `out += factor * x`.
    add_scaled = add_scaled_body(out: &mut [f32], factor: f32, x: &[f32])
}

#[inline(always)]
fn add_scaled_body<const FUSED: bool>(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = madd::<FUSED>(factor, *x, *out);
    }
}

forms! {
    /// `sum of x^2`.
    sum_squares = sum_squares_body(x: &[f32]) -> f32
}

#[inline(always)]
fn sum_squares_body<const FUSED: bool>(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut total = [0.0f32; LANES];
    for chunk in chunks {
        for (total, x) in total.iter_mut().zip(chunk) {
            *total = madd::<FUSED>(*x, *x, *total);
        }
    }
    for (total, x) in total.iter_mut().zip(rest) {
        *total = madd::<FUSED>(*x, *x, *total);
    }
    total.iter().sum()
}

forms! {
    /// `x = exp(x - max)`, and their sum.
    exp_sum = exp_sum_body(x: &mut [f32], max: f32) -> f32
}

#[inline(always)]
fn exp_sum_body<const FUSED: bool>(x: &mut [f32], max: f32) -> f32 {
    let mut total = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (total, x) in total.iter_mut().zip(chunk) {
            *x = exp::<FUSED>(*x - max);
            *total += *x;
        }
    }
    for (total, x) in total.iter_mut().zip(rest) {
        *x = exp::<FUSED>(*x - max);
        *total += *x;
    }
    total.iter().sum()
}

/// e^x by `2^n * e^r` with `|r| <= ln 2 / 2` and a Taylor series to the seventh power (relative
/// error about 1e-7). Below -87 it stays at e^-87, above 88 at e^88.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number.
    let x = x.clamp(-87.0, 88.0);
    let shifted = madd::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FUSED>(n, -0.693_359_4, x);
    let r = madd::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = madd::<FUSED>(p, r, c);
    }
    let power = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    p * f32::from_bits((power.wrapping_add(127) as u32) << 23)
}

forms! {
    /// `gate = silu(gate) * up`.
    gate_silu = gate_silu_body(gate: &mut [f32], up: &[f32])
}

#[inline(always)]
fn gate_silu_body<const FUSED: bool>(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp::<FUSED>(-*g)) * *u;
    }
}

forms! {
    /// `gate = gelu(gate) * up`, the tanh form: `x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))`.
    gate_gelu = gate_gelu_body(gate: &mut [f32], up: &[f32])
}

#[inline(always)]
fn gate_gelu_body<const FUSED: bool>(gate: &mut [f32], up: &[f32]) {
    const TWICE: f32 = 1.595_769;
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        let inner = TWICE * madd::<FUSED>(0.044_715 * x * x, x, x);
        *g = x / (1.0 + exp::<FUSED>(-inner)) * *u;
    }
}

forms! {
    /// A row of activations to signed numbers of two bytes: per group of 32, `scale = max|x| / 32512`,
    /// numbers rounded to even, the sums of both halves, and the sum of all times the scale. `q`
    /// may be longer than `x`: what is left of its last group is zero.
    quantize_row = quantize_body(
        x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [i32], offsets: &mut [f32]
    )
}

#[inline(always)]
fn quantize_body<const FUSED: bool>(
    x: &[f32],
    q: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
    offsets: &mut [f32],
) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number.
    const MOST: f32 = 127.0 * 256.0;
    let groups = q.as_chunks_mut::<{ 2 * GROUP }>().0.iter_mut().zip(scales.iter_mut());
    let groups = groups.zip(sums.as_chunks_mut::<2>().0).zip(offsets.iter_mut());
    for (g, (((q, scale), sums), offset)) in groups.enumerate() {
        let mut values = [0.0f32; GROUP];
        let rest = &x[g * GROUP..];
        match rest.first_chunk() {
            Some(whole) => values = *whole,
            None => values[..rest.len()].copy_from_slice(rest),
        }
        let mut most = [0.0f32; LANES];
        for half in values.as_chunks::<LANES>().0 {
            for (most, v) in most.iter_mut().zip(half) {
                let v = v.abs();
                *most = if v > *most { v } else { *most };
            }
        }
        let most = most.iter().fold(0.0f32, |a, b| if *b > a { *b } else { a });
        let (up, down) = match () {
            // What is no number must not become zeros: nobody would learn that the weights are damaged.
            () if values.iter().any(|v| !v.is_finite()) => (0.0, f32::NAN),
            () if most > 1e-30 => (MOST / most, most / MOST),
            // So small that its inverse overflows: nothing.
            () => (0.0, 0.0),
        };
        let (high, low) = q.split_at_mut(GROUP);
        let mut whole = [0i32; GROUP];
        for (((v, high), low), whole) in values.iter().zip(high).zip(low).zip(&mut whole) {
            let rounded = (v * up + ROUND).to_bits() as i32;
            let rounded = rounded.wrapping_sub(ROUND.to_bits() as i32);
            *high = (rounded.wrapping_add(128) >> 8) as i8;
            *low = rounded as i8;
            *whole = 256 * i32::from(*high) + i32::from(*low);
        }
        let (front, back) = whole.split_at(LANES);
        *sums = [front.iter().sum(), back.iter().sum()];
        *scale = down;
        *offset = down * (sums[0] + sums[1]) as f32;
    }
}

/// Half-precision bits to floats; the lengths agree.
pub(crate) fn halves_to_floats(isa: Isa, halves: &[u16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len(), "as many halves as floats");
    #[cfg(target_arch = "x86_64")]
    if isa.0 != Form::Portable {
        // SAFETY: every form but the portable one has F16C; the lengths agree.
        return unsafe { halves_to_floats_f16c(halves, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if isa.0 != Form::Portable {
        return halves_to_floats_neon(halves, out);
    }
    let _ = isa;
    for (out, h) in out.iter_mut().zip(halves) {
        *out = f16::from_bits(*h).to_f32();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn halves_to_floats_f16c(halves: &[u16], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let (chunks, rest) = halves.as_chunks::<8>();
    let (outs, last) = out.as_chunks_mut::<8>();
    for (h, out) in chunks.iter().zip(outs) {
        // SAFETY: both are eight values long.
        unsafe {
            let wide = _mm256_cvtph_ps(_mm_loadu_si128(h.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), wide);
        }
    }
    for (out, h) in last.iter_mut().zip(rest) {
        *out = f16::from_bits(*h).to_f32();
    }
}

#[cfg(target_arch = "aarch64")]
fn halves_to_floats_neon(halves: &[u16], out: &mut [f32]) {
    use std::arch::aarch64::*;
    let (chunks, rest) = halves.as_chunks::<4>();
    let (outs, last) = out.as_chunks_mut::<4>();
    for (h, out) in chunks.iter().zip(outs) {
        // SAFETY: both are four values long, and every aarch64 machine has NEON.
        unsafe {
            let wide = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h.as_ptr())));
            vst1q_f32(out.as_mut_ptr(), wide);
        }
    }
    for (out, h) in last.iter_mut().zip(rest) {
        *out = f16::from_bits(*h).to_f32();
    }
}

/// Floats to half-precision bits, rounded to even; the lengths agree.
pub(crate) fn floats_to_halves(isa: Isa, floats: &[f32], out: &mut [u16]) {
    assert_eq!(floats.len(), out.len(), "as many halves as floats");
    #[cfg(target_arch = "x86_64")]
    if isa.0 != Form::Portable {
        // SAFETY: every form but the portable one has F16C; the lengths agree.
        return unsafe { floats_to_halves_f16c(floats, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if isa.0 != Form::Portable {
        return floats_to_halves_neon(floats, out);
    }
    let _ = isa;
    for (out, f) in out.iter_mut().zip(floats) {
        *out = f16::from_f32(*f).to_bits();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn floats_to_halves_f16c(floats: &[f32], out: &mut [u16]) {
    use std::arch::x86_64::*;
    let (chunks, rest) = floats.as_chunks::<8>();
    let (outs, last) = out.as_chunks_mut::<8>();
    for (f, out) in chunks.iter().zip(outs) {
        // SAFETY: both are eight values long.
        unsafe {
            let narrow = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(f.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), narrow);
        }
    }
    for (out, f) in last.iter_mut().zip(rest) {
        *out = f16::from_f32(*f).to_bits();
    }
}

#[cfg(target_arch = "aarch64")]
fn floats_to_halves_neon(floats: &[f32], out: &mut [u16]) {
    use std::arch::aarch64::*;
    let (chunks, rest) = floats.as_chunks::<4>();
    let (outs, last) = out.as_chunks_mut::<4>();
    for (f, out) in chunks.iter().zip(outs) {
        // SAFETY: both are four values long, and every aarch64 machine has NEON.
        unsafe {
            let narrow = vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(f.as_ptr())));
            vst1_u16(out.as_mut_ptr(), narrow);
        }
    }
    for (out, f) in last.iter_mut().zip(rest) {
        *out = f16::from_f32(*f).to_bits();
    }
}
