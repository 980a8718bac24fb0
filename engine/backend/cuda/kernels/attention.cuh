// What decode (`attention.cu`) and prefill (`prefill.cu`) have in common: softmax attention over the blocks of the pool.
//
// Queries of one key/value head are rows that share a walk over its keys: row r of a sequence is its token r / group and query
// head r % group of the key/value head. Sequences with few tokens go to `decode_…`, the others to `prefill_…`.
#pragma once
#include "kv.cuh"

struct AttendArgs {
    const u16* q;               // [T][q_stride] bf16: a token's heads * D first; with `fuses` keys and values follow, as multiplied
    u16* out;                   // [T][heads * D] bf16
    u8* pool;                   // the layer's blocks
    const uint4* sequences;     // [count]: first token, tokens, first entry of block_table, positions after this step
    const u32* block_table;
    float* partials;            // decode: see Partials
    u32* counters;              // decode: [blocks of the grid], zeros before and after
    const uint2* tiles;         // prefill: [gridDim.y]: sequence, tile of it
    const float* q_norm;        // with `fuses`, as `heads` takes them: [D] or null
    const float* k_norm;
    const double* frequencies;  // [dims / 2]
    u64 block_bytes;
    u64 block_part;             // 2^32 * 16 / block_tokens, rounded up
    u64 group_part;             // 2^32 / (heads / kv_heads), rounded up
    u32 count;
    u32 heads;
    u32 kv_heads;
    u32 group;                  // heads of queries for each of keys and values
    u32 teams;                  // decode: of the grid, a block or a cluster for each key/value head in each
    u32 block_tokens;
    u32 q_stride;
    u32 window;                 // positions that a token sees, itself included; all: 0xffffffff
    u32 few;                    // decode takes sequences of at most so many tokens
    u32 stages;                 // decode: steps on their way to a warp, 1 to 4
    float scale;
    u32 least;                  // decode: fewer steps than these are no share
    u32 merge;                  // decode: floats of shared memory to put results together in
    u32 fuses;                  // decode: sequences have one token, and heads are normed, turned and kept here
    float eps;
    float amplitude;
    u32 dims;
    u32 layout;

    // The block that a position of a sequence lies in, and the place there of the first of its sixteen positions.
    DEVICE u32 block_of(uint4 about, u32 position, u32& place) const {
        u32 sixteen = position / 16, at = u32(sixteen * block_part >> 32);
        place = sixteen * 16 - at * block_tokens;
        return __ldg(block_table + about.z + at);
    }

    // The token that a row of a sequence belongs to. Divisions by numbers not known before are what decode had too many of.
    DEVICE u32 token_of(u32 row) const { return u32(row * group_part >> 32); }
};

// ---- Numbers ---------------------------------------------------------------------------------------------------------------
// Keys and values of bf16 meet queries and weights in bf16; those of e4m3 in f16, which holds e4m3 exactly and to which a
// pair is turned by one instruction.

DEVICE u32 to_half2(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Two e4m3, the first in the low byte, to two f16. Exact.
DEVICE u32 e4m3x2_to_half2(u32 pair) {
    u32 halves;
#if ARCH >= 890
    asm("{ .reg .b16 low; mov.b32 {low, _}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }" : "=r"(halves) : "r"(pair));
#else
    // Exponent and mantissa to f16's places give the value times 2^-8, subnormals too.
    u32 spread = __byte_perm(pair, 0, 0x1404);
    u32 bits = (spread & 0x80008000) | (spread >> 1 & 0x3f803f80);
    asm("{ .reg .b32 up; mov.b32 up, 0x5c005c00; mul.rn.f16x2 %0, %1, up; }" : "=r"(halves) : "r"(bits));
#endif
    return halves;
}

// A scale twice, no larger than that the largest e4m3 times it is a number of f16.
DEVICE u32 scale_pair(float scale) {
    scale = fminf(scale, 65504.0f / LARGEST_E4M3);
    return to_half2(scale, scale);
}

// Two e4m3 times that.
DEVICE u32 scaled_half2(u32 pair, u32 scale) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(e4m3x2_to_half2(pair)), "r"(scale));
    return product;
}

DEVICE u32 bf16x2_to_half2(u32 pair) {
    // What f16 cannot hold becomes the largest that it can.
    float low = fminf(fmaxf(low_bf16(pair), -65504.0f), 65504.0f), high = fminf(fmaxf(high_bf16(pair), -65504.0f), 65504.0f);
    return to_half2(low, high);
}

template <bool FP8>
DEVICE u32 to_pair(float low, float high) {
    return FP8 ? to_half2(low, high) : to_bf16x2(low, high);
}

template <bool FP8>
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if (FP8) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        u32 a[4] = {a0, a1, a2, a3};
        mma_bf16(d, a, b0, b1);
    }
}

DEVICE float exp_2(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

static constexpr float LOG2_E = 1.4426950408889634f;

// Below every score, and what stands for one that is not seen; numbers, so that differences stay numbers.
static constexpr float LOWEST = -1e30f;
static constexpr float NOTHING = -1e38f;

DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// ---- Copies ----------------------------------------------------------------------------------------------------------------

// Sixteen or four bytes in the background; zeros where `there` is false.
template <u32 BYTES>
DEVICE void copy(void* shared, const void* global, bool there) {
    if (BYTES == 16) {
        copy_16(shared, global, there);
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     ::"r"(shared_address(shared)), "l"(global), "r"(there ? 4 : 0)
                     : "memory");
    }
}
