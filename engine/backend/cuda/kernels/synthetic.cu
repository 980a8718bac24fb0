// Weights that are drawn: a model's true shapes without its files, to measure with.
#include "tiles.cuh"

struct DrawArgs {
    u32* words;
    u64 count;          // of words
    u64 seed;
    float size;         // of values: their standard deviation
    u32 format;         // as tiles; BF16 is also what rows that are looked up have
    u32 group;
};

DEVICE u32 mixed(u64 n) {
    n += 0x9e3779b97f4a7c15ull;
    n = (n ^ n >> 30) * 0xbf58476d1ce4e5b9ull;
    n = (n ^ n >> 27) * 0x94d049bb133111ebull;
    return u32((n ^ n >> 31) >> 16);
}

// Uniform around zero, of standard deviation 1.
DEVICE float spread(u32 bits) { return (float(bits & 0xffff) * (2.0f / 65535.0f) - 1.0f) * 1.7320508f; }

KERNEL draw_tiles(const __grid_constant__ DrawArgs a) {
    u32 chunk = a.format == INT4 ? a.group * 8 + 64 : 1088;
    u32 values = a.format == INT4 ? a.group * 8 : 1024;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < a.count; i += u64(gridDim.x) * blockDim.x) {
        u32 bits = mixed(i * 0x2545f4914f6cdd1dull + a.seed), more = mixed(~i * 0x2545f4914f6cdd1dull + a.seed);
        u32 word;
        if (a.format == BF16) {
            word = to_bf16x2(spread(bits) * a.size, spread(more) * a.size);
        } else if (i * 4 % chunk < values) {
            // Sixteen steps have a deviation of 4.61; bytes of e4m3 keep away from what is no number, and have one of about 1.
            word = a.format == INT4 ? bits : (bits & 0x87878787u) | 0x30303030u;
        } else if (a.format == INT4) {
            float scale = a.size / 4.61f * (0.8f + float(more & 0xff) * (0.4f / 255.0f));
            word = to_half(scale) | u32(to_bf16(135.0f + float(bits & 1))) << 16;
        } else {
            word = __float_as_uint(a.size / 0.8f);
        }
        a.words[i] = word;
    }
}

struct ReadArgs {
    const uint4* from;
    u32* to;
    u64 count;          // of 16 bytes
};

// Everything once, eight loads on their way: what plain reads of this card reach.
KERNEL read_all(const __grid_constant__ ReadArgs a) {
    u64 stride = u64(gridDim.x) * blockDim.x;
    u32 sum = 0;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i + 7 * stride < a.count; i += 8 * stride) {
        uint4 found[8];
#pragma unroll
        for (u32 n = 0; n < 8; n++) found[n] = load_once(a.from + i + n * stride);
#pragma unroll
        for (u32 n = 0; n < 8; n++) sum ^= found[n].x ^ found[n].y ^ found[n].z ^ found[n].w;
    }
    // Hardly ever; a result that nobody wants is not computed.
    if (sum == 0x5eed5eed) *a.to = sum;
}
