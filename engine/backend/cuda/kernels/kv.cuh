// How keys and values lie in the pool, for the kernels that write and that read them.
//
// A block of a layer holds `block_tokens` positions (a multiple of 16): keys, then values, each [kv_heads][block_tokens][head_dim],
// in bf16 or e4m3. With e4m3 scales follow, f32: of keys, then of values, each [kv_heads][block_tokens].
#pragma once
#include "common.cuh"

// As the host numbers them.
static constexpr u32 KV_BF16 = 0;
static constexpr u32 KV_FP8 = 1;

static constexpr float LARGEST_E4M3 = 448.0f;

// In `kv_rows`: a token whose keys and values nobody wants.
static constexpr u32 NO_ROW = 0xffffffffu;

// ---- What is done to a head before it is kept or asks: for `heads`, and for decode where it does the same ------------------------

// As the host numbers them: neighbours turn together, or the first half with the second.
static constexpr u32 INTERLEAVED = 0;

// Cosine and sine. The angle is brought into one turn in f64: at position 200000 f32 would be off by a hundredth of a turn.
DEVICE float2 turn_of(u32 position, double frequency, float amplitude) {
    double angle = double(position) * frequency;
    double turns = rint(angle * 0.15915494309189535);
    float rest = float(fma(-turns, 6.283185307179586, angle));
    return make_float2(__cosf(rest) * amplitude, __sinf(rest) * amplitude);
}

// The largest of a warp's numbers, none below zero: their bits are in their order.
DEVICE float warp_largest(float value) {
    return __uint_as_float(__reduce_max_sync(ALL, __float_as_uint(value)));
}

// How numbers up to `largest` become e4m3: `scale` is kept with them, and they are multiplied with `up`.
struct Quantum {
    float scale, up;
    DEVICE Quantum(float largest) {
        // Below this all are zeros, and a division would overflow.
        bool zeros = !(largest > 1e-30f);
        scale = zeros ? 0.0f : largest / LARGEST_E4M3, up = zeros ? 0.0f : LARGEST_E4M3 / largest;
    }
};

// `to_e4m3` by one instruction, where there is one.
DEVICE u8 e4m3_of(float value) {
#if ARCH >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return u8(pair);
#else
    return to_e4m3(value);
#endif
}
