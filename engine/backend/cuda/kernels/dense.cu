// Many tokens times a matrix in bf16, on Hopper: both sides come from shared memory, as the tensor cores read them there.
//
// A block has 128 tokens and ROWS rows of the matrix. One warp asks for 64 columns of both at a time, some stages ahead; two groups
// of four warps have 64 tokens each. Two blocks of a cluster have the same rows and neighbouring tokens: each asks for half of
// the rows, for both. Blocks stay, and while they store what they have summed up, the next columns are on their way.
#include "products.cuh"

struct TurnTokensArgs {
    const u16* from;        // [.][stride] bf16
    const u32* pick;        // [count]: which rows, or null: the first ones
    u16* to;                // [count][columns], turned
    u32 count;
    u32 stride;
    u32 columns;
};

// One thread for each 16 bytes.
KERNEL turn_tokens(const __grid_constant__ TurnTokensArgs a) {
    wait_for_before();
    let_next_start();
    u32 at = blockIdx.x * blockDim.x + threadIdx.x, pieces = a.columns / 8, token = at / pieces, piece = at % pieces;
    if (token >= a.count) return;
    u64 row = a.pick ? a.pick[token] : token;
    uint4 words = *reinterpret_cast<const uint4*>(a.from + row * a.stride + piece * 8);
    *reinterpret_cast<uint4*>(a.to + u64(token) * a.columns + turned_pair(piece * 4) * 2) = words;
}

#if ARCH == 900
// A tensor as the copy engine is told of it.
struct __align__(64) TensorMap {
    u64 words[16];
};

struct DenseArgs {
    TensorMap tokens;       // [tokens][columns] bf16, each 64 columns turned (`turned_pair`); boxes of 128 x 64, 128-byte swizzle
    TensorMap strips;       // [strips][bytes]; boxes of half a block's strips x a chunk
    const float* bias;      // [rows] or null
    void* out;              // [count][out_stride]
    u32 count;              // of tokens
    u32 rows;               // true ones of the matrix
    u32 chunks;             // of 64 columns
    u32 out_stride;
    u32 epilogue;
    u32 activation;
    u32 turned;             // whether gated results are turned, for the next matrix
    u32 beside;             // tiles of rows before the next tokens come
};

// ---- Barriers and copies -----------------------------------------------------------------------------------------------------

DEVICE void barrier_make(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and makes the phase end when so many bytes are there too.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// In a block of the cluster. What is told is that reads are over, so nothing has to be made visible: `.release.cluster` would wait for
// all of this thread's writes to reach the whole card, and takes as long as a chunk's products.
DEVICE void barrier_arrive_at(u32 barrier, u32 block) {
    asm volatile(
        "{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [at]; }" ::"r"(barrier), "r"(block) : "memory");
}

// Until the phase of that parity is over.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred over;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

// A box of a tensor that begins at column `x` and row `y`.
DEVICE void copy_box(u32 to, const TensorMap& map, u32 x, u32 y, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier) : "memory");
}

// The same for both blocks of the cluster, to the same place, each told by its own barrier.
DEVICE void copy_box_to_both(u32 to, const TensorMap& map, u32 x, u32 y, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        ::"r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(u16(3)) : "memory");
}

DEVICE u32 rank_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void cluster_meet() {
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

// ---- Products: D (64 x ROWS, f32) += A (64 x 16) x B (16 x ROWS), bf16 -----------------------------------------------------------
// A lane holds of D what it holds of 16 x 8 pieces in `mma_bf16`, one after the other; a warp has 16 rows.

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_sent() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LATER>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
}

// What products made is there.
template <u32 N>
DEVICE void made(float (&d)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define FIRST_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
    "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FIRST_96 FIRST_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
    "%87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FIRST_128 FIRST_96 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
    "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define EIGHT(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ALL_64 EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
#define ALL_96 ALL_64, EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88)
#define ALL_128 ALL_96, EIGHT(96), EIGHT(104), EIGHT(112), EIGHT(120)
#define PRODUCT(rows, list, all, a_at, b_at, add_at)                                                                      \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #add_at ", 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32.bf16.bf16 {" list "}, %" #a_at ", %" #b_at                \
                 ", add, 1, 1, 0, 0; }"                                                                                       \
                 : all                                                                                                        \
                 : "l"(a), "l"(b), "r"(add))

// Without `add`, d becomes the product.
template <u32 ROWS>
DEVICE void product(float (&d)[ROWS / 2], u64 a, u64 b, u32 add) {
    if constexpr (ROWS == 128) PRODUCT(128, FIRST_64, ALL_64, 64, 65, 66);
    if constexpr (ROWS == 192) PRODUCT(192, FIRST_96, ALL_96, 96, 97, 98);
    if constexpr (ROWS == 256) PRODUCT(256, FIRST_128, ALL_128, 128, 129, 130);
}

// Rows in eights of 1024 bytes: those of tokens have 128 bytes, those of a chunk twice 64 (`tiles.cuh`); swizzled so far.
DEVICE u64 tokens_at(u32 shared) { return u64((shared & 0x3ffff) >> 4) | 1ull << 16 | u64(1024 >> 4) << 32 | 1ull << 62; }
DEVICE u64 chunks_at(u32 shared) { return u64((shared & 0x3ffff) >> 4) | 1ull << 16 | u64(1024 >> 4) << 32 | 2ull << 62; }

// ---- Results -----------------------------------------------------------------------------------------------------------------

DEVICE void store_matrix_x4(u32 shared_row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 ::"r"(shared_row), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

DEVICE uint4 load_shared_16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

// Added to what stands there; nobody waits.
DEVICE void add_four(float* to, float a, float b, float c, float d) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

static constexpr u32 OWN_STEP = 144;            // from token to token, so that no two lanes meet in a bank
static constexpr u32 OWN = 16 * OWN_STEP;

// EIGHTS times eight rows of sixteen tokens as bf16, from `row0` and `token0` on. `word(n, i)`: rows 2 t and the next one of the
// n-th eight, for the token g + 8 * i. `own` is the warp's shared memory.
template <u32 EIGHTS, class Word>
DEVICE void put_bf16(const DenseArgs& a, u32 own, u32 row0, u32 rows, u32 token0, bool turned, Word word) {
    u32 lane = lane_id();
#pragma unroll
    for (u32 n = 0; n < EIGHTS; n += 2) {
        store_matrix_x4(own + (lane / 8 % 2 * 8 + lane % 8) * OWN_STEP + (n + lane / 16) * 16, word(n, 0), word(n, 1),
                        word(n + 1, 0), word(n + 1, 1));
    }
    __syncwarp();
    u16* out = static_cast<u16*>(a.out);
    u32 piece = lane % 8, row = row0 + piece * 8, eight = row / 8;
    u32 to_row = turned ? row / 64 * 64 + (eight % 2 * 4 + eight / 2 % 4) * 8 : row;
    bool whole = row + 8 <= rows && a.out_stride % 8 == 0 && (reinterpret_cast<u64>(out) & 15) == 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 at = i * 4 + lane / 8, token = token0 + at;
        if (piece >= EIGHTS || token >= a.count || row >= rows) continue;
        uint4 v = load_shared_16(own + at * OWN_STEP + piece * 16);
        u16* to = out + u64(token) * a.out_stride + to_row;
        if (whole) {
            *reinterpret_cast<uint4*>(to) = v;
            continue;
        }
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            if (row + j < rows) to[j] = u16(words[j / 2] >> j % 2 * 16);
        }
    }
    __syncwarp();
}

// Sums of a warp's sixteen tokens, from `token0` on, and ROWS rows, from `row0` on.
template <u32 ROWS>
DEVICE void put_all(const DenseArgs& a, u32 own, u32 row0, u32 token0, float (&sums)[ROWS / 2]) {
    constexpr u32 EIGHTS = ROWS / 8;
    u32 lane = lane_id(), g = lane / 4, t = lane % 4;
    if (a.epilogue == GATED) {
        bool silu = a.activation == SILU;
        auto gated = [&](float x) { return silu ? __fdividef(x, 1.0f + __expf(-x)) : gelu_tanh(x); };
        // The n-th eight of results: gates, and ups sixteen rows further.
        auto word = [&](u32 n, u32 i) {
            u32 gate = (n / 2 * 4 + n % 2) * 4 + i * 2, up = gate + 8;
            return to_bf16x2(gated(sums[gate]) * sums[up], gated(sums[gate + 1]) * sums[up + 1]);
        };
#pragma unroll
        for (u32 n = 0; n < EIGHTS / 2; n += 8) {
            constexpr u32 REST = EIGHTS / 2 % 8;
            auto here = [&](u32 m, u32 i) { return word(n + m, i); };
            if (n + 8 <= EIGHTS / 2) {
                put_bf16<8>(a, own, row0 / 2 + n * 8, a.rows / 2, token0, a.turned, here);
            } else {
                put_bf16<REST ? REST : 8>(a, own, row0 / 2 + n * 8, a.rows / 2, token0, a.turned, here);
            }
        }
        return;
    }
    // Rows 2 t and the next one of the n-th eight, for the token g + 8 * i.
    auto pair = [&](u32 n, u32 i) {
        float2 both = make_float2(sums[4 * n + 2 * i], sums[4 * n + 2 * i + 1]);
        if (a.bias) {
            u32 row = row0 + n * 8 + 2 * t;
            if (row < a.rows) both.x += a.bias[row];
            if (row + 1 < a.rows) both.y += a.bias[row + 1];
        }
        return both;
    };
    if (a.epilogue == TO_BF16) {
#pragma unroll
        for (u32 n = 0; n < EIGHTS; n += 8) {
            put_bf16<8>(a, own, row0 + n * 8, a.rows, token0, false, [&](u32 m, u32 i) {
                float2 both = pair(n + m, i);
                return to_bf16x2(both.x, both.y);
            });
        }
        return;
    }
    float* out = static_cast<float*>(a.out);
    bool add = a.epilogue == ADD, odd = t % 2;
    if (add && row0 + ROWS <= a.rows && a.out_stride % 4 == 0 && (reinterpret_cast<u64>(out) & 15) == 0) {
        // Neighbouring lanes change pairs, so that each has four rows that follow each other.
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 token = token0 + g + 8 * i;
            float* to = out + u64(token) * a.out_stride + row0 + (odd ? 8 + 2 * t - 2 : 2 * t);
#pragma unroll
            for (u32 n = 0; n < EIGHTS; n += 2) {
                float2 first = pair(n, i), second = pair(n + 1, i);
                float x = __shfl_xor_sync(ALL, odd ? first.x : second.x, 1), y = __shfl_xor_sync(ALL, odd ? first.y : second.y, 1);
                if (token < a.count) {
                    add_four(to + n * 8, odd ? x : first.x, odd ? y : first.y, odd ? second.x : x, odd ? second.y : y);
                }
            }
        }
        return;
    }
#pragma unroll
    for (u32 n = 0; n < EIGHTS; n++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 token = token0 + g + i * 8, row = row0 + n * 8 + 2 * t;
            float2 both = pair(n, i);
            float* to = out + u64(token) * a.out_stride + row;
            if (token < a.count && row < a.rows) to[0] = both.x + (add ? to[0] : 0.0f);
            if (token < a.count && row + 1 < a.rows) to[1] = both.y + (add ? to[1] : 0.0f);
        }
    }
}

// ---- The kernel --------------------------------------------------------------------------------------------------------------

static constexpr u32 TOKENS = 128;
static constexpr u32 GROUPS = 2;

// What a block does next.
struct Tile {
    u32 row, token;         // the first ones
    DEVICE Tile(const DenseArgs& a, u32 item, u32 rows, u32 rank) {
        u32 row_tiles = (a.rows + rows - 1) / rows, token_tiles = (a.count + 2 * TOKENS - 1) / (2 * TOKENS);
        u32 left = item / (a.beside * token_tiles) * a.beside, beside = min(a.beside, row_tiles - left);
        u32 place = item - left * token_tiles;
        row = (left + place % beside) * rows;
        token = (place / beside * 2 + rank) * TOKENS;
    }
    static DEVICE u32 count(const DenseArgs& a, u32 rows) {
        return (a.rows + rows - 1) / rows * ((a.count + 2 * TOKENS - 1) / (2 * TOKENS));
    }
};

template <u32 ROWS, u32 STAGES>
DEVICE void dense(const DenseArgs& a) {
    constexpr u32 RIGHT = TOKENS * 128, LEFT = ROWS * 128, STAGE = RIGHT + LEFT;
    extern __shared__ uint4 memory[];
    u32 stages = (shared_address(memory) + 1023) & ~1023u, own = stages + STAGES * STAGE, barriers = own + GROUPS * 4 * OWN;
    // Kept, not worked out again for each chunk.
    asm volatile("" : "+r"(stages), "+r"(own), "+r"(barriers));
    auto full = [&](u32 slot) { return barriers + slot * 8; };
    auto empty = [&](u32 slot) { return barriers + (STAGES + slot) * 8; };
    u32 rank = rank_in_cluster(), group = __shfl_sync(ALL, threadIdx.x / (4 * WARP), 0), items = Tile::count(a, ROWS);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) barrier_make(full(i), 1), barrier_make(empty(i), 2 * GROUPS);
        barriers_made();
    }
    cluster_meet();
    let_next_start();
    u32 slot = 0, phase = 0;
    auto advance = [&] {
        if (++slot == STAGES) slot = 0, phase ^= 1;
    };
    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == GROUPS * 4 * WARP) {
            auto ask_strips = [&](u32 slot, u32 strip, u32 c) {
                barrier_expect(full(slot), STAGE);
                copy_box_to_both(stages + slot * STAGE + RIGHT + rank * (LEFT / 2), a.strips, c * 256, strip, full(slot));
            };
            // The matrix does not depend on what runs ahead.
            u32 asked = min(STAGES, a.chunks), own_strip = rank * (ROWS / 32);
            u32 first = Tile(a, blockIdx.x / 2, ROWS, rank).row / 16 + own_strip;
            for (u32 c = 0; c < asked; c++) ask_strips(c, first, c);
            wait_for_before();
            for (u32 item = blockIdx.x / 2; item < items; item += gridDim.x / 2) {
                Tile tile(a, item, ROWS, rank);
                u32 strip = tile.row / 16 + own_strip;
                for (u32 c = 0; c < a.chunks; c++) {
                    if (asked > 0) {
                        asked--;
                    } else {
                        barrier_wait(empty(slot), phase ^ 1);
                        ask_strips(slot, strip, c);
                    }
                    copy_box(stages + slot * STAGE, a.tokens, c * 64, tile.token, full(slot));
                    advance();
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        u32 thread = threadIdx.x % (4 * WARP), warp = warp_id();
        float sums[ROWS / 2];
        wait_for_before();
        for (u32 item = blockIdx.x / 2; item < items; item += gridDim.x / 2) {
            u32 last = 0;
            for (u32 c = 0; c < a.chunks; c++) {
                u32 at = stages + slot * STAGE;
                u64 tokens = tokens_at(at + group * 64 * 128), chunks = chunks_at(at + RIGHT);
                barrier_wait(full(slot), phase);
                products_begin();
#pragma unroll
                for (u32 j = 0; j < 4; j++) product<ROWS>(sums, tokens + j * 2, chunks + j / 2 * 32 + j % 2 * 2, c + j > 0);
                products_sent();
                // The chunk before is done: both blocks may write there.
                products_wait<1>();
                if (c > 0 && thread < 2) barrier_arrive_at(empty(last), thread);
                last = slot;
                advance();
            }
            products_wait<0>();
            made(sums);
            if (thread < 2) barrier_arrive_at(empty(last), thread);
            Tile tile(a, item, ROWS, rank);
            put_all<ROWS>(a, own + warp * OWN, tile.row, tile.token + warp * 16, sums);
        }
    }
    // Nobody goes while the other block may still write to it.
    __syncwarp();
    cluster_meet();
}

#define DENSE(rows, stages)                                                                                                   \
    KERNEL __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) dense_##rows(const __grid_constant__ DenseArgs a) {                \
        dense<rows, stages>(a);                                                                                                   \
    }
DENSE(128, 6)
DENSE(192, 5)
DENSE(256, 4)
#endif
