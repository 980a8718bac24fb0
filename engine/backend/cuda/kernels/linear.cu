// A weight matrix times the tokens of a step: out = epilogue(X W^T).
//
// The weights take the side of 16 of the tensor cores, tokens the side of 8: a step of one token wastes arithmetic, of which there
// is plenty, and no bytes.
#include "products.cuh"

struct LinearArgs {
    Matrix matrix;
    const u16* right;     // [.][right_stride] bf16
    const float* stream;  // [.][right_stride] f32: what is normed on the way; `right` is then null
    const float* norm;    // [columns]: the norm's weights
    const u32* pick;      // [tokens]: which rows of the right side, or null: the first ones
    const float* bias;    // [rows] or null
    void* out;            // [tokens][out_stride]
    u32 tokens;
    u32 right_stride;     // a multiple of 8
    u32 out_stride;
    u32 epilogue;
    u32 activation;
    float eps;
    u32 each;             // 64-column tiles of a strip that one warp takes
};

// Sums of a strip for eight tokens in shared memory: token by token, 20 apart so that no two lanes meet in a bank.
static constexpr u32 TOKEN_STEP = 20;
static constexpr u32 PART = 8 * TOKEN_STEP;

template <u32 STRIPS, u32 EIGHTS>
DEVICE void put_parts(float* part, const float (&sums)[STRIPS][EIGHTS][4]) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 s = 0; s < STRIPS; s++) {
#pragma unroll
        for (u32 n = 0; n < EIGHTS; n++) {
            float* at = part + (s * EIGHTS + n) * PART + 2 * t * TOKEN_STEP + g;
            at[0] = sums[s][n][0], at[TOKEN_STEP] = sums[s][n][1];
            at[8] = sums[s][n][2], at[TOKEN_STEP + 8] = sums[s][n][3];
        }
    }
}

// One value that is ready, to where it belongs.
DEVICE void put(const LinearArgs& a, u32 token, u32 row, float value) {
    if (a.bias) value += a.bias[row];
    u64 at = u64(token) * a.out_stride + row;
    if (a.epilogue == TO_BF16) {
        static_cast<u16*>(a.out)[at] = to_bf16(value);
    } else if (a.epilogue == TO_F32) {
        static_cast<float*>(a.out)[at] = value;
    } else if (a.epilogue == ADD) {
        static_cast<float*>(a.out)[at] += value;
    }
}

// sums += tiles x right over 64 columns. Steps come in turn, so that no product waits for the one just before it.
template <u32 FORMAT, u32 STRIPS, u32 EIGHTS>
DEVICE void multiply_tiles(float (&sums)[STRIPS][EIGHTS][4], const Tiles<FORMAT> (&left)[STRIPS], const Right (&right)[EIGHTS]) {
    if constexpr (FORMAT == BF16) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
#pragma unroll
            for (u32 s = 0; s < STRIPS; s++) {
                u32 a[4];
                left[s].step(j, a);
#pragma unroll
                for (u32 n = 0; n < EIGHTS; n++) mma_bf16(sums[s][n], a, right[n].b0(j), right[n].b1(j));
            }
        }
    } else {
        constexpr u32 CHAINS = STRIPS * EIGHTS == 1 ? 2 : 1;
        float parts[CHAINS][STRIPS][EIGHTS][4] = {};
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
#pragma unroll
            for (u32 s = 0; s < STRIPS; s++) {
                u32 a[4];
                left[s].step(j, a);
#pragma unroll
                for (u32 n = 0; n < EIGHTS; n++) mma_bf16(parts[j % CHAINS][s][n], a, right[n].b0(j), right[n].b1(j));
            }
        }
#pragma unroll
        for (u32 s = 0; s < STRIPS; s++) {
            float2 scale = left[s].scale();
#pragma unroll
            for (u32 n = 0; n < EIGHTS; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    float part = parts[0][s][n][i];
                    if (CHAINS == 2) part += parts[CHAINS - 1][s][n][i];
                    sums[s][n][i] += part * (i < 2 ? scale.x : scale.y);
                }
            }
        }
    }
}

// Few tokens: one block for STRIPS strips and 8 * EIGHTS tokens, whose warps share out the columns. A warp reads TILES tiles of each
// strip ahead: from before the kernel ahead has ended.
template <u32 FORMAT, u32 STRIPS, u32 EIGHTS, u32 TILES, bool NORMED>
DEVICE void linear(const LinearArgs& a) {
    static_assert(!NORMED || EIGHTS == 1, "norms on the way are for few tokens");
    extern __shared__ __align__(16) float shared[];
    u32 warps = blockDim.x / WARP, warp = warp_id(), lane = lane_id();
    u32 columns = a.matrix.columns, strips = (a.matrix.rows + 15) / 16;
    u32 first = warp * a.each, end = min(first + a.each, columns / 64);

    const u8* strip[STRIPS];
#pragma unroll
    for (u32 s = 0; s < STRIPS; s++) {
        strip[s] = a.matrix.tiles + min(blockIdx.x * STRIPS + s, strips - 1) * a.matrix.strip_bytes;
        // Kept, not worked out again for each load.
        asm volatile("" : "+l"(strip[s]));
    }
    Tiles<FORMAT> left[TILES][STRIPS];
#pragma unroll
    for (u32 i = 0; i < TILES; i++) {
        if (first + i < end) {
#pragma unroll
            for (u32 s = 0; s < STRIPS; s++) left[i][s].load(strip[s], (first + i) * 64, a.matrix.group);
        }
    }
    let_next_start();

    u32 token0 = blockIdx.y * 8 * EIGHTS;
    u32 here = min(a.tokens - token0, 8 * EIGHTS);
    float* parts = shared;
    float* squares = parts + warps * STRIPS * EIGHTS * PART;              // [warps]: of the token that each one normed
    u16* normed = reinterpret_cast<u16*>(squares + (NORMED ? 32 : 0));   // [tokens][columns]
    u32 share = 1;  // warps that norm one token together
    if constexpr (NORMED) {
        // Warps share out the tokens, and the columns where there are more warps than tokens.
        u32 groups = min(warps, here > 4 ? 8 : here > 2 ? 4 : here);
        share = warps / groups;
        u32 step = share * WARP, start = warp % share * WARP + lane;
        // Bring the norm's weights near.
        for (u32 i = threadIdx.x * 8; i < columns; i += blockDim.x * 8) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm + i));
        }
        wait_for_before();
        for (u32 m = warp / share; m < here; m += groups) {
            u32 row = a.pick ? a.pick[m] : m;
            const float4* x = reinterpret_cast<const float4*>(a.stream + u64(row) * a.right_stride);
            const float4* w = reinterpret_cast<const float4*>(a.norm);
            uint4* to = reinterpret_cast<uint4*>(normed + u64(m) * columns);
            float sum = 0.0f;
            constexpr u32 AHEAD = 2;
            for (u32 i = start; i < columns / 8; i += AHEAD * step) {
                float4 v[AHEAD][4];
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) {
                    u32 at = i + n * step;
                    if (at < columns / 8) {
                        v[n][0] = x[2 * at], v[n][1] = x[2 * at + 1], v[n][2] = w[2 * at], v[n][3] = w[2 * at + 1];
                    }
                }
#pragma unroll
                for (u32 n = 0; n < AHEAD; n++) {
                    u32 at = i + n * step;
                    if (at < columns / 8) {
                        float4 p = v[n][0], q = v[n][1], u = v[n][2], o = v[n][3];
                        sum += p.x * p.x + p.y * p.y + p.z * p.z + p.w * p.w;
                        sum += q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w;
                        // Neighbouring tokens change places inside 32 bytes, so that no two lanes meet in a bank.
                        to[at ^ (m & 1)] = make_uint4(to_bf16x2(p.x * u.x, p.y * u.y), to_bf16x2(p.z * u.z, p.w * u.w),
                                                      to_bf16x2(q.x * o.x, q.y * o.y), to_bf16x2(q.z * o.z, q.w * o.w));
                    }
                }
            }
            sum = warp_sum(sum);
            // With fewer warps than tokens, a warp norms the tokens m, m + groups, ...; then share is 1.
            if (lane == 0) squares[share > 1 ? warp : m] = sum;
        }
        __syncthreads();
    } else {
        wait_for_before();
    }

    // Where the lane's token begins, in 16 bytes.
    constexpr u32 NONE = 0xffffffffu;
    const uint4* rights = reinterpret_cast<const uint4*>(NORMED ? normed : a.right);
    u32 row[EIGHTS];
#pragma unroll
    for (u32 n = 0; n < EIGHTS; n++) {
        u32 token = n * 8 + lane / 4;
        if (token >= here) {
            row[n] = NONE;
        } else if (NORMED) {
            row[n] = token * (columns / 8) + lane % 4 * 2;
        } else {
            row[n] = (a.pick ? a.pick[token0 + token] : token0 + token) * (a.right_stride / 8) + lane % 4 * 2;
        }
    }
    auto read = [&](Right& right, u32 n, u32 tile) {
        if (row[n] == NONE) return;
        const uint4* at = rights + row[n] + tile * 8;
        u32 swap = NORMED ? lane / 4 & 1 : 0;
        right.words[0] = at[swap], right.words[1] = at[swap ^ 1];
    };
    // How many tiles of tokens are read ahead; shared memory is near.
    constexpr u32 AHEAD = NORMED || EIGHTS == 8 ? 1 : EIGHTS == 4 && TILES > 2 ? 2 : TILES;
    Right right[AHEAD][EIGHTS];
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) {
#pragma unroll
        for (u32 n = 0; n < EIGHTS; n++) {
            right[i][n].clear();
            if (first + i < end) read(right[i][n], n, first + i);
        }
    }
    float sums[STRIPS][EIGHTS][4] = {};
    for (u32 tile = first; tile < end; tile += TILES) {
#pragma unroll
        for (u32 i = 0; i < TILES; i++) {
            if (tile + i >= end) break;
            multiply_tiles(sums, left[i], right[i % AHEAD]);
            u32 next = tile + i + AHEAD;
            if (next < end) {
#pragma unroll
                for (u32 n = 0; n < EIGHTS; n++) read(right[i % AHEAD][n], n, next);
            }
            next = tile + i + TILES;
            if (next < end) {
#pragma unroll
                for (u32 s = 0; s < STRIPS; s++) left[i][s].load(strip[s], next * 64, a.matrix.group);
            }
        }
    }

    put_parts<STRIPS, EIGHTS>(parts + warp * STRIPS * EIGHTS * PART, sums);
    __syncthreads();
    // Sums are always added up in the order of the warps.
    auto sum_of = [&](u32 s, u32 token, u32 r) {
        const float* at = parts + (s * EIGHTS + token / 8) * PART + token % 8 * TOKEN_STEP + r;
        float sum = 0.0f;
        for (u32 w = 0; w < warps; w++) sum += at[w * STRIPS * EIGHTS * PART];
        return sum;
    };
    auto scale_of = [&](u32 token) {
        if (!NORMED) return 1.0f;
        float sum = 0.0f;
        for (u32 w = 0; w < share; w++) sum += squares[token * share + w];
        return rsqrtf(sum / columns + a.eps);
    };
    if constexpr (STRIPS % 2 == 0) {
        constexpr u32 ROWS = STRIPS / 2 * 16;
        for (u32 i = threadIdx.x; a.epilogue == GATED && i < here * ROWS; i += blockDim.x) {
            u32 token = i / ROWS, r = i % ROWS, pair = r / 16;
            u32 row = blockIdx.x * ROWS + r;
            if (row >= a.matrix.rows / 2) continue;
            float scale = scale_of(token);
            float gate = sum_of(2 * pair, token, r % 16) * scale, up = sum_of(2 * pair + 1, token, r % 16) * scale;
            static_cast<u16*>(a.out)[u64(token0 + token) * a.out_stride + row] = to_bf16(activate(a.activation, gate) * up);
        }
        if (a.epilogue == GATED) return;
    }
    constexpr u32 ROWS = STRIPS * 16;
    for (u32 i = threadIdx.x; i < here * ROWS; i += blockDim.x) {
        u32 token = i / ROWS, r = i % ROWS;
        u32 row = blockIdx.x * ROWS + r;
        if (row >= a.matrix.rows) continue;
        put(a, token0 + token, row, sum_of(r / 16, token, r % 16) * scale_of(token));
    }
}

// Kernels by format, strips and tokens; the number of threads that they are made for follows from their registers.
#define LINEAR(name, threads, format, strips, eights, tiles, normed)                                   \
    KERNEL __launch_bounds__(threads) name(const __grid_constant__ LinearArgs a) {                     \
        linear<format, strips, eights, tiles, normed>(a);                                              \
    }

LINEAR(linear_bf16_1x1, 512, BF16, 1, 1, 4, false)
LINEAR(linear_bf16_2x1, 512, BF16, 2, 1, 2, false)
LINEAR(linear_bf16_2x2, 512, BF16, 2, 2, 2, false)
LINEAR(linear_bf16_2x4, 256, BF16, 2, 4, 2, false)
LINEAR(linear_bf16_2x8, 256, BF16, 2, 8, 1, false)
LINEAR(linear_bf16_1x1_normed, 512, BF16, 1, 1, 4, true)
LINEAR(linear_bf16_2x1_normed, 512, BF16, 2, 1, 2, true)

LINEAR(linear_int4_1x1, 512, INT4, 1, 1, 4, false)
LINEAR(linear_int4_2x1, 512, INT4, 2, 1, 4, false)
LINEAR(linear_int4_2x2, 512, INT4, 2, 2, 2, false)
LINEAR(linear_int4_2x4, 256, INT4, 2, 4, 2, false)
LINEAR(linear_int4_2x8, 256, INT4, 2, 8, 1, false)
LINEAR(linear_int4_1x1_normed, 512, INT4, 1, 1, 4, true)
LINEAR(linear_int4_2x1_normed, 512, INT4, 2, 1, 4, true)

LINEAR(linear_fp8_1x1, 512, FP8, 1, 1, 4, false)
LINEAR(linear_fp8_2x1, 512, FP8, 2, 1, 2, false)
LINEAR(linear_fp8_2x2, 512, FP8, 2, 2, 1, false)
LINEAR(linear_fp8_2x4, 256, FP8, 2, 4, 2, false)
LINEAR(linear_fp8_2x8, 256, FP8, 2, 8, 1, false)
LINEAR(linear_fp8_1x1_normed, 512, FP8, 1, 1, 4, true)
LINEAR(linear_fp8_2x1_normed, 512, FP8, 2, 1, 2, true)
