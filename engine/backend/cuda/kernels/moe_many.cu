// Mixtures of experts: what the experts make of many tokens. Products are what is waited for.
//
// Each expert's pairs in tiles of 128, each with the expert's rows in tiles of 256: a list of work that every block reads out of
// the experts' counts, and goes through in strides.
#include "moe.cuh"

struct ManyArgs {
    const u16* in;          // [T][columns], or [pairs][columns], bf16
    Matrix experts;
    const u32* counts;      // [experts]
    const u32* lists;       // [experts][T]
    u16* out;               // [pairs][rows, or half of them where gate and up meet] bf16
    u32 tokens;
    u32 pairs_per_row;      // of `in`: k, or 1
    u32 count;              // how many experts there are
    u32 activation;
};

static constexpr u32 TILE_TOKENS = 128;
static constexpr u32 TILE_STRIPS = 16;
// A warp has four strips and 64 of the tokens.
static constexpr u32 WARP_STRIPS = 4;
static constexpr u32 WARP_TOKENS = 64;
// Cards with less shared memory keep less on the way; code for 8.0 runs on some of them.
static constexpr u32 STAGES = ARCH < 900 || ARCH >= 1200 ? 2 : 3;

// 64 columns of a strip in shared memory: the words, then what stands at the end of their group.
template <u32 FORMAT>
struct Unit {
    static constexpr u32 WORDS = FORMAT == BF16 ? 2048 : FORMAT == FP8 ? 1024 : 512;
    static constexpr u32 BYTES = WORDS + (FORMAT == BF16 ? 0 : 64);
    static constexpr u32 PIECES = BYTES / 16;
};

// Where piece `piece` of a unit lies in its strip.
template <u32 FORMAT, u32 GROUP>
DEVICE u32 piece_at(u32 unit, u32 piece) {
    if (FORMAT != INT4) return unit * Unit<FORMAT>::BYTES + piece * 16;
    u32 chunk = unit * 64 / GROUP * (GROUP * 8 + 64);
    return chunk + (piece < 32 ? unit * 64 % GROUP * 8 : GROUP * 8 - 512) + piece * 16;
}

DEVICE void load_shared(Tiles<BF16>& tiles, const u8* unit) { tiles.load_shared(unit); }

DEVICE void load_shared(Tiles<INT4>& tiles, const u8* unit) {
    tiles.words = *reinterpret_cast<const uint4*>(unit + lane_id() * 16);
    const u32* rows = reinterpret_cast<const u32*>(unit + 512) + lane_id() / 4;
    tiles.about[0] = rows[0], tiles.about[1] = rows[8];
}

DEVICE void load_shared(Tiles<FP8>& tiles, const u8* unit) {
#pragma unroll
    for (u32 j = 0; j < 2; j++) tiles.words[j] = *reinterpret_cast<const uint4*>(unit + j * 512 + lane_id() * 16);
    const float* rows = reinterpret_cast<const float*>(unit + 1024) + lane_id() / 4;
    tiles.about[0] = rows[0], tiles.about[1] = rows[8];
}

// Grid: as many blocks as fit on the card. Shared: stages, or the result before it is stored; then `before`.
template <u32 FORMAT, u32 GROUP, bool GATED>
DEVICE void many(const ManyArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ u32 offsets[TILE_TOKENS];
    static constexpr u32 RIGHT = TILE_TOKENS * 128, STAGE = RIGHT + TILE_STRIPS * Unit<FORMAT>::BYTES;
    static constexpr u32 WIDTH = GATED ? TILE_STRIPS * 8 : TILE_STRIPS * 16, TURNED = WIDTH + 8;
    wait_for_before();
    let_next_start();
    u8* stages = reinterpret_cast<u8*>(dynamic);
    // `moe.rs` computes the same.
    static constexpr u32 RESULT = TILE_TOKENS * TURNED * 2;
    u32* before = reinterpret_cast<u32*>(stages + (STAGES * STAGE > RESULT ? STAGES * STAGE : RESULT));
    count_tiles<TILE_TOKENS>(before, a.counts, a.count);
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 strips_of_warp = warp_id() % 4 * WARP_STRIPS, tokens_of_warp = warp_id() / 4 * WARP_TOKENS;
    u32 columns = a.experts.columns, units = columns / 64, strips = a.experts.rows / 16;
    u32 width = GATED ? a.experts.rows / 2 : a.experts.rows;
    u32 row_tiles = (strips + TILE_STRIPS - 1) / TILE_STRIPS;
    for (u32 work = blockIdx.x; work < before[a.count] * row_tiles; work += gridDim.x) {
        u32 tile = work / row_tiles, first_strip = work % row_tiles * TILE_STRIPS;
        u32 expert = expert_of(before, a.count, tile);
        u32 first = (tile - before[expert]) * TILE_TOKENS, live = min(TILE_TOKENS, a.counts[expert] - first);
        const u32* list = a.lists + u64(expert) * a.tokens + first;
        if (threadIdx.x < TILE_TOKENS) {
            offsets[threadIdx.x] = threadIdx.x < live ? list[threadIdx.x] / a.pairs_per_row : ALL;
        }
        __syncthreads();
        const u8* left = a.experts.tiles + expert * a.experts.matrix_bytes + u64(first_strip) * a.experts.strip_bytes;
        auto fetch = [&](u32 unit) {
            u8* stage = stages + unit % STAGES * STAGE;
            u32 piece = threadIdx.x % 8;
#pragma unroll
            for (u32 i = 0; i < TILE_TOKENS / 32; i++) {
                u32 n = threadIdx.x / 8 + i * 32, row = offsets[n];
                bool there = row != ALL;
                copy_16(stage + n * 128 + (piece ^ (n & 1)) * 16, a.in + u64(there ? row : 0) * columns + unit * 64 + piece * 8, there);
            }
            for (u32 i = threadIdx.x; i < TILE_STRIPS * Unit<FORMAT>::PIECES; i += THREADS) {
                u32 strip = i / Unit<FORMAT>::PIECES, at = i % Unit<FORMAT>::PIECES;
                bool there = first_strip + strip < strips;
                copy_16(stage + RIGHT + strip * Unit<FORMAT>::BYTES + at * 16,
                        left + (there ? strip : 0) * a.experts.strip_bytes + piece_at<FORMAT, GROUP>(unit, at), there);
            }
        };
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            if (i < units) fetch(i);
            copies_done_so_far();
        }
        float sums[WARP_STRIPS][WARP_TOKENS / 8][4] = {};
        for (u32 unit = 0; unit < units; unit++) {
            wait_for_copies<STAGES - 2>();
            __syncthreads();
            if (unit + STAGES - 1 < units) fetch(unit + STAGES - 1);
            copies_done_so_far();
            const u8* stage = stages + unit % STAGES * STAGE;
            u32 fed[WARP_STRIPS][4][4];
            float2 scales[WARP_STRIPS];
#pragma unroll
            for (u32 s = 0; s < WARP_STRIPS; s++) {
                Tiles<FORMAT> tiles;
                load_shared(tiles, stage + RIGHT + (strips_of_warp + s) * Unit<FORMAT>::BYTES);
#pragma unroll
                for (u32 j = 0; j < 4; j++) tiles.step(j, fed[s][j]);
                scales[s] = tiles.scale();
            }
#pragma unroll
            for (u32 n = 0; n < WARP_TOKENS / 8; n++) {
                if (tokens_of_warp + n * 8 >= live) break;
                const u8* row = stage + (tokens_of_warp + n * 8 + g) * 128;
                Right right;
                right.words[0] = *reinterpret_cast<const uint4*>(row + ((2 * t) ^ (g & 1)) * 16);
                right.words[1] = *reinterpret_cast<const uint4*>(row + ((2 * t + 1) ^ (g & 1)) * 16);
                float part[WARP_STRIPS][4] = {};
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
#pragma unroll
                    for (u32 s = 0; s < WARP_STRIPS; s++) mma_bf16(part[s], fed[s][j], right.b0(j), right.b1(j));
                }
#pragma unroll
                for (u32 s = 0; s < WARP_STRIPS; s++) {
                    sums[s][n][0] += part[s][0] * scales[s].x, sums[s][n][1] += part[s][1] * scales[s].x;
                    sums[s][n][2] += part[s][2] * scales[s].y, sums[s][n][3] += part[s][3] * scales[s].y;
                }
            }
        }
        wait_for_copies<0>();
        __syncthreads();
        u16* turned = reinterpret_cast<u16*>(stages);
#pragma unroll
        for (u32 n = 0; n < WARP_TOKENS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u16* to = turned + (tokens_of_warp + n * 8 + 2 * t + i % 2) * TURNED + g + i / 2 * 8;
                if (GATED) {
#pragma unroll
                    for (u32 s = 0; s < WARP_STRIPS; s += 2) {
                        to[(strips_of_warp + s) * 8] = to_bf16(activate(a.activation, sums[s][n][i]) * sums[s + 1][n][i]);
                    }
                } else {
#pragma unroll
                    for (u32 s = 0; s < WARP_STRIPS; s++) to[(strips_of_warp + s) * 16] = to_bf16(sums[s][n][i]);
                }
            }
        }
        __syncthreads();
        u32 first_column = first_strip * (GATED ? 8 : 16);
        for (u32 i = threadIdx.x; i < live * (WIDTH / 8); i += THREADS) {
            u32 n = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
            if (first_column + column < width) {
                *reinterpret_cast<uint4*>(a.out + u64(list[n]) * width + first_column + column) =
                    *reinterpret_cast<const uint4*>(turned + n * TURNED + column);
            }
        }
        __syncthreads();
    }
}

#if ARCH == 900
// ---- Many tokens, on Hopper's own tensor cores --------------------------------------------------------------------------------------
// `wgmma` takes the left side from registers as `mma` does, and the right side from shared memory, where the columns of 64 lie in
// the order in which lanes have them: step j, halves, lanes, pairs. What is read is kept in that order (`turn`, and gate and up).

// Position of a column among its 64: 16 t + 4 j + 2 h + b lies at 16 j + 8 h + 2 t + b.
DEVICE u32 turned_column(u32 column) {
    return column / 64 * 64 + column / 4 % 4 * 16 + column / 2 % 2 * 8 + column / 16 % 4 * 2 + column % 2;
}

struct TurnArgs {
    const u16* in;          // [T][columns] bf16
    u16* out;               // the same, each 64 columns in another order
    u32 columns;
};

// Each thread writes eight values. Grid: columns / 8 / threads, tokens.
KERNEL turn(const __grid_constant__ TurnArgs a) {
    wait_for_before();
    let_next_start();
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= a.columns) return;
    u32 j = at / 16 % 4, h = at / 8 % 2;
    const u32* from = reinterpret_cast<const u32*>(a.in + u64(blockIdx.y) * a.columns + at / 64 * 64 + 4 * j + 2 * h);
    *reinterpret_cast<uint4*>(a.out + u64(blockIdx.y) * a.columns + at) = make_uint4(from[0], from[8], from[16], from[24]);
}

// The compiler does not know that `wgmma` still reads and writes registers after it was started: values are made before this,
// and used behind it.
template <u32 N>
DEVICE void pin(float (&values)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(values[i])::"memory");
}

template <u32 N>
DEVICE void pin(u32 (&values)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+r"(values[i])::"memory");
}

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// What was written to shared memory is seen by `wgmma`.
DEVICE void shared_is_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Where 64 rows of 128 bytes lie in shared memory, 16-byte pieces exchanged by the row's last three bits.
DEVICE u64 rows_of_64(const void* shared) { return u64(shared_address(shared) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

// D (64 x 64) = A x B, or += where `add`. Registers as `mma_bf16` has them, a warp for 16 rows, eight times eight tokens.
DEVICE void wgmma_64(float (&d)[32], const u32 (&a)[4], u64 b, u32 add) {
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, add, 1, 1, 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

static constexpr u32 WIDE_TOKENS = 64;

// As `many`, with tiles of 256 rows and 64 tokens: eight strips for each of two groups of four warps, two for each warp.
// `in` is turned, and so is the result where gate and up meet.
template <u32 FORMAT, u32 GROUP, bool GATED>
DEVICE void wide(const ManyArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ u32 offsets[WIDE_TOKENS];
    // Units come in batches, the next one while this one is multiplied: what makes copies visible to `wgmma` waits for every copy
    // that is on its way, and so is done once for several.
    static constexpr u32 BATCH = FORMAT == BF16 ? 2 : 4, DEEP = 2 * BATCH;
    static constexpr u32 RIGHT = WIDE_TOKENS * 128, STAGE = RIGHT + TILE_STRIPS * Unit<FORMAT>::BYTES;
    static constexpr u32 WIDTH = GATED ? TILE_STRIPS * 8 : TILE_STRIPS * 16, TURNED = WIDTH + 8;
    static constexpr bool SCALED = FORMAT != BF16;
    static_assert(STAGE % 1024 == 0 && DEEP * STAGE >= WIDE_TOKENS * TURNED * 2, "rows of 64 begin at multiples of 1024");
    wait_for_before();
    let_next_start();
    u8* stages = reinterpret_cast<u8*>(dynamic);
    stages += (1024 - shared_address(stages) % 1024) % 1024;
    u32* before = reinterpret_cast<u32*>(stages + DEEP * STAGE);
    count_tiles<WIDE_TOKENS>(before, a.counts, a.count);
    u32 g = lane_id() / 4, t = lane_id() % 4, warp = warp_id();
    u32 columns = a.experts.columns, units = columns / 64, all_units = (units + BATCH - 1) / BATCH * BATCH, strips = a.experts.rows / 16;
    u32 width = GATED ? a.experts.rows / 2 : a.experts.rows;
    u32 row_tiles = (strips + TILE_STRIPS - 1) / TILE_STRIPS;
    for (u32 work = blockIdx.x; work < before[a.count] * row_tiles; work += gridDim.x) {
        u32 tile = work / row_tiles, first_strip = work % row_tiles * TILE_STRIPS;
        u32 expert = expert_of(before, a.count, tile);
        u32 first = (tile - before[expert]) * WIDE_TOKENS, live = min(WIDE_TOKENS, a.counts[expert] - first);
        const u32* list = a.lists + u64(expert) * a.tokens + first;
        if (threadIdx.x < WIDE_TOKENS) {
            offsets[threadIdx.x] = threadIdx.x < live ? list[threadIdx.x] / a.pairs_per_row : ALL;
        }
        __syncthreads();
        const u8* left = a.experts.tiles + expert * a.experts.matrix_bytes + u64(first_strip) * a.experts.strip_bytes;
        // What this thread copies of every unit: pieces of two tokens, and of up to `PIECES` strips.
        const u8* tokens_from[WIDE_TOKENS / 32];
        bool tokens_there[WIDE_TOKENS / 32];
        u32 piece = threadIdx.x % 8, token_to = threadIdx.x / 8 * 128 + (piece ^ threadIdx.x / 8 % 8) * 16;
#pragma unroll
        for (u32 i = 0; i < WIDE_TOKENS / 32; i++) {
            u32 row = offsets[threadIdx.x / 8 + i * 32];
            tokens_there[i] = row != ALL;
            tokens_from[i] = reinterpret_cast<const u8*>(a.in + u64(tokens_there[i] ? row : 0) * columns + piece * 8);
        }
        static constexpr u32 ALL_PIECES = TILE_STRIPS * Unit<FORMAT>::PIECES, PIECES = (ALL_PIECES + THREADS - 1) / THREADS;
        const u8* strips_from[PIECES];
        bool strips_there[PIECES];
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = threadIdx.x + i * THREADS, strip = at / Unit<FORMAT>::PIECES;
            strips_there[i] = first_strip + strip < strips;
            strips_from[i] = left + (strips_there[i] ? strip : 0) * a.experts.strip_bytes +
                             piece_at<FORMAT, GROUP>(0, at % Unit<FORMAT>::PIECES);
        }
        auto fetch = [&](u32 unit, u8* stage) {
            // Those that fill up the last batch are zeros.
            bool whole = unit < units;
            if (!whole) unit = 0;
#pragma unroll
            for (u32 i = 0; i < WIDE_TOKENS / 32; i++) {
                copy_16(stage + token_to + i * 32 * 128, tokens_from[i] + unit * 128, whole && tokens_there[i]);
            }
#pragma unroll
            for (u32 i = 0; i < PIECES; i++) {
                u32 at = threadIdx.x + i * THREADS;
                u32 ahead = piece_at<FORMAT, GROUP>(unit, 0);
                // What stands at a group's end is the same for all its units.
                if (FORMAT == INT4 && at % Unit<FORMAT>::PIECES >= 32) ahead -= unit * 64 % GROUP * 8;
                if ((i + 1) * THREADS <= ALL_PIECES || at < ALL_PIECES) {
                    copy_16(stage + RIGHT + at * 16, strips_from[i] + ahead, whole && strips_there[i]);
                }
            }
        };
        auto fetch_batch = [&](u32 unit) {
            u8* to = stages + unit / BATCH % 2 * (BATCH * STAGE);
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) fetch(unit + i, to + i * STAGE);
            copies_done_so_far();
        };
        fetch_batch(0);
        float sums[2][32] = {}, part[2][32] = {};
        u32 fed[2][2][4][4];
        float2 scales[2][2];
        auto scale_part = [&](const float2 (&scale)[2]) {
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
#pragma unroll
                for (u32 i = 0; i < 32; i++) sums[m][i] += part[m][i] * (i / 2 % 2 ? scale[m].y : scale[m].x);
            }
        };
        auto step = [&](u32 (&fed)[2][4][4], float2 (&now)[2], const float2 (&earlier)[2], u32 unit, const u8* stage) {
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                Tiles<FORMAT> tiles;
                load_shared(tiles, stage + RIGHT + (2 * warp + m) * Unit<FORMAT>::BYTES);
#pragma unroll
                for (u32 j = 0; j < 4; j++) tiles.step(j, fed[m][j]);
                now[m] = tiles.scale();
            }
            bool begins = SCALED ? unit * 64 % GROUP == 0 : unit == 0;
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) pin(fed[m][j]);
            }
            wgmma_wait();
            pin(part[0]), pin(part[1]);
            if (SCALED && begins && unit) scale_part(earlier);
            pin(sums[0]), pin(sums[1]);
            u64 right = rows_of_64(stage);
            wgmma_fence();
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
#pragma unroll
                for (u32 m = 0; m < 2; m++) wgmma_64(part[m], fed[m][j], right + 2 * j, j || !begins);
            }
            wgmma_commit();
        };
        for (u32 batch = 0; batch < all_units; batch += BATCH) {
            // This batch has come, and nobody reads the one before any more.
            wait_for_copies<0>();
            shared_is_written();
            wgmma_wait();
            pin(part[0]), pin(part[1]);
            __syncthreads();
            if (batch + BATCH < all_units) fetch_batch(batch + BATCH);
            const u8* stage = stages + batch / BATCH % 2 * (BATCH * STAGE);
#pragma unroll
            for (u32 i = 0; i < BATCH; i += 2) {
                step(fed[0], scales[0], scales[1], batch + i, stage + i * STAGE);
                step(fed[1], scales[1], scales[0], batch + i + 1, stage + (i + 1) * STAGE);
            }
        }
        wgmma_wait();
        pin(part[0]), pin(part[1]);
        wait_for_copies<0>();
        if (SCALED) {
            scale_part(scales[1]);
        } else {
#pragma unroll
            for (u32 i = 0; i < 64; i++) sums[i / 32][i % 32] = part[i / 32][i % 32];
        }
        __syncthreads();
        u16* turned = reinterpret_cast<u16*>(stages);
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            u16* to = turned + (i / 4 * 8 + 2 * t + i % 2) * TURNED;
            u32 row = g + i / 2 % 2 * 8;
            if (GATED) {
                to[turned_column(warp * 16 + row)] = to_bf16(activate(a.activation, sums[0][i]) * sums[1][i]);
            } else {
                to[warp * 32 + row] = to_bf16(sums[0][i]);
                to[warp * 32 + 16 + row] = to_bf16(sums[1][i]);
            }
        }
        __syncthreads();
        u32 first_column = first_strip * (GATED ? 8 : 16);
        for (u32 i = threadIdx.x; i < live * (WIDTH / 8); i += THREADS) {
            u32 n = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
            if (first_column + column < width) {
                *reinterpret_cast<uint4*>(a.out + u64(list[n]) * width + first_column + column) =
                    *reinterpret_cast<const uint4*>(turned + n * TURNED + column);
            }
        }
        __syncthreads();
    }
}
#endif

// ---- For each format ---------------------------------------------------------------------------------------------------------------

#define MANY(NAME, FORMAT, GROUP)                                                                                             \
    KERNEL __launch_bounds__(THREADS, 1) gate_up_many_##NAME(const __grid_constant__ ManyArgs a) {                             \
        many<FORMAT, GROUP, true>(a);                                                                                          \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 1) down_many_##NAME(const __grid_constant__ ManyArgs a) {                                \
        many<FORMAT, GROUP, false>(a);                                                                                         \
    }

MANY(bf16, BF16, 64)
MANY(int4_64, INT4, 64)
MANY(int4_128, INT4, 128)
MANY(fp8, FP8, 64)

#if ARCH == 900
#define WIDE(NAME, FORMAT, GROUP)                                                                                             \
    KERNEL __launch_bounds__(THREADS, 1) gate_up_wide_##NAME(const __grid_constant__ ManyArgs a) {                             \
        wide<FORMAT, GROUP, true>(a);                                                                                          \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 1) down_wide_##NAME(const __grid_constant__ ManyArgs a) {                                \
        wide<FORMAT, GROUP, false>(a);                                                                                         \
    }

WIDE(bf16, BF16, 64)
WIDE(int4_64, INT4, 64)
WIDE(int4_128, INT4, 128)
WIDE(fp8, FP8, 64)
#endif
