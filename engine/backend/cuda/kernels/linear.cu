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

#if ARCH == 900
// ---- Some tokens, four bits ------------------------------------------------------------------------------------------------------
// 9 to 32 tokens. The blocks of a cluster share out the columns, and their warps by 128: a warp holds its columns of all tokens in
// registers, and strip after strip passes by. Every block reads its tokens once, whatever the number of rows.

static constexpr u32 WARPS = 16;
static constexpr u32 WARP_COLUMNS = 128;
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// What lies at `from` in block `block` of the cluster.
DEVICE float get_remote(const float* from, u32 block) {
    float value;
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
        : "=f"(value)
        : "r"(shared_address(from)), "r"(block)
        : "memory");
    return value;
}

// Grid: clusters of CLUSTER blocks, tokens / (8 * EIGHTS). Shared: sums of each warp twice, then those of the block's strips.
template <u32 GROUP, u32 EIGHTS, u32 CLUSTER>
DEVICE void held(const LinearArgs& a) {
    static constexpr u32 UNITS = WARP_COLUMNS / 64, SIZE = EIGHTS * 8 * 16;
    // Strips that a warp has on their way: as many as fit into registers.
    static constexpr u32 AHEAD = EIGHTS < 4 ? 4 : GROUP == 64 ? 1 : 2;
    extern __shared__ __align__(16) float parts[];
    float* results = parts + 2 * WARPS * EIGHTS * PART;
    u32 warp = warp_id(), g = lane_id() / 4, t = lane_id() % 4, rank = blockIdx.x % CLUSTER;
    u32 strips = (a.matrix.rows + 15) / 16, columns = a.matrix.columns;
    // Gate and up stay together.
    u32 twos = a.epilogue == GATED ? 2 : 1, cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    u32 first = strips / twos * cluster / clusters * twos, end = strips / twos * (cluster + 1) / clusters * twos;
    u32 column = (rank * WARPS + warp) * WARP_COLUMNS;
    bool there[UNITS];
#pragma unroll
    for (u32 u = 0; u < UNITS; u++) there[u] = column + u * 64 < columns;

    Tiles<INT4> left[AHEAD][UNITS];
    auto load = [&](Tiles<INT4> (&left)[UNITS], u32 strip) {
        if (strip >= end) return;
        const u8* tiles = a.matrix.tiles + strip * a.matrix.strip_bytes;
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) {
            if (there[u]) left[u].load(tiles, column + u * 64, GROUP);
        }
    };
#pragma unroll
    for (u32 i = 0; i < AHEAD; i++) {
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) left[i][u].words = make_uint4(0, 0, 0, 0), left[i][u].about[0] = left[i][u].about[1] = 0;
        load(left[i], first + i);
    }
    let_next_start();
    wait_for_before();

    u32 token0 = blockIdx.y * 8 * EIGHTS, here = min(a.tokens - token0, 8 * EIGHTS);
    Right right[EIGHTS][UNITS];
#pragma unroll
    for (u32 n = 0; n < EIGHTS; n++) {
        u32 token = n * 8 + g;
        bool live = token < here;
        u32 row = !live ? 0 : a.pick ? a.pick[token0 + token] : token0 + token;
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) {
            right[n][u].clear();
            if (live && there[u]) right[n][u].load(a.right + u64(row) * a.right_stride, column + u * 64);
        }
    }

    for (u32 strip = first; strip < end; strip += AHEAD) {
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            if (strip + i >= end) break;
            float sums[EIGHTS][4] = {};
            if constexpr (GROUP == WARP_COLUMNS) {
#pragma unroll
                for (u32 u = 0; u < UNITS; u++) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        u32 fed[4];
                        left[i][u].step(j, fed);
#pragma unroll
                        for (u32 n = 0; n < EIGHTS; n++) mma_bf16(sums[n], fed, right[n][u].b0(j), right[n][u].b1(j));
                    }
                }
                float2 scale = left[i][0].scale();
#pragma unroll
                for (u32 n = 0; n < EIGHTS; n++) {
                    sums[n][0] *= scale.x, sums[n][1] *= scale.x, sums[n][2] *= scale.y, sums[n][3] *= scale.y;
                }
            } else {
#pragma unroll
                for (u32 u = 0; u < UNITS; u++) {
                    float part[EIGHTS][4] = {};
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        u32 fed[4];
                        left[i][u].step(j, fed);
#pragma unroll
                        for (u32 n = 0; n < EIGHTS; n++) mma_bf16(part[n], fed, right[n][u].b0(j), right[n][u].b1(j));
                    }
                    float2 scale = left[i][u].scale();
#pragma unroll
                    for (u32 n = 0; n < EIGHTS; n++) {
#pragma unroll
                        for (u32 m = 0; m < 4; m++) sums[n][m] += part[n][m] * (m < 2 ? scale.x : scale.y);
                    }
                }
            }
            load(left[i], strip + i + AHEAD);
            // Twice: while some add up a strip's sums, others write the next one's.
            float* half = parts + (strip + i) % 2 * WARPS * EIGHTS * PART;
#pragma unroll
            for (u32 n = 0; n < EIGHTS; n++) {
                float* at = half + (warp * EIGHTS + n) * PART + 2 * t * TOKEN_STEP + g;
                at[0] = sums[n][0], at[TOKEN_STEP] = sums[n][1], at[8] = sums[n][2], at[TOKEN_STEP + 8] = sums[n][3];
            }
            __syncthreads();
            if (threadIdx.x < SIZE) {
                const float* at = half + threadIdx.x / 128 * PART + threadIdx.x / 16 % 8 * TOKEN_STEP + threadIdx.x % 16;
                float sum = 0.0f;
#pragma unroll
                for (u32 w = 0; w < WARPS; w++) sum += at[w * EIGHTS * PART];
                results[(strip + i - first) * SIZE + threadIdx.x] = sum;
            }
        }
    }
    // Always added up in the order of the columns.
    if (CLUSTER > 1) {
        cluster_arrive();
        cluster_wait();
    } else {
        __syncthreads();
    }
    auto sum_of = [&](u32 at) {
        if (CLUSTER == 1) return results[at];
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < CLUSTER; i++) sum += get_remote(results + at, i);
        return sum;
    };
    u32 all = (end - first) / twos * SIZE;
    for (u32 i = rank * WARPS * WARP + threadIdx.x; i < all; i += CLUSTER * WARPS * WARP) {
        u32 token = i / 16 % (8 * EIGHTS), strip = i / SIZE * twos, r = i % 16;
        if (token >= here) continue;
        u32 within = i % SIZE, row = (first + strip) / twos * 16 + r;
        u64 at = u64(token0 + token) * a.out_stride + row;
        float value = sum_of(strip * SIZE + within);
        if (a.epilogue == GATED) {
            float up = sum_of((strip + 1) * SIZE + within);
            if (row < a.matrix.rows / 2) static_cast<u16*>(a.out)[at] = to_bf16(activate(a.activation, value) * up);
            continue;
        }
        if (row >= a.matrix.rows) continue;
        if (a.bias) value += a.bias[row];
        if (a.epilogue == TO_BF16) {
            static_cast<u16*>(a.out)[at] = to_bf16(value);
        } else if (a.epilogue == TO_F32) {
            static_cast<float*>(a.out)[at] = value;
        } else {
            static_cast<float*>(a.out)[at] += value;
        }
    }
    if (CLUSTER > 1) {
        // Others may still read here.
        cluster_arrive();
        cluster_wait();
    }
}

#define HELD(group, eights, cluster)                                                                                               \
    KERNEL __cluster_dims__(cluster, 1, 1) __launch_bounds__(WARPS * WARP, 1)                                                      \
        held_##group##_##eights##x##cluster(const __grid_constant__ LinearArgs a) {                                                  \
        held<group, eights, cluster>(a);                                                                                           \
    }
HELD(64, 2, 1)
HELD(64, 2, 2)
HELD(64, 4, 1)
HELD(64, 4, 2)
HELD(128, 2, 1)
HELD(128, 2, 2)
HELD(128, 4, 1)
HELD(128, 4, 2)
#endif
