// Weight matrices as the tensor cores take them: tiles of 16 rows, laid out so that a warp reads 512 consecutive bytes at a
// time, sixteen to a lane, and each lane finds in its own sixteen bytes what it feeds to `mma`. `tiles.rs` writes them.
//
// A matrix of R rows and K columns (K a multiple of 64, R rounded up to 16) is `R / 16` strips, one after the other; a strip
// holds the columns of 16 rows in chunks, one after the other:
//   BF16   64 columns: 2 x 8 rows, of which 2 x 512 bytes (below)         2048
//   INT4   a group of 64 or 128 columns: 512 bytes for 64, then for each row
//          a word: scale (f16, low half), 128 + zero (bf16, high half)     576 or 1088
//   FP8    64 columns: 2 x 512 bytes, then for each row a scale (f32)      1088
//
// Inside 64 columns, lane t = lane % 4 has the columns 16 t to 16 t + 15, and step j (of 4) of `mma` has of each lane the
// columns 16 t + 4 j and the next one as its k = 2t, 2t + 1, and the two after as k = 2t + 8, 2t + 9. The sum is the same in any
// order of columns, and so the right side (tokens) is read in rows of 32 bytes to a lane: see `Right`.
//
// In BF16 sixteen bytes are eight columns of one row, and 512 bytes are eight rows: of lane t's columns the first eight, or the other
// eight, in place t ^ row % 8 / 2 of the row's 64 bytes. So they are also what `wgmma` reads from shared memory ("64-byte swizzle",
// eight rows to the next eight 1024 bytes; `dense.cu`).
#pragma once
#include "common.cuh"

// As the host numbers them.
static constexpr u32 BF16 = 0;
static constexpr u32 INT4 = 1;
static constexpr u32 FP8 = 2;

// A matrix, or one of several that lie one after the other.
struct Matrix {
    const u8* tiles;
    u32 rows;           // true ones; those up to a multiple of 16 are zeros
    u32 columns;
    u32 format;
    u32 group;          // columns of a chunk: 64 or 128
    u64 strip_bytes;    // of 16 rows
    u64 matrix_bytes;   // of all strips: from one expert to the next
};

// 128 + the four bits N of each half of a word, as bf16: they are its last bits.
template <u32 N>
DEVICE u32 nibbles(u32 word) {
    u32 pair;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(pair) : "r"(word >> 4 * N), "n"(0x000f000f), "r"(0x43004300));
    return pair;
}

// Two e4m3 of a word, the lower ones or the higher ones, as bf16: each in the high half of 16 bits, then exponent and mantissa to
// their places, times 2^120.
template <u32 HALF>
DEVICE u32 e4m3_pair(u32 word) {
    u32 high = __byte_perm(word, 0, HALF == 0 ? 0x1404 : 0x3424);
    u32 bits = (high >> 4 & 0x07f007f0) | (high & 0x80008000);
    return mul_bf16x2(bits, 0x7b807b80);
}

template <u32 FORMAT>
struct Tiles;

// 64 columns of 16 rows, in a lane's registers: what has been read and not yet used. Reading many of them before the first is
// used is what keeps the memory busy.
template <>
struct Tiles<BF16> {
    static constexpr u32 LOADS = 4;
    uint4 words[LOADS];

    DEVICE void load(const u8* strip, u32 column, u32) {
        const u8* at = strip + u64(column / 64) * 2048 + place();
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) words[i] = load_once(at + i * 512);
    }
    // A chunk in shared memory.
    DEVICE void load_shared(const u8* chunk) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) words[i] = *reinterpret_cast<const uint4*>(chunk + place() + i * 512);
    }
    static DEVICE u32 place() { return (lane_id() ^ lane_id() / 8) * 16; }
    // The left side of step j.
    DEVICE void step(u32 j, u32 (&a)[4]) const {
        uint4 upper = words[j / 2], lower = words[2 + j / 2];
        a[0] = j % 2 ? upper.z : upper.x, a[1] = j % 2 ? lower.z : lower.x;
        a[2] = j % 2 ? upper.w : upper.y, a[3] = j % 2 ? lower.w : lower.y;
    }
    // What the sums of the lane's rows lane / 4 and lane / 4 + 8 are multiplied with.
    DEVICE float2 scale() const { return make_float2(1.0f, 1.0f); }
};

template <>
struct Tiles<INT4> {
    static constexpr u32 LOADS = 1;
    uint4 words;
    u32 about[2];

    DEVICE void load(const u8* strip, u32 column, u32 group) {
        // A division by 64 or 128; by a number that is not known before, it would cost more than everything else here.
        u32 shift = 6 + group / 128;
        const u8* at = strip + (column >> shift) * (group * 8 + 64);
        words = load_once(at + (column & (group - 1)) * 8 + lane_id() * 16);
        const u32* rows = reinterpret_cast<const u32*>(at + group * 8);
        about[0] = __ldg(rows + lane_id() / 4);
        about[1] = __ldg(rows + lane_id() / 4 + 8);
    }
    // The second eight rows stand four bits higher. Taken as bf16 these are so small that all of their bits count alike: times 2^127
    // they are a quarter of the number. So two registers need one shift, which goes through half as fast as a product does.
    DEVICE void step(u32 j, u32 (&a)[4]) const {
        u32 word = j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w, later = word >> 8;
        u32 zero = __byte_perm(about[0], 0, 0x3232);
        u32 quarter = fma(__byte_perm(about[1], 0, 0x3232), 0xbe80be80, 0x42004200);  // 32 - (128 + zero) / 4
        a[0] = sub_bf16x2(nibbles<0>(word), zero);
        a[1] = fma(word & 0x00f000f0, 0x7f007f00, quarter);
        a[2] = sub_bf16x2(nibbles<0>(later), zero);
        a[3] = fma(later & 0x00f000f0, 0x7f007f00, quarter);
    }
    static DEVICE u32 fma(u32 a, u32 b, u32 c) {
        u32 sum;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
        return sum;
    }
    DEVICE float2 scale() const { return make_float2(from_half(u16(about[0])), 4.0f * from_half(u16(about[1]))); }
};

template <>
struct Tiles<FP8> {
    static constexpr u32 LOADS = 2;
    uint4 words[LOADS];
    float about[2];

    DEVICE void load(const u8* strip, u32 column, u32) {
        const u8* at = strip + u64(column / 64) * 1088;
#pragma unroll
        for (u32 j = 0; j < LOADS; j++) words[j] = load_once(at + j * 512 + lane_id() * 16);
        const float* rows = reinterpret_cast<const float*>(at + 1024);
        about[0] = __ldg(rows + lane_id() / 4);
        about[1] = __ldg(rows + lane_id() / 4 + 8);
    }
    DEVICE void step(u32 j, u32 (&a)[4]) const {
        u32 first = j % 2 == 0 ? words[j / 2].x : words[j / 2].z, second = j % 2 == 0 ? words[j / 2].y : words[j / 2].w;
        a[0] = e4m3_pair<0>(first), a[1] = e4m3_pair<1>(first), a[2] = e4m3_pair<0>(second), a[3] = e4m3_pair<1>(second);
    }
    DEVICE float2 scale() const { return make_float2(about[0], about[1]); }
};

// The right side of 64 columns for eight tokens, in a lane's registers: token lane / 4, columns 16 t to 16 t + 15, t = lane % 4.
struct Right {
    uint4 words[2];

    // `row` is the lane's token's, in global or shared memory; 16-byte aligned.
    DEVICE void load(const u16* row, u32 column) {
        const uint4* at = reinterpret_cast<const uint4*>(row + column + lane_id() % 4 * 16);
        words[0] = at[0], words[1] = at[1];
    }
    DEVICE void clear() { words[0] = words[1] = make_uint4(0, 0, 0, 0); }
    DEVICE u32 b0(u32 j) const { return j % 2 == 0 ? words[j / 2].x : words[j / 2].z; }
    DEVICE u32 b1(u32 j) const { return j % 2 == 0 ? words[j / 2].y : words[j / 2].w; }
};

// Many tokens are laid out for the tensor cores to read from shared memory (`wide.cu`): for each 64 columns `padded` rows of 128 bytes,
// in the order in which steps of `mma` take a strip's: lane t's pairs of step j lie together, in 16 bytes for k below 8 and 16 for k
// from 8 on. Sixteen bytes change places by the row's number, as the tensor cores expect it ("128-byte swizzle"). Where the word is
// with a token's columns 2 * pair and the next one.
DEVICE u64 image_word(u32 token, u32 pair, u32 padded) {
    u32 word = pair % 32;
    return (u64(pair / 32) * padded + token) * 32 + (word % 8 ^ token % 8) * 4 + word / 8;
}

// For `dense.cu` tokens stay rows, and of each 64 columns the first eight of the lanes' sixteen come before the others, as BF16 has
// them: where a pair goes.
DEVICE u32 turned_pair(u32 pair) { return pair / 32 * 32 + pair / 4 % 2 * 16 + pair / 8 % 4 * 4 + pair % 4; }
static constexpr u32 TURNED = 0xffffffffu;  // for who is told of `padded` rows

// sums += tiles x right over 64 columns, for one strip and eight tokens. Lane holds of strip row g = lane / 4 (sums[0], [1]) and
// g + 8 (sums[2], [3]) the tokens 2 t and 2 t + 1, t = lane % 4.
template <u32 FORMAT>
DEVICE void multiply_64(float (&sums)[4], const Tiles<FORMAT>& left, const Right& right) {
    float part[4] = {};
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        u32 a[4];
        left.step(j, a);
        mma_bf16(part, a, right.b0(j), right.b1(j));
    }
    float2 scale = left.scale();
    sums[0] += part[0] * scale.x, sums[1] += part[1] * scale.x;
    sums[2] += part[2] * scale.y, sums[3] += part[3] * scale.y;
}
