// Mixtures of experts: what the experts make of few tokens, up to some 200. Weights are what is waited for.
#include "moe.cuh"

// The most experts that a token may have.
static constexpr u32 MOST_CHOSEN = 16;

// ---- Gate and up -----------------------------------------------------------------------------------------------------------------

struct GateUpArgs {
    const u16* x;           // [T][hidden] bf16
    Matrix experts;         // strips of gate and up in turn
    const u32* chosen;      // [T][k]
    const u32* counts;      // [experts], or null: blocks go by pairs
    const u32* lists;       // [experts][T]
    u16* out;               // [pairs][inner] bf16
    u32 tokens;
    u32 chosen_per_token;
    u32 activation;
    u32 together;           // tokens of an expert at a time, where strips are in shared memory
    u32 per_block;          // times 16 values of a block, there
    u32 per_token;          // 2^32 / k, rounded up, or 0 for k = 1: a pair's number times this is its token times 2^32 and a rest
};

DEVICE u32 token_of(const GateUpArgs& a, u32 pair) { return a.per_token ? __umulhi(pair, a.per_token) : pair; }

// A row in shared memory, so far from the next one that lanes which read the same columns of eight rows meet in no bank.
DEVICE u32 row_pitch(u32 columns) { return columns + 8; }

// A block for 16 values of `inner` of one expert, whose warps share the columns. Weights are on their way before anything else.
// Without lists it is for a pair, and for all later ones of the same expert; blocks of those end.
// Grid: inner / 16, pairs or experts. Shared: rows of at most eight tokens.
template <u32 FORMAT, u32 GROUP, u32 DEPTH>
DEVICE void gate_up_few(const GateUpArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ float part[WARPS][2][COLUMNS * PITCH];
    __shared__ u32 pairs[WARPS][COLUMNS];
    // In this order, for `down`: what starts after this knows that the router is done.
    wait_for_before();
    let_next_start();
    u16* rows = reinterpret_cast<u16*>(dynamic);
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, k = a.chosen_per_token;
    u32 expert = blockIdx.y, count = 0;
    const u32* list = nullptr;
    if (a.counts) {
        count = a.counts[expert];
        list = a.lists + u64(expert) * a.tokens;
    } else if (a.tokens == 1) {
        expert = a.chosen[blockIdx.y], count = 1;
        if (lane == 0) pairs[warp][0] = blockIdx.y;
    } else {
        expert = a.chosen[blockIdx.y];
        for (u32 base = 0; base < a.tokens * k; base += WARP) {
            bool same = base + lane < a.tokens * k && a.chosen[base + lane] == expert;
            u32 mask = __ballot_sync(ALL, same);
            if (count == 0 && mask && base + __ffs(mask) - 1 != blockIdx.y) return;
            if (same) pairs[warp][count + __popc(mask & ((1u << lane) - 1))] = base + lane;
            count += __popc(mask);
        }
    }
    u32 hidden = a.experts.columns, units = hidden / 64, pitch = row_pitch(hidden);
    u32 per = (units + WARPS - 1) / WARPS, from = warp * per, to = min(from + per, units);
    const u8* gate = a.experts.tiles + expert * a.experts.matrix_bytes + u64(2 * blockIdx.x) * a.experts.strip_bytes;
    const u8* up = gate + a.experts.strip_bytes;
    for (u32 first = 0; first < count; first += COLUMNS) {
        u32 live = min(COLUMNS, count - first);
        Tiles<FORMAT> gates[DEPTH], ups[DEPTH];
        auto load = [&](u32 unit) {
#pragma unroll
            for (u32 i = 0; i < DEPTH; i++) {
                if (unit + i < to) {
                    gates[i].load(gate, (unit + i) * 64, GROUP);
                    ups[i].load(up, (unit + i) * 64, GROUP);
                }
            }
        };
        load(from);
        if (list && lane < live) pairs[warp][lane] = list[first + lane];
        __syncwarp();
        for (u32 n = 0; n < live; n++) {
            const u16* row = a.x + u64(pairs[warp][n] / k) * hidden;
            for (u32 at = from * 64 + lane * 8; at < to * 64; at += WARP * 8) copy_16(rows + n * pitch + at, row + at);
        }
        copies_done_so_far();
        wait_for_copies<0>();
        __syncwarp();
        float sums[2][4] = {};
        for (u32 unit = from; unit < to; unit += DEPTH) {
            if (unit != from) load(unit);
#pragma unroll
            for (u32 i = 0; i < DEPTH; i++) {
                if (unit + i < to) {
                    Right right;
                    right.clear();
                    if (g < live) right.load(rows + g * pitch, (unit + i) * 64);
                    multiply_64<FORMAT>(sums[0], gates[i], right);
                    multiply_64<FORMAT>(sums[1], ups[i], right);
                }
            }
        }
        put_sums(part[warp][0], sums[0]);
        put_sums(part[warp][1], sums[1]);
        __syncthreads();
        u32 n = threadIdx.x / 16, row = threadIdx.x % 16;
        if (n < live) {
            float both[2] = {};
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) {
                both[0] += part[i][0][n * PITCH + row];
                both[1] += part[i][1][n * PITCH + row];
            }
            u64 inner = u64(gridDim.x) * 16;
            a.out[pairs[warp][n] * inner + blockIdx.x * 16 + row] = to_bf16(activate(a.activation, both[0]) * both[1]);
        }
        __syncthreads();
    }
}

// ---- Down ------------------------------------------------------------------------------------------------------------------------

struct DownArgs {
    const u16* in;          // [pairs][inner] bf16
    Matrix experts;
    const u32* chosen;      // [T][k]
    const float* weights;   // [T][k]
    u32* counts;            // [experts]; `combine` makes them zeros
    const u32* lists;       // [experts][T]
    u16* each;              // [pairs][hidden] bf16: not yet summed
    float* x;               // [T][hidden]: what the sum is added to,
    u16* out;               // [T][hidden] bf16, or, where this is not null, written to
    u32 tokens;
    u32 chosen_per_token;
    u32 count;              // how many experts there are
};

// A block for 16 values of one token: a warp for each of its experts. Their sum is taken in the order of the slots.
// Grid: hidden / 16, tokens; as many warps as experts of a token. Shared: their rows.
template <u32 FORMAT, u32 GROUP, u32 DEPTH>
DEVICE void down_few(const DownArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ float part[MOST_CHOSEN][16];
    let_next_start();
    wait_for_before();
    u32 warp = warp_id(), lane = lane_id(), k = a.chosen_per_token;
    u32 inner = a.experts.columns, units = inner / 64, pair = blockIdx.y * k + warp;
    u32 expert = a.chosen[pair];
    float weight = a.weights[pair];
    const u8* strip = a.experts.tiles + expert * a.experts.matrix_bytes + u64(blockIdx.x) * a.experts.strip_bytes;
    Tiles<FORMAT> left[DEPTH];
    auto load = [&](u32 unit) {
#pragma unroll
        for (u32 i = 0; i < DEPTH; i++) {
            if (unit + i < units) left[i].load(strip, (unit + i) * 64, GROUP);
        }
    };
    load(0);
    u16* row = reinterpret_cast<u16*>(dynamic) + warp * inner;
    for (u32 at = lane * 8; at < inner; at += WARP * 8) copy_16(row + at, a.in + u64(pair) * inner + at);
    copies_done_so_far();
    wait_for_copies<0>();
    __syncwarp();
    float sums[4] = {};
    for (u32 unit = 0; unit < units; unit += DEPTH) {
        if (unit) load(unit);
#pragma unroll
        for (u32 i = 0; i < DEPTH; i++) {
            if (unit + i < units) {
                // The same token in all eight columns.
                Right right;
                right.load(row, (unit + i) * 64);
                multiply_64<FORMAT>(sums, left[i], right);
            }
        }
    }
    if (lane % 4 == 0) {
        part[warp][lane / 4] = sums[0] * weight;
        part[warp][lane / 4 + 8] = sums[2] * weight;
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        float sum = 0.0f;
        for (u32 i = 0; i < k; i++) sum += part[i][threadIdx.x];
        u64 at = u64(blockIdx.y) * a.experts.rows + blockIdx.x * 16 + threadIdx.x;
        if (a.out) {
            a.out[at] = to_bf16(sum);
        } else {
            a.x[at] += sum;
        }
    }
}

// A block for 128 values of all pairs of an expert, eight at a time; each warp a strip.
// Grid: hidden / 128, experts. Shared: rows of at most eight pairs.
template <u32 FORMAT, u32 GROUP, u32 DEPTH>
DEVICE void down_each(const DownArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ u16 turned[COLUMNS][128 + 8];
    let_next_start();
    wait_for_before();
    u16* rows = reinterpret_cast<u16*>(dynamic);
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4;
    u32 inner = a.experts.columns, units = inner / 64, hidden = a.experts.rows, pitch = row_pitch(inner);
    u32 expert = blockIdx.y, count = a.counts[expert], strip = blockIdx.x * WARPS + warp;
    const u32* list = a.lists + u64(expert) * a.tokens;
    const u8* tiles = a.experts.tiles + expert * a.experts.matrix_bytes + u64(strip) * a.experts.strip_bytes;
    u32 to = strip * 16 < hidden ? units : 0;
    for (u32 first = 0; first < count; first += COLUMNS) {
        u32 live = min(COLUMNS, count - first);
        Tiles<FORMAT> left[DEPTH];
        auto load = [&](u32 unit) {
#pragma unroll
            for (u32 i = 0; i < DEPTH; i++) {
                if (unit + i < to) left[i].load(tiles, (unit + i) * 64, GROUP);
            }
        };
        load(0);
        // Each warp fetches a row.
        if (warp < live) {
            const u16* row = a.in + u64(list[first + warp]) * inner;
            for (u32 at = lane * 8; at < inner; at += WARP * 8) copy_16(rows + warp * pitch + at, row + at);
        }
        copies_done_so_far();
        wait_for_copies<0>();
        __syncthreads();
        float sums[4] = {};
        for (u32 unit = 0; unit < to; unit += DEPTH) {
            if (unit) load(unit);
#pragma unroll
            for (u32 i = 0; i < DEPTH; i++) {
                if (unit + i < to) {
                    Right right;
                    right.clear();
                    if (g < live) right.load(rows + g * pitch, (unit + i) * 64);
                    multiply_64<FORMAT>(sums, left[i], right);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) turned[2 * t + i % 2][warp * 16 + g + i / 2 * 8] = to_bf16(sums[i]);
        __syncthreads();
        u32 n = threadIdx.x / 16, at = blockIdx.x * 128 + threadIdx.x % 16 * 8;
        if (n < live && at < hidden) {
            *reinterpret_cast<uint4*>(a.each + u64(list[first + n]) * hidden + at) =
                *reinterpret_cast<const uint4*>(&turned[n][threadIdx.x % 16 * 8]);
        }
    }
}

// ---- Strips in shared memory -----------------------------------------------------------------------------------------------------
// Where a block's strips fit into shared memory, they are copied there whole: nothing waits for registers, more blocks are at
// work at a time, and an expert's further tokens find the weights where they are.

// What strips are made of: a group of columns.
template <u32 FORMAT, u32 GROUP>
struct Chunk {
    static constexpr u32 COLUMNS = FORMAT == INT4 ? GROUP : 64;
    static constexpr u32 BYTES = FORMAT == BF16 ? 2048 : FORMAT == FP8 ? 1088 : GROUP * 8 + 64;
};

// 64 columns of a chunk in shared memory.
template <u32 GROUP>
DEVICE void load_staged(Tiles<INT4>& tiles, const u8* chunk, u32 column) {
    tiles.words = *reinterpret_cast<const uint4*>(chunk + column * 8 + lane_id() * 16);
    const u32* rows = reinterpret_cast<const u32*>(chunk + GROUP * 8) + lane_id() / 4;
    tiles.about[0] = rows[0], tiles.about[1] = rows[8];
}

template <u32 GROUP>
DEVICE void load_staged(Tiles<FP8>& tiles, const u8* chunk, u32) {
#pragma unroll
    for (u32 j = 0; j < 2; j++) tiles.words[j] = *reinterpret_cast<const uint4*>(chunk + j * 512 + lane_id() * 16);
    const float* rows = reinterpret_cast<const float*>(chunk + 1024) + lane_id() / 4;
    tiles.about[0] = rows[0], tiles.about[1] = rows[8];
}

#if ARCH >= 900
// Copies of any length that one lane starts, and a barrier in shared memory that counts the bytes that have come.

DEVICE void barrier_make(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

DEVICE void barrier_wait(u64* barrier, u32 phase) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(shared_address(barrier)),
        "r"(phase)
        : "memory");
}

DEVICE void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
#endif

// By one warp, in the background.
DEVICE void copy_by_warp(u8* to, const u8* from, u32 bytes) {
#pragma unroll 4
    for (u32 at = lane_id() * 16; at < bytes; at += WARP * 16) copy_16(to + at, from + at);
}

// sums += STRIPS chunks x right, for eight tokens. `row` is the lane's token's. Whatever does not depend on one another goes
// through the tensor cores in turn: one sum after the other would wait for itself.
template <u32 FORMAT, u32 GROUP, u32 STRIPS>
DEVICE void multiply_chunk(float (&sums)[STRIPS][4], const u8* chunk, u32 strip_bytes, const u16* row, u32 column, u32 columns) {
    static constexpr u32 UNITS = Chunk<FORMAT, GROUP>::COLUMNS / 64;
    Tiles<FORMAT> left[STRIPS][UNITS];
    Right right[UNITS];
#pragma unroll
    for (u32 u = 0; u < UNITS; u++) {
        // The last group may not be whole.
        if (column + u * 64 < columns) {
            right[u].load(row, column + u * 64);
        } else {
            right[u].clear();
        }
#pragma unroll
        for (u32 s = 0; s < STRIPS; s++) load_staged<GROUP>(left[s][u], chunk + s * strip_bytes, u * 64);
    }
    float part[STRIPS][UNITS][4] = {};
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) {
#pragma unroll
            for (u32 s = 0; s < STRIPS; s++) {
                u32 fed[4];
                left[s][u].step(j, fed);
                mma_bf16(part[s][u], fed, right[u].b0(j), right[u].b1(j));
            }
        }
    }
#pragma unroll
    for (u32 s = 0; s < STRIPS; s++) {
        float2 scale = left[s][0].scale();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float sum = UNITS == 1 ? part[s][0][i] : part[s][0][i] + part[s][UNITS - 1][i];
            sums[s][i] += sum * (i / 2 ? scale.y : scale.x);
        }
    }
}

// As `gate_up_few`, for `per_block` times 16 values one after the other, the next ones on their way; `together` tokens of an
// expert at a time.
// Grid: inner / 16 / per_block, pairs or experts. Shared: strips of two values of `per_block`, `together` rows, sums of each warp.
template <u32 FORMAT, u32 GROUP>
DEVICE void gate_up_staged(const GateUpArgs& a) {
    using Chunk = Chunk<FORMAT, GROUP>;
    extern __shared__ uint4 dynamic[];
    __shared__ u32 pairs[WARPS][COLUMNS];
#if ARCH >= 900
    __shared__ u64 all_arrived[WARPS][2];
    u64* arrived = all_arrived[warp_id()];
    u32 phases = 0;
    if (lane_id() == 0) {
        barrier_make(&arrived[0], 1), barrier_make(&arrived[1], 1);
        barriers_made();
    }
    __syncwarp();
#endif
    wait_for_before();
    let_next_start();
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4, k = a.chosen_per_token, together = a.together;
    u32 expert = blockIdx.y, count = 0, pair = 0;
    const u32* list = nullptr;
    if (a.counts) {
        // Both at once; what is behind the list's end is not used.
        list = a.lists + u64(expert) * a.tokens;
        pair = lane < min(together, a.tokens) ? list[lane] : 0;
        count = a.counts[expert];
    } else if (a.tokens == 1) {
        expert = a.chosen[blockIdx.y], count = 1;
        if (lane == 0) pairs[warp][0] = blockIdx.y;
    } else {
        expert = a.chosen[blockIdx.y];
        for (u32 base = 0; base < a.tokens * k; base += WARP) {
            bool same = base + lane < a.tokens * k && a.chosen[base + lane] == expert;
            u32 mask = __ballot_sync(ALL, same);
            if (count == 0 && mask && base + __ffs(mask) - 1 != blockIdx.y) return;
            if (same) pairs[warp][count + __popc(mask & ((1u << lane) - 1))] = base + lane;
            count += __popc(mask);
        }
    }
    if (count == 0) return;
    u32 hidden = a.experts.columns, inner = a.experts.rows / 2, pitch = row_pitch(hidden);
    u32 strip_bytes = u32(a.experts.strip_bytes);
    u32 chunks = (hidden + Chunk::COLUMNS - 1) / Chunk::COLUMNS, per = (chunks + WARPS - 1) / WARPS;
    u32 from = min(warp * per, chunks), to = min(from + per, chunks);
    u32 from_column = from * Chunk::COLUMNS, to_column = min(to * Chunk::COLUMNS, hidden);
    u32 first_block = blockIdx.x * a.per_block, blocks = min(a.per_block, inner / 16 - first_block);
    u32 buffers = min(a.per_block, 2u);
    u8* strips = reinterpret_cast<u8*>(dynamic);
    u16* rows = reinterpret_cast<u16*>(strips + buffers * 2 * strip_bytes);
    u32 part_size = together * PITCH;
    float* parts = reinterpret_cast<float*>(rows + together * pitch);
    // Sums of many tokens take so much that there is room for one block's only.
    bool double_part = buffers > 1 && together < COLUMNS;
    const u8* tiles = a.experts.tiles + expert * a.experts.matrix_bytes + u64(2 * first_block) * strip_bytes;
    // Each warp copies what it multiplies, and `more` bytes of tokens behind it.
    auto fetch = [&](u32 block, u32 more) {
        if (block >= blocks) return;
        u8* own = strips + (block & (buffers - 1)) * 2 * strip_bytes + from * Chunk::BYTES;
        const u8* there = tiles + u64(block) * 2 * strip_bytes + from * Chunk::BYTES;
        u32 bytes = (to - from) * Chunk::BYTES;
#if ARCH >= 900
        if (lane == 0) {
            u64* barrier = &arrived[block & (buffers - 1)];
            barrier_expect(barrier, 2 * bytes + more);
            if (bytes) {
                copy_bulk(own, there, bytes, barrier);
                copy_bulk(own + strip_bytes, there + strip_bytes, bytes, barrier);
            }
        }
#else
        copy_by_warp(own, there, bytes);
        copy_by_warp(own + strip_bytes, there + strip_bytes, bytes);
#endif
    };
    for (u32 first = 0; first < count; first += together) {
        u32 live = min(together, count - first), at_pair = list ? 0 : first;
        if (first) __syncthreads();
        fetch(0, from < to ? live * (to_column - from_column) * 2 : 0);
        if (list) {
            if (first && lane < live) pair = list[first + lane];
            if (lane < live) pairs[warp][lane] = pair;
        }
        __syncwarp();
#if ARCH >= 900
        if (lane < live && from < to) {
            const u16* row = a.x + u64(token_of(a, pairs[warp][at_pair + lane])) * hidden;
            copy_bulk(rows + lane * pitch + from_column, row + from_column, (to_column - from_column) * 2, &arrived[0]);
        }
        if (buffers > 1) fetch(1, 0);
#else
        for (u32 n = 0; n < live; n++) {
            const u16* row = a.x + u64(token_of(a, pairs[warp][at_pair + n])) * hidden;
            for (u32 at = from_column + lane * 8; at < to_column; at += WARP * 8) copy_16(rows + n * pitch + at, row + at);
        }
        copies_done_so_far();
        if (buffers > 1) fetch(1, 0);
        copies_done_so_far();
#endif
        // Columns of tokens that are not there count nothing, whatever is in them.
        const u16* row = rows + (g < live ? g : 0) * pitch;
        for (u32 block = 0; block < blocks; block++) {
#if ARCH >= 900
            u32 buffer = block & (buffers - 1);
            barrier_wait(&arrived[buffer], phases >> buffer & 1);
            phases ^= 1 << buffer;
#else
            wait_for_copies<1>();
            __syncwarp();
#endif
            float sums[2][4] = {};
            const u8* gate = strips + (block & (buffers - 1)) * 2 * strip_bytes;
            for (u32 chunk = from; chunk < to; chunk++) {
                multiply_chunk<FORMAT, GROUP, 2>(sums, gate + chunk * Chunk::BYTES, strip_bytes, row, chunk * Chunk::COLUMNS, hidden);
            }
            __syncwarp();
            if (buffers > 1) fetch(block + 2, 0);
#if ARCH < 900
            copies_done_so_far();
#endif
            float* part = parts + (double_part ? block & 1 : 0) * WARPS * 2 * part_size;
            float* at = part + warp * 2 * part_size + 2 * t * PITCH + g;
            if (2 * t < live) {
                at[0] = sums[0][0], at[8] = sums[0][2];
                at[part_size] = sums[1][0], at[part_size + 8] = sums[1][2];
            }
            if (2 * t + 1 < live) {
                at[PITCH] = sums[0][1], at[PITCH + 8] = sums[0][3];
                at[part_size + PITCH] = sums[1][1], at[part_size + PITCH + 8] = sums[1][3];
            }
            __syncthreads();
            u32 n = threadIdx.x / 16, row_of_strip = threadIdx.x % 16;
            if (n < live) {
                float both[2] = {};
#pragma unroll
                for (u32 i = 0; i < WARPS; i++) {
                    both[0] += part[i * 2 * part_size + n * PITCH + row_of_strip];
                    both[1] += part[(i * 2 + 1) * part_size + n * PITCH + row_of_strip];
                }
                a.out[u64(pairs[warp][at_pair + n]) * inner + (first_block + block) * 16 + row_of_strip] =
                    to_bf16(activate(a.activation, both[0]) * both[1]);
            }
            if (!double_part) __syncthreads();
        }
    }
}

// The sums of a whole strip and eight tokens, by one warp.
template <u32 FORMAT, u32 GROUP>
DEVICE void multiply_staged(float (&sums)[4], const u8* strip, const u16* row, u32 columns) {
    using Chunk = Chunk<FORMAT, GROUP>;
    float all[1][4] = {};
    for (u32 chunk = 0; chunk * Chunk::COLUMNS < columns; chunk++) {
        multiply_chunk<FORMAT, GROUP, 1>(all, strip + chunk * Chunk::BYTES, 0, row, chunk * Chunk::COLUMNS, columns);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) sums[i] = all[0][i];
}

// As `down_few`. Weights come in while the kernel before still runs: that one has waited for the router before it let this start.
// Grid: hidden / 16, tokens; as many warps as experts of a token. Shared: their strips, their rows.
template <u32 FORMAT, u32 GROUP>
DEVICE void down_few_staged(const DownArgs& a) {
    extern __shared__ uint4 dynamic[];
    __shared__ float part[MOST_CHOSEN][16];
    u32 warp = warp_id(), lane = lane_id(), k = a.chosen_per_token;
    u32 inner = a.experts.columns, pair = blockIdx.y * k + warp, strip_bytes = u32(a.experts.strip_bytes);
    u32 expert = __ldcg(a.chosen + pair);
    u8* strip = reinterpret_cast<u8*>(dynamic) + warp * strip_bytes;
    u16* row = reinterpret_cast<u16*>(reinterpret_cast<u8*>(dynamic) + k * strip_bytes) + warp * inner;
    const u8* tiles = a.experts.tiles + expert * a.experts.matrix_bytes + u64(blockIdx.x) * strip_bytes;
    const u16* in = a.in + u64(pair) * inner;
#if ARCH >= 900
    __shared__ u64 arrived[MOST_CHOSEN];
    if (lane == 0) {
        barrier_make(&arrived[warp], 2);
        barriers_made();
        barrier_expect(&arrived[warp], strip_bytes);
        copy_bulk(strip, tiles, strip_bytes, &arrived[warp]);
    }
    wait_for_before();
    let_next_start();
    if (lane == 0) {
        barrier_expect(&arrived[warp], inner * 2);
        copy_bulk(row, in, inner * 2, &arrived[warp]);
    }
#else
    copy_by_warp(strip, tiles, strip_bytes);
    wait_for_before();
    let_next_start();
    copy_by_warp(reinterpret_cast<u8*>(row), reinterpret_cast<const u8*>(in), inner * 2);
    copies_done_so_far();
#endif
    float weight = a.weights[pair], before = 0.0f;
    u64 at = u64(blockIdx.y) * a.experts.rows + blockIdx.x * 16 + threadIdx.x;
    if (threadIdx.x < 16 && !a.out) before = a.x[at];
    __syncwarp();
#if ARCH >= 900
    barrier_wait(&arrived[warp], 0);
#else
    wait_for_copies<0>();
    __syncwarp();
#endif
    float sums[4] = {};
    multiply_staged<FORMAT, GROUP>(sums, strip, row, inner);
    if (lane % 4 == 0) {
        part[warp][lane / 4] = sums[0] * weight;
        part[warp][lane / 4 + 8] = sums[2] * weight;
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        float sum = 0.0f;
        for (u32 i = 0; i < k; i++) sum += part[i][threadIdx.x];
        if (a.out) {
            a.out[at] = to_bf16(sum);
        } else {
            a.x[at] = before + sum;
        }
    }
}

// As `down_each`, for as many strips as there are warps. Weights come in early, as above.
// Grid: strips / warps, experts. Shared: strips, rows of at most eight pairs, their results.
template <u32 FORMAT, u32 GROUP>
DEVICE void down_each_staged(const DownArgs& a) {
    extern __shared__ uint4 dynamic[];
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4, warps = blockDim.x / WARP;
    u32 inner = a.experts.columns, hidden = a.experts.rows, pitch = row_pitch(inner), strip_bytes = u32(a.experts.strip_bytes);
    u32 expert = blockIdx.y, strip = blockIdx.x * warps + warp;
    const u32* list = a.lists + u64(expert) * a.tokens;
    // All at once; what is behind the list's end is not used.
    u32 pair = __ldcg(list + min(lane, a.tokens - 1)), count = __ldcg(a.counts + expert);
    if (count == 0) return;
    u8* own = reinterpret_cast<u8*>(dynamic) + warp * strip_bytes;
    u16* rows = reinterpret_cast<u16*>(reinterpret_cast<u8*>(dynamic) + warps * strip_bytes);
    u16* turned = rows + COLUMNS * pitch;
    u32 width = warps * 16, turned_pitch = width + 8;
    bool there = strip * 16 < hidden;
    const u8* tiles = a.experts.tiles + expert * a.experts.matrix_bytes + u64(strip) * strip_bytes;
    if (there) copy_by_warp(own, tiles, strip_bytes);
    wait_for_before();
    let_next_start();
    for (u32 first = 0; first < count; first += COLUMNS) {
        u32 live = min(COLUMNS, count - first);
        if (first) {
            pair = list[min(first + lane, count - 1)];
            __syncthreads();
        }
        for (u32 n = warp; n < live; n += warps) {
            const u16* row = a.in + u64(__shfl_sync(ALL, pair, n)) * inner;
            copy_by_warp(reinterpret_cast<u8*>(rows + n * pitch), reinterpret_cast<const u8*>(row), inner * 2);
        }
        copies_done_so_far();
        wait_for_copies<0>();
        __syncthreads();
        float sums[4] = {};
        if (there) multiply_staged<FORMAT, GROUP>(sums, own, rows + (g < live ? g : 0) * pitch, inner);
#pragma unroll
        for (u32 i = 0; i < 4; i++) turned[(2 * t + i % 2) * turned_pitch + warp * 16 + g + i / 2 * 8] = to_bf16(sums[i]);
        __syncthreads();
        for (u32 i = threadIdx.x; i < live * (width / 8); i += blockDim.x) {
            u32 n = i / (width / 8), at = blockIdx.x * width + i % (width / 8) * 8;
            if (at < hidden) {
                *reinterpret_cast<uint4*>(a.each + u64(list[first + n]) * hidden + at) =
                    *reinterpret_cast<const uint4*>(turned + n * turned_pitch + i % (width / 8) * 8);
            }
        }
    }
}

// The weighted sum of a token's experts, in the order of its slots. Each thread has eight columns. The lists are empty again.
// Grid: hidden / 8 / threads, tokens.
KERNEL combine(const __grid_constant__ DownArgs a) {
    let_next_start();
    wait_for_before();
    if (blockIdx.x == 0 && blockIdx.y == 0) {
        for (u32 i = threadIdx.x; i < a.count; i += blockDim.x) a.counts[i] = 0;
    }
    u32 hidden = a.experts.rows, k = a.chosen_per_token, at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= hidden) return;
    float sums[8] = {};
#pragma unroll 8
    for (u32 slot = 0; slot < k; slot++) {
        u64 pair = u64(blockIdx.y) * k + slot;
        float weight = a.weights[pair];
        uint4 v = load_once(a.each + pair * hidden + at);
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            sums[2 * i] += weight * low_bf16(words[i]);
            sums[2 * i + 1] += weight * high_bf16(words[i]);
        }
    }
    u64 to = u64(blockIdx.y) * hidden + at;
    if (a.out) {
        *reinterpret_cast<uint4*>(a.out + to) = make_uint4(to_bf16x2(sums[0], sums[1]), to_bf16x2(sums[2], sums[3]),
                                                           to_bf16x2(sums[4], sums[5]), to_bf16x2(sums[6], sums[7]));
    } else {
        float4* x = reinterpret_cast<float4*>(a.x + to);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float4 v = x[i];
            x[i] = make_float4(v.x + sums[4 * i], v.y + sums[4 * i + 1], v.z + sums[4 * i + 2], v.w + sums[4 * i + 3]);
        }
    }
}

// ---- For each format ---------------------------------------------------------------------------------------------------------------

// How many units of 64 columns a warp has on their way at once: as many as fit into registers.
#define INSTANCES(NAME, FORMAT, GROUP, PAIRS_AHEAD, AHEAD, BLOCKS)                                                            \
    KERNEL __launch_bounds__(THREADS, BLOCKS) gate_up_few_##NAME(const __grid_constant__ GateUpArgs a) {                       \
        gate_up_few<FORMAT, GROUP, PAIRS_AHEAD>(a);                                                                            \
    }                                                                                                                         \
    KERNEL __launch_bounds__(MOST_CHOSEN * WARP) down_few_##NAME(const __grid_constant__ DownArgs a) {                         \
        down_few<FORMAT, GROUP, AHEAD>(a);                                                                                     \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 2) down_each_##NAME(const __grid_constant__ DownArgs a) {                                \
        down_each<FORMAT, GROUP, AHEAD>(a);                                                                                    \
    }

INSTANCES(bf16, BF16, 64, 2, 4, 2)
INSTANCES(int4_64, INT4, 64, 4, 8, 2)
INSTANCES(int4_128, INT4, 128, 4, 8, 2)
INSTANCES(fp8, FP8, 64, 2, 6, 2)

// Wide formats fill registers just as well.
#define STAGED(NAME, FORMAT, GROUP)                                                                                           \
    KERNEL __launch_bounds__(THREADS, 3) gate_up_staged_##NAME(const __grid_constant__ GateUpArgs a) {                         \
        gate_up_staged<FORMAT, GROUP>(a);                                                                                      \
    }                                                                                                                         \
    KERNEL __launch_bounds__(MOST_CHOSEN * WARP, 2) down_few_staged_##NAME(const __grid_constant__ DownArgs a) {               \
        down_few_staged<FORMAT, GROUP>(a);                                                                                     \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 4) down_each_staged_##NAME(const __grid_constant__ DownArgs a) {                         \
        down_each_staged<FORMAT, GROUP>(a);                                                                                    \
    }

STAGED(int4_64, INT4, 64)
STAGED(int4_128, INT4, 128)
STAGED(fp8, FP8, 64)
