// Softmax attention of sequences with few tokens: the positions of all of them are cut into equal shares.
#include "attention.cuh"

// ---- Clusters: their blocks start together, and write into each other's shared memory --------------------------------------------

DEVICE u32 cluster_blocks() {
    u32 blocks = 1;
#if ARCH >= 900
    asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
#endif
    return blocks;
}

// What this block wrote is there for those who wait until all have arrived.
DEVICE void cluster_arrive() {
#if ARCH >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

DEVICE void cluster_wait() {
#if ARCH >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// To where another block of the cluster has what this one has at `own`.
DEVICE void store_in_block(u32 block, float4* own, float4 value) {
#if ARCH >= 900
    asm volatile(
        "{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; st.shared::cluster.v4.f32 [at], {%2,%3,%4,%5}; }"
        ::"r"(shared_address(own)), "r"(block), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
        : "memory");
#endif
}

DEVICE void store_in_block(u32 block, float2* own, float2 value) {
#if ARCH >= 900
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; st.shared::cluster.v2.f32 [at], {%2,%3}; }"
                 ::"r"(shared_address(own)), "r"(block), "f"(value.x), "f"(value.y)
                 : "memory");
#endif
}

// ---- Decode ------------------------------------------------------------------------------------------------------------------
// Sixteen positions are a step, and belong to one warp. The steps of all sequences (for each tile of 8 * N rows, where there are
// more rows) stand in one row, and each team of blocks of the grid takes an equal share of it; so one graph serves every length.
// A team is one block for each key/value head, or one cluster of blocks: they read the same blocks of the pool at about the same
// time. What the blocks of a cluster have of a walk is put together in their shared memory, a share by each of them. A walk that is
// cut between teams is put together by the block that is done last with its head's (its share of it).
//
// With `fuses` a block norms and turns the queries of a walk itself, and the one with the walk's last step the new key and value too:
// it writes them to the pool, and puts them into its own copy of the step, so that nothing in the pool is waited for.
//
// Keys are the left side of the first product (positions x rows, so that 8 rows fill it), values, turned, that of the second one
// (D x rows). The order of D inside both products is free: a lane's share of a row is 16 consecutive bytes. Every warp has
// its own copies on the way, whole rows as they lie in the pool, and waits for nobody else's.

static constexpr u32 STEP = 16;

template <bool FP8>
struct KeptAs {
    typedef u16 Type;
};
template <>
struct KeptAs<true> {
    typedef u8 Type;
};

// Values in a lane's consecutive bytes, of a row of D values that four lanes (keys) or eight lanes (values) share.
template <u32 D, bool FP8>
struct Widths {
    static_assert(D % 32 == 0, "rows are cut in pieces of 32 values");
    typedef typename KeptAs<FP8>::Type Kept;
    static constexpr u32 KEY = FP8 && D % 64 == 0 ? 16 : 8;
    static constexpr u32 VALUE = FP8 && D % 128 == 0 ? 16 : D % 64 == 0 ? 8 : 4;
    static constexpr u32 BYTES = FP8 ? 1 : 2;
    static constexpr u32 ROW = D * BYTES;
    // Where lane 4 * g + t finds its share of chunk c: of keys of position g or g + 8 (half), of values of position 2t, 2t + 1,
    // 2t + 8 or 2t + 9 (e).
    static DEVICE u32 key_place(u32 c, u32 half, u32 g, u32 t) { return (g + half * 8) * ROW + (c * 4 + t) * KEY * BYTES; }
    static DEVICE u32 value_place(u32 c, u32 e, u32 g, u32 t) {
        return KEYS + (2 * t + e % 2 + e / 2 * 8) * ROW + (c * 8 + g) * VALUE * BYTES;
    }
    // Of a step in shared memory.
    static constexpr u32 KEYS = STEP * D * BYTES;
    static constexpr u32 SLOT = 2 * KEYS + (FP8 ? 2 * STEP * 4 : 0);
};

// A sequence's tile of rows, and its steps in the row of all steps.
struct Walk {
    u32 sequence, tile;
    u32 begin, end;         // steps in the row
    u32 first;              // the position of the first one, over STEP
    uint4 about;            // of the sequence

    // Places a step; `starts` says where sequences begin, `sequence` at most which one it is.
    DEVICE void find(const AttendArgs& a, const u32* starts, u32 step) {
        while (starts[sequence + 1] <= step) sequence++;
        about = __ldg(a.sequences + sequence);
        u32 steps;
        first = steps_of(a, about, steps);
        tile = 0, begin = starts[sequence];
        while (begin + steps <= step) tile++, begin += steps;
        end = begin + steps;
    }

    // How many steps any of a sequence's tokens sees, and the first one.
    static DEVICE u32 steps_of(const AttendArgs& a, uint4 about, u32& steps) {
        u32 sees = about.w - about.y + 1;  // of the first token, without a window
        u32 first = (sees > a.window ? sees - a.window : 0) / STEP;
        steps = ceil_div(about.w, STEP) - first;
        return first;
    }
};

// Who has the steps of a part of a walk: all warps of a cluster in turn, from the first step of the team's share on. Blocks of a
// cluster and warps of a block are powers of two.
struct Shared {
    u32 blocks, rank, warps;    // of the cluster, in it, of each block
    u32 first, last, count;     // the warps that have the first and the last step, and how many steps
    bool whole, alone;          // the part is the walk; one block has it all, and needs no other one

    // Steps `at` up to `end` of a walk, and the team's share begins at `from`.
    DEVICE Shared(const Walk& walk, u32 from, u32 at, u32 end) {
        blocks = cluster_blocks(), rank = blockIdx.x & (blocks - 1), warps = blockDim.x / WARP;
        first = (at - from) & (blocks * warps - 1), last = (end - 1 - from) & (blocks * warps - 1), count = end - at;
        whole = at == walk.begin && end == walk.end;
        alone = blocks == 1 || (whole && count <= warps && ((first ^ last) & ~(warps - 1)) == 0);
    }
    DEVICE u32 place(u32 warp) const { return (warp - first) & (blocks * warps - 1); }
    // Whether one of this block's warps has a step, or any of a block.
    DEVICE bool has(u32 warp) const { return place(rank * warps + warp) < count; }
    DEVICE bool block_has(u32 block) const {
        u32 its = place(block * warps);
        return its < count || its + warps > blocks * warps;
    }
    // Whether the last step is this block's.
    DEVICE bool has_last() const { return ((last ^ rank * warps) & ~(warps - 1)) == 0; }
};

// Of a block: [2][rows][D] sums, then [2][rows][2] the largest score and the sum of weights. The second half is for a walk that
// begins in the block and ends in another one, the first half for one that began in another one.
template <u32 D, u32 ROWS>
struct Partials {
    static constexpr u32 SUMS = ROWS * D, FLOATS = 2 * (SUMS + ROWS * 2);
    float *sums, *ends;
    DEVICE Partials(float* all, u32 block, bool begins) {
        sums = all + u64(block) * FLOATS + begins * SUMS;
        ends = all + u64(block) * FLOATS + 2 * SUMS + begins * ROWS * 2;
    }
};

// Adds one, after everything that the block has written, and before everything that it then reads. What was there.
DEVICE u32 count_up(u32* counter) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// What another block wrote.
DEVICE float4 load_shared_by_all(const float* pointer) {
    float4 value;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(pointer));
    return value;
}

#if ARCH >= 900
// Bytes (a multiple of 16) by the copy engine; `barrier` counts them.
DEVICE void copy_bulk(u32 shared, const void* global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

DEVICE void wait_for_bulk(u32 barrier, u32 parity) {
    u32 over;
    do {
        asm volatile(
            "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!over);
}
#endif

template <u32 D, bool FP8, u32 N>
DEVICE void decode(const AttendArgs& a) {
    using W = Widths<D, FP8>;
    constexpr u32 ROWS = 8 * N, WIDE = D + 4;
    constexpr u32 ITEMS = ROWS * (D / 4), PITCH = D + 32;
    extern __shared__ uint4 shared[];
    u32 warps = blockDim.x / WARP, warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4;
    u8* ring = reinterpret_cast<u8*>(shared) + warp * a.stages * W::SLOT;
    // [warps][ROWS][WIDE] sums, or [teams][ROWS] ends.
    float* merge = reinterpret_cast<float*>(reinterpret_cast<u8*>(shared) + warps * a.stages * W::SLOT);
    u32 blocks = cluster_blocks();
    // [blocks][a block's share of ROWS * D / 4] sums, and largest scores and sums of weights with them.
    float4* given = reinterpret_cast<float4*>(merge + a.merge);
    float2* given_ends = reinterpret_cast<float2*>(given + (blocks > 1 ? ITEMS : 0));
    u16* queries = reinterpret_cast<u16*>(given_ends + (blocks > 1 ? ITEMS : 0));                         // [ROWS][PITCH]
    u8* fresh = reinterpret_cast<u8*>(queries + ROWS * PITCH);                                            // key, value, their scales
    float* fresh_scales = reinterpret_cast<float*>(fresh + 2 * D * 2);
    float2* ends = reinterpret_cast<float2*>(fresh_scales + 4);                                           // [warps][ROWS]
    u32* starts = reinterpret_cast<u32*>(ends + warps * ROWS);                                            // [count + 1]
    __shared__ u32 last;
    u32 group = a.group, team = blockIdx.y, head = blockIdx.x / blocks;
    u32 all_warps = blocks * warps, my_warp = (blockIdx.x & (blocks - 1)) * warps + warp;
    if (blocks > 1) cluster_arrive();

    // Where the sequences' steps begin. Nothing here is the result of a kernel: see NOTES.md.
    if (warp == 0) {
        u32 before = 0;
        for (u32 i = 0; i < a.count; i += WARP) {
            u32 mine = 0;
            if (i + lane < a.count) {
                uint4 about = __ldg(a.sequences + i + lane);
                u32 steps;
                Walk::steps_of(a, about, steps);
                if (about.y != 0 && about.y <= a.few) mine = steps * ceil_div(about.y * group, ROWS);
            }
            u32 sum = mine;
#pragma unroll
            for (u32 step = 1; step < WARP; step *= 2) {
                u32 other = __shfl_up_sync(ALL, sum, step);
                if (lane >= step) sum += other;
            }
            if (i + lane < a.count) starts[i + lane] = before + sum - mine;
            before += __shfl_sync(ALL, sum, WARP - 1);
        }
        if (lane == 0) starts[a.count] = before;
    }
    __syncthreads();
    u32 all = starts[a.count];
    u32 share = max(ceil_div(all, a.teams), a.least);
    u32 from = min(team * share, all), to = min(from + share, all);

    // What a warp asks for, ahead of what it works on. Positions before this step's were written by earlier steps. Those of
    // this step are the last ones of a walk, and are there when the kernel before is done, or are made here.
    bool waited = false;
    Walk ahead;
    ahead.sequence = 0, ahead.end = 0;
    u32 asked = from + my_warp, ask_slot = 0;
    u32 half = a.kv_heads * a.block_tokens * W::ROW;  // from a key to its value
    // From a key's scale to its value's.
    u32 half_scales = a.kv_heads * a.block_tokens * 4;
    u32 barriers = 0;
#if ARCH >= 900
    barriers = shared_address(starts + a.count + 1 + (a.count + 1) % 2) + warp * 4 * 8;
    if (lane == 0) {
        for (u32 i = 0; i < a.stages; i++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + i * 8) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
#endif
    auto ask = [&] {
        if (asked < to) {
            if (asked >= ahead.end) ahead.find(a, starts, asked);
            u32 position = (ahead.first + asked - ahead.begin) * STEP;
            if (!waited && !a.fuses && position + STEP > ahead.about.w - ahead.about.y) {
                wait_for_before();
                waited = true;
            }
            u32 place, block = a.block_of(ahead.about, position, place);
            place += head * a.block_tokens;
            const u8 *in_block = a.pool + u64(block) * a.block_bytes, *keys = in_block + place * W::ROW;
            u8* slot = ring + ask_slot * W::SLOT;
#if ARCH >= 900
            if (lane == 0) {
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                u32 barrier = barriers + ask_slot * 8, to = shared_address(slot);
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(2 * W::KEYS) : "memory");
                copy_bulk(to, keys, W::KEYS, barrier);
                copy_bulk(to + W::KEYS, keys + half, W::KEYS, barrier);
            }
#else
#pragma unroll
            for (u32 i = 0; i < W::KEYS / (WARP * 16); i++) {
                u32 at = (i * WARP + lane) * 16;
                copy<16>(slot + at, keys + at, true);
                copy<16>(slot + W::KEYS + at, keys + half + at, true);
            }
#endif
            // Keys' scales by the first sixteen lanes, values' by the others. So few bytes are no work for the copy engine.
            if (FP8) copy<4>(slot + 2 * W::KEYS + lane * 4, in_block + 2 * half + lane / STEP * half_scales + (place + lane % STEP) * 4, true);
        }
        copies_done_so_far();
        asked += all_warps;
        ask_slot = ask_slot + 1 == a.stages ? 0 : ask_slot + 1;
    };
    for (u32 i = 0; i < a.stages; i++) ask();

    // How this warp's lanes turn a row: pairs lane, lane + 32, ... of it.
    constexpr u32 PAIRS = (D / 2 + WARP - 1) / WARP;
    float2 q_weights[PAIRS] = {}, k_weights[PAIRS] = {}, turns[PAIRS] = {};
    struct Pair {
        u32 first, second;
    };
    // Where a lane's pair j is. Values that do not turn are pairs of neighbours behind those that do.
    auto pair_at = [&](u32 j) {
        u32 pair = j * WARP + lane;
        bool halves = pair < a.dims / 2 && a.layout != INTERLEAVED;
        return Pair{halves ? pair : 2 * pair, halves ? pair + a.dims / 2 : 2 * pair + 1};
    };
    auto is_there = [&](u32 j) { return 2 * (j * WARP + lane) < D; };
    auto turn_to = [&](u32 position) {
#pragma unroll
        for (u32 j = 0; j < PAIRS; j++) {
            if (!is_there(j)) continue;
            u32 pair = j * WARP + lane;
            Pair at = pair_at(j);
            if (a.q_norm) q_weights[j] = make_float2(__ldg(a.q_norm + at.first), __ldg(a.q_norm + at.second));
            if (a.k_norm) k_weights[j] = make_float2(__ldg(a.k_norm + at.first), __ldg(a.k_norm + at.second));
            turns[j] = make_float2(1.0f, 0.0f);
            if (pair < a.dims / 2) turns[j] = turn_of(position, __ldg(a.frequencies + pair), a.amplitude);
        }
    };
    Walk walk;
    walk.sequence = 0;
    if (from < to) walk.find(a, starts, from);
    if (a.fuses && from < to) turn_to(walk.about.w - 1);
    if (!waited) wait_for_before();
    waited = true;
    let_next_start();

    // Rows of a walk's queries, and the new key and value where it `keeps` them, into shared memory, and these two into the pool. Two
    // rows at once, the first ones asked for before.
    u16 asked_for[2][PAIRS][2];
    auto rows_of = [&](const Walk& walk) { return min(walk.about.y * group - walk.tile * ROWS, ROWS); };
    auto ask_rows = [&](const Walk& walk, bool keeps, u32 base) {
        const u16* token = a.q + u64(walk.about.x) * a.q_stride;
        u32 rows = rows_of(walk), all = rows + (keeps ? 2 : 0);
#pragma unroll
        for (u32 b = 0; b < 2; b++) {
            u32 i = base + b * warps;
            u32 its = i < rows ? head * group + walk.tile * ROWS + i : a.heads + (i - rows) * a.kv_heads + head;
#pragma unroll
            for (u32 j = 0; j < PAIRS; j++) {
                asked_for[b][j][0] = asked_for[b][j][1] = 0;
                if (i >= all || !is_there(j)) continue;
                Pair at = pair_at(j);
                asked_for[b][j][0] = token[its * D + at.first], asked_for[b][j][1] = token[its * D + at.second];
            }
        }
    };
    // Of a part of a walk up to step `end`, which is this block's.
    auto keeps_of = [&](const Walk& walk, const Shared& shares, u32 end) { return end == walk.end && shares.has_last(); };
    auto ask_first_rows = [&](const Walk& walk, u32 at) {
        u32 end = min(walk.end, to);
        Shared shares(walk, from, at, end);
        if (shares.block_has(shares.rank)) ask_rows(walk, keeps_of(walk, shares, end), warp);
    };
    if (a.fuses && from < to) ask_first_rows(walk, from);
    auto prepare = [&](const Walk& walk, bool keeps) {
        u32 rows = rows_of(walk), all = rows + (keeps ? 2 : 0);
#pragma unroll 1
        for (u32 base = warp; base < all; base += 2 * warps) {
            if (base != warp) ask_rows(walk, keeps, base);
#pragma unroll
            for (u32 b = 0; b < 2; b++) {
                u32 i = base + b * warps, which = i - rows;
                bool is_q = i < rows, is_v = i == rows + 1;
                if (i >= all) continue;
                float squares = 0.0f, largest = 0.0f;
                float2 values[PAIRS];
#pragma unroll
                for (u32 j = 0; j < PAIRS; j++) {
                    values[j] = make_float2(from_bf16(asked_for[b][j][0]), from_bf16(asked_for[b][j][1]));
                    squares += values[j].x * values[j].x + values[j].y * values[j].y;
                }
                bool normed = !is_v && (is_q ? a.q_norm : a.k_norm);
                float scale = normed ? rsqrtf(warp_sum(squares) / float(D) + a.eps) : 1.0f;
#pragma unroll
                for (u32 j = 0; j < PAIRS; j++) {
                    float2 v = values[j], weight = is_q ? q_weights[j] : k_weights[j];
                    if (normed) v.x *= scale * weight.x, v.y *= scale * weight.y;
                    if (!is_v) v = make_float2(v.x * turns[j].x - v.y * turns[j].y, v.x * turns[j].y + v.y * turns[j].x);
                    values[j] = v;
                    largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
                }
                if (is_q) {
#pragma unroll
                    for (u32 j = 0; j < PAIRS; j++) {
                        if (!is_there(j)) continue;
                        Pair at = pair_at(j);
                        queries[i * PITCH + at.first] = to_bf16(values[j].x);
                        queries[i * PITCH + at.second] = to_bf16(values[j].y);
                    }
                    continue;
                }
                u32 sixteen, position = walk.about.w - 1, block = a.block_of(walk.about, position, sixteen);
                u8* kept = a.pool + u64(block) * a.block_bytes;
                u32 place = head * a.block_tokens + sixteen + position % 16;
                u8 *to = kept + which * half + u64(place) * W::ROW, *own = fresh + which * W::ROW;
                using Kept = typename W::Kept;
                Quantum quantum(0.0f);
                if (FP8) {
                    quantum = Quantum(warp_largest(largest));
                    float* scale = reinterpret_cast<float*>(kept + 2 * half + which * half_scales) + place;
                    if (lane == 0) *scale = fresh_scales[which] = quantum.scale;
                }
#pragma unroll
                for (u32 j = 0; j < PAIRS; j++) {
                    if (!is_there(j)) continue;
                    Pair at = pair_at(j);
                    Kept x = FP8 ? e4m3_of(values[j].x * quantum.up) : to_bf16(values[j].x);
                    Kept y = FP8 ? e4m3_of(values[j].y * quantum.up) : to_bf16(values[j].y);
                    reinterpret_cast<Kept*>(to)[at.first] = reinterpret_cast<Kept*>(own)[at.first] = x;
                    reinterpret_cast<Kept*>(to)[at.second] = reinterpret_cast<Kept*>(own)[at.second] = y;
                }
            }
        }
    };

    float to_log2 = a.scale * LOG2_E;
    u32 slot_number = 0, parity = 0;
    for (u32 at = from; at < to;) {
        u32 end = min(walk.end, to), rows = walk.about.y * group, rows_here = rows_of(walk);
        Shared shares(walk, from, at, end);
        // The walk behind it, and its rows, to be there when this one is done.
        Walk next = walk;
        auto find_next = [&] {
            if (end >= to) return;
            next.find(a, starts, end);
            if (!a.fuses) return;
            turn_to(next.about.w - 1);
            ask_first_rows(next, end);
        };
        if (shares.alone && !shares.block_has(shares.rank)) {
            find_next();
            walk = next, at = end;
            continue;
        }
        // This warp's first step of them.
        u32 mine = at + shares.place(my_warp);
        if (a.fuses && shares.block_has(shares.rank)) {
            // Of more than one tile of rows each has a last step, and writes the same.
            prepare(walk, keeps_of(walk, shares, end));
            __syncthreads();
        }
        // Asked for again for the next one: registers are scarce on the way.
#pragma unroll
        for (u32 j = 0; j < PAIRS; j++) {
            q_weights[j] = k_weights[j] = turns[j] = make_float2(0.0f, 0.0f);
            asked_for[0][j][0] = asked_for[0][j][1] = asked_for[1][j][0] = asked_for[1][j][1] = 0;
        }

        u32 q[N][D / 8];
        u32 see_to[N][2];
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            u32 row = walk.tile * ROWS + n * 8 + g;
            u32 token = a.token_of(row);
            const u16* from_row = a.q + u64(walk.about.x + token) * a.q_stride + (head * group + row - token * group) * D;
            if (a.fuses) from_row = queries + (n * 8 + g) * PITCH;
#pragma unroll
            for (u32 i = 0; i < D / 8; i += 4) {
                // Words of a chunk: a lane has KEY values, that is KEY / 2 words.
                u32 value = i / (W::KEY / 2) * 4 * W::KEY + t * W::KEY + i % (W::KEY / 2) * 2;
                uint4 words = make_uint4(0, 0, 0, 0);
                if (row < rows && mine < end) words = *reinterpret_cast<const uint4*>(from_row + value);
                q[n][i] = words.x, q[n][i + 1] = words.y, q[n][i + 2] = words.z, q[n][i + 3] = words.w;
            }
            if (FP8) {
#pragma unroll
                for (u32 i = 0; i < D / 8; i++) q[n][i] = bf16x2_to_half2(q[n][i]);
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 row = walk.tile * ROWS + n * 8 + 2 * t + i;
                u32 sees = walk.about.w - walk.about.y + a.token_of(row) + 1;
                see_to[n][i] = row < rows ? sees : 0;
            }
        }

        float sums[N][D / 16][4] = {}, largest[N][2], total[N][2] = {};
        float value_unit = 1e-30f;  // FP8: the largest scale of values so far, which the sums are counted in
#pragma unroll
        for (u32 n = 0; n < N; n++) largest[n][0] = largest[n][1] = LOWEST;

        for (u32 step = mine; step < end; step += all_warps) {
            u8* slot = ring + slot_number * W::SLOT;
#if ARCH >= 900
            wait_for_bulk(barriers + slot_number * 8, parity);
#endif
            if (FP8 || ARCH < 900) {
                if (a.stages == 1) wait_for_copies<0>();
                else if (a.stages == 2) wait_for_copies<1>();
                else if (a.stages == 3) wait_for_copies<2>();
                else wait_for_copies<3>();
                __syncwarp();
            }
            if (++slot_number == a.stages) slot_number = 0, parity ^= 1;
            u32 first_position = (walk.first + step - walk.begin) * STEP;
            if (step + 1 == walk.end) {
                // Nothing where there are no positions: 0 times what stands there need not be 0. With `fuses` the last one is here alone.
                u32 there = walk.about.w - first_position, low = there - a.fuses;
                for (u32 at = low * W::ROW + lane * 16; at < W::KEYS; at += WARP * 16) {
                    uint4 key = make_uint4(0, 0, 0, 0), value = make_uint4(0, 0, 0, 0);
                    if (at < there * W::ROW) {
                        key = *reinterpret_cast<const uint4*>(fresh + at - low * W::ROW);
                        value = *reinterpret_cast<const uint4*>(fresh + W::ROW + at - low * W::ROW);
                    }
                    *reinterpret_cast<uint4*>(slot + at) = key;
                    *reinterpret_cast<uint4*>(slot + W::KEYS + at) = value;
                }
                if (FP8 && lane % STEP >= low) {
                    float scale = lane % STEP < there ? fresh_scales[lane / STEP] : 0.0f;
                    reinterpret_cast<float*>(slot + 2 * W::KEYS)[lane] = scale;
                }
#if ARCH >= 900
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
                __syncwarp();
            }

            float scores[N][2][4] = {};
            if constexpr (W::KEY == 8 && !FP8) {
#pragma unroll
                for (u32 c = 0; c < D / 32; c++) {
                    uint4 low = *reinterpret_cast<const uint4*>(slot + W::key_place(c, 0, g, t));
                    uint4 high = *reinterpret_cast<const uint4*>(slot + W::key_place(c, 1, g, t));
#pragma unroll
                    for (u32 n = 0; n < N; n++) {
                        mma<FP8>(scores[n][0], low.x, high.x, low.y, high.y, q[n][4 * c], q[n][4 * c + 1]);
                        mma<FP8>(scores[n][1], low.z, high.z, low.w, high.w, q[n][4 * c + 2], q[n][4 * c + 3]);
                    }
                }
            } else {
                // Four values are a word.
                constexpr u32 WORDS = W::KEY / 4;
#pragma unroll
                for (u32 c = 0; c < D / (4 * W::KEY); c++) {
                    u32 low[WORDS], high[WORDS];
                    const u8 *from_low = slot + W::key_place(c, 0, g, t), *from_high = slot + W::key_place(c, 1, g, t);
                    if constexpr (WORDS == 4) {
                        *reinterpret_cast<uint4*>(low) = *reinterpret_cast<const uint4*>(from_low);
                        *reinterpret_cast<uint4*>(high) = *reinterpret_cast<const uint4*>(from_high);
                    } else {
                        *reinterpret_cast<uint2*>(low) = *reinterpret_cast<const uint2*>(from_low);
                        *reinterpret_cast<uint2*>(high) = *reinterpret_cast<const uint2*>(from_high);
                    }
#pragma unroll
                    for (u32 j = 0; j < WORDS; j++) {
                        u32 a0 = e4m3x2_to_half2(low[j]), a1 = e4m3x2_to_half2(high[j]);
                        u32 a2 = e4m3x2_to_half2(low[j] >> 16), a3 = e4m3x2_to_half2(high[j] >> 16);
#pragma unroll
                        for (u32 n = 0; n < N; n++) {
                            u32 k = (c * WORDS + j) * 2;
                            mma<FP8>(scores[n][j % 2], a0, a1, a2, a3, q[n][k], q[n][k + 1]);
                        }
                    }
                }
            }

            float key_scale[2] = {1.0f, 1.0f}, value_scale[2], unit_change = 1.0f;
            if (FP8) {
                const float* scales = reinterpret_cast<const float*>(slot + 2 * W::KEYS);
                key_scale[0] = scales[g], key_scale[1] = scales[g + 8];
                value_scale[0] = scales[STEP + g], value_scale[1] = scales[STEP + g + 8];
                float unit = fmaxf(value_scale[0], value_scale[1]);
#pragma unroll
                for (u32 other = 4; other < WARP; other *= 2) unit = fmaxf(unit, __shfl_xor_sync(ALL, unit, other));
                unit = fmaxf(unit, value_unit);
                float up = __fdividef(1.0f, unit);
                if (unit != value_unit) unit_change = value_unit * up;
                value_unit = unit;
                value_scale[0] *= up, value_scale[1] *= up;
            }
            u32 position = (walk.first + step - walk.begin) * STEP + g;
            u32 weights[N][2];
            float change[N][2];
            bool changed = unit_change != 1.0f;
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                float score[2][2];
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
#pragma unroll
                    for (u32 row = 0; row < 2; row++) {
                        u32 here = position + i * 8;
                        bool seen = here < see_to[n][row] && see_to[n][row] - here <= a.window;
                        float sum = scores[n][0][i * 2 + row] + scores[n][1][i * 2 + row];
                        score[i][row] = seen ? sum * (to_log2 * key_scale[i]) : NOTHING;
                    }
                }
#pragma unroll
                for (u32 row = 0; row < 2; row++) {
                    float most = fmaxf(score[0][row], score[1][row]);
#pragma unroll
                    for (u32 other = 4; other < WARP; other *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, other));
                    most = fmaxf(most, largest[n][row]);
                    change[n][row] = exp_2(largest[n][row] - most);
                    changed |= most != largest[n][row];
                    largest[n][row] = most;
                    score[0][row] = exp_2(score[0][row] - most), score[1][row] = exp_2(score[1][row] - most);
                    total[n][row] = total[n][row] * change[n][row] + score[0][row] + score[1][row];
                }
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    float up = FP8 ? value_scale[i] : 1.0f;
                    u32 pair_of_rows = to_pair<FP8>(score[i][0] * up, score[i][1] * up);
                    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(weights[n][i]) : "r"(pair_of_rows));
                }
            }
            if (__any_sync(ALL, changed)) {
#pragma unroll
                for (u32 n = 0; n < N; n++) {
                    float low = change[n][0] * unit_change, high = change[n][1] * unit_change;
#pragma unroll
                    for (u32 i = 0; i < D / 16; i++) {
                        sums[n][i][0] *= low, sums[n][i][1] *= high, sums[n][i][2] *= low, sums[n][i][3] *= high;
                    }
                }
            }

            constexpr u32 WORDS = W::VALUE * W::BYTES / 4;
#pragma unroll
            for (u32 c = 0; c < D / (8 * W::VALUE); c++) {
                u32 v[4][WORDS];
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    const u32* words = reinterpret_cast<const u32*>(slot + W::value_place(c, e, g, t));
                    if constexpr (WORDS == 4) *reinterpret_cast<uint4*>(v[e]) = *reinterpret_cast<const uint4*>(words);
                    else if constexpr (WORDS == 2) *reinterpret_cast<uint2*>(v[e]) = *reinterpret_cast<const uint2*>(words);
                    else v[e][0] = words[0];
                }
#pragma unroll
                for (u32 j = 0; j < WORDS; j++) {
                    if constexpr (FP8) {
#pragma unroll
                        for (u32 half = 0; half < 2; half++) {
                            // First of both positions, then second of both.
                            u32 low = __byte_perm(v[0][j], v[1][j], half ? 0x7362 : 0x5140);
                            u32 high = __byte_perm(v[2][j], v[3][j], half ? 0x7362 : 0x5140);
                            u32 a0 = e4m3x2_to_half2(low), a1 = e4m3x2_to_half2(low >> 16);
                            u32 a2 = e4m3x2_to_half2(high), a3 = e4m3x2_to_half2(high >> 16);
#pragma unroll
                            for (u32 n = 0; n < N; n++) {
                                mma<FP8>(sums[n][c * (W::VALUE / 2) + 2 * j + half], a0, a1, a2, a3, weights[n][0], weights[n][1]);
                            }
                        }
                    } else {
                        u32 a0 = __byte_perm(v[0][j], v[1][j], 0x5410), a1 = __byte_perm(v[0][j], v[1][j], 0x7632);
                        u32 a2 = __byte_perm(v[2][j], v[3][j], 0x5410), a3 = __byte_perm(v[2][j], v[3][j], 0x7632);
#pragma unroll
                        for (u32 n = 0; n < N; n++) {
                            mma<FP8>(sums[n][c * (W::VALUE / 2) + j], a0, a1, a2, a3, weights[n][0], weights[n][1]);
                        }
                    }
                }
            }
            __syncwarp();  // before it is copied over
            ask();
        }

        // What the warps have got. A row of a lane: VALUE consecutive values of each chunk.
        if (mine < end) {
#pragma unroll
            for (u32 n = 0; n < N; n++) {
#pragma unroll
                for (u32 row = 0; row < 2; row++) {
#pragma unroll
                    for (u32 other = 4; other < WARP; other *= 2) total[n][row] += __shfl_xor_sync(ALL, total[n][row], other);
                    u32 place = warp * ROWS + n * 8 + 2 * t + row;
                    if (g == 0) ends[place] = make_float2(largest[n][row], total[n][row]);
#pragma unroll
                    for (u32 i = 0; i < D / 16; i += 2) {
                        float up = FP8 ? value_unit : 1.0f;
                        u32 value = i / (W::VALUE / 2) * 8 * W::VALUE + g * W::VALUE + i % (W::VALUE / 2) * 2;
                        *reinterpret_cast<float4*>(merge + place * WIDE + value) =
                            make_float4(sums[n][i][row] * up, sums[n][i][2 + row] * up, sums[n][i + 1][row] * up,
                                        sums[n][i + 1][2 + row] * up);
                    }
                }
            }
        }
        find_next();
        __syncthreads();

        // Sums are put together in pieces of four values of a row. Each block of a cluster has a share of them in the end.
        // (Asked for again and not kept: registers are scarce on the way.)
        Shared now(walk, from, at, end);
        // Item i is that of block i modulo their number.
        u32 sharers = now.alone ? 1 : now.blocks, own = now.alone ? 0 : now.rank, shift = 31 - __clz(sharers);
        u32 items = rows_here * (D / 4), each = items >> shift;
        auto write = [&](u32 item, float4 sum, float total) {
            u32 row = walk.tile * ROWS + item / (D / 4), value = item % (D / 4) * 4, token = a.token_of(row);
            u16* out = a.out + (u64(walk.about.x + token) * a.heads + head * group + row - token * group) * D + value;
            float up = 1.0f / total;
            *reinterpret_cast<uint2*>(out) = make_uint2(to_bf16x2(sum.x * up, sum.y * up), to_bf16x2(sum.z * up, sum.w * up));
        };
        Partials<D, ROWS> partial(a.partials, team * a.kv_heads + head, at == walk.begin);
        auto finish = [&](u32 item, float4 sum, float most, float total) {
            if (now.whole) {
                write(item, sum, total);
                return;
            }
            *reinterpret_cast<float4*>(partial.sums + item * 4) = sum;
            if (item % (D / 4) == own) {
                *reinterpret_cast<float2*>(partial.ends + item / (D / 4) * 2) = make_float2(most, total);
            }
        };
        if (!now.alone) cluster_wait();
        for (u32 i = threadIdx.x; i < items && now.block_has(now.rank); i += blockDim.x) {
            u32 row = i / (D / 4), value = i % (D / 4) * 4;
            float most = LOWEST, total = 0.0f;
            for (u32 w = 0; w < now.warps; w++) {
                if (now.has(w)) most = fmaxf(most, ends[w * ROWS + row].x);
            }
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            for (u32 w = 0; w < now.warps; w++) {
                if (!now.has(w)) continue;
                float2 its = ends[w * ROWS + row];
                float weight = exp_2(its.x - most);
                float4 part = *reinterpret_cast<const float4*>(merge + (w * ROWS + row) * WIDE + value);
                total += its.y * weight;
                sum.x += part.x * weight, sum.y += part.y * weight, sum.z += part.z * weight, sum.w += part.w * weight;
            }
            if (now.alone) {
                finish(i, sum, most, total);
            } else {
                u32 place = now.rank * each + (i >> shift), its = i & (sharers - 1);
                store_in_block(its, given + place, sum);
                store_in_block(its, given_ends + place, make_float2(most, total));
            }
        }
        if (!now.alone) {
            __syncwarp();
            cluster_arrive();
            cluster_wait();
            // Lanes beside each other have an item's parts, in the order of blocks.
            for (u32 base = 0; base < items; base += blockDim.x) {
                u32 i = base + threadIdx.x, block = i & (sharers - 1), item = i >> shift;
                float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                float2 its = make_float2(LOWEST, 0.0f);
                if (item < each && now.block_has(block)) sum = given[block * each + item], its = given_ends[block * each + item];
                float most = its.x;
                for (u32 other = 1; other < now.blocks; other *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, other));
                float weight = exp_2(its.x - most), total = its.y * weight;
                sum.x *= weight, sum.y *= weight, sum.z *= weight, sum.w *= weight;
                for (u32 other = 1; other < now.blocks; other *= 2) {
                    total += __shfl_xor_sync(ALL, total, other);
                    sum.x += __shfl_xor_sync(ALL, sum.x, other), sum.y += __shfl_xor_sync(ALL, sum.y, other);
                    sum.z += __shfl_xor_sync(ALL, sum.z, other), sum.w += __shfl_xor_sync(ALL, sum.w, other);
                }
                if (item < each && block == 0) finish(item * sharers + own, sum, most, total);
            }
            __syncwarp();
            cluster_arrive();
        }
        if (!now.whole) {
            u32 first_team = walk.begin / share, teams = (walk.end - 1) / share - first_team + 1;
            u32 first_part = first_team * a.kv_heads + head;
            u32* counter = a.counters + first_part * sharers + own;
            __syncthreads();
            if (threadIdx.x == 0) last = count_up(counter) == teams - 1;
            __syncthreads();
            if (last) {
                float2* all_ends = reinterpret_cast<float2*>(merge);
                for (u32 i = threadIdx.x; i < teams * ROWS; i += blockDim.x) {
                    Partials<D, ROWS> part(a.partials, first_part + i / ROWS * a.kv_heads, i < ROWS);
                    u32 row = i % ROWS;
                    if (row < rows_here) all_ends[i] = __ldcg(reinterpret_cast<const float2*>(part.ends) + row);
                }
                for (u32 base = 0; base < each; base += blockDim.x) {
                    u32 item = (base + threadIdx.x) * sharers + own, row = item / (D / 4);
                    bool mine = base + threadIdx.x < each;
                    // Many on their way at once, the first ones before the ends are there.
                    constexpr u32 BATCH = D >= 256 ? 4 : D * N >= 192 ? 8 : 16;
                    float4 its[BATCH];
                    auto load = [&](u32 from) {
#pragma unroll
                        for (u32 b = 0; b < BATCH; b++) {
                            Partials<D, ROWS> part(a.partials, first_part + (from + b) * a.kv_heads, from + b == 0);
                            if (mine && from + b < teams) its[b] = load_shared_by_all(part.sums + item * 4);
                        }
                    };
                    load(0);
                    if (base == 0) __syncthreads();
                    float most = LOWEST, total = 0.0f;
                    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (mine) {
                        for (u32 b = 0; b < teams; b++) most = fmaxf(most, all_ends[b * ROWS + row].x);
                    }
                    for (u32 from = 0; from < teams; from += BATCH) {
                        if (from) load(from);
#pragma unroll
                        for (u32 b = 0; b < BATCH; b++) {
                            if (!mine || from + b >= teams) continue;
                            float2 end = all_ends[(from + b) * ROWS + row];
                            float weight = exp_2(end.x - most);
                            total += end.y * weight;
                            sum.x += its[b].x * weight, sum.y += its[b].y * weight;
                            sum.z += its[b].z * weight, sum.w += its[b].w * weight;
                        }
                    }
                    if (mine) write(item, sum, total);
                }
                if (threadIdx.x == 0) *counter = 0;
            }
        }
        walk = next, at = end;
        __syncthreads();
    }
    if (cluster_blocks() > 1) cluster_wait();
}

#define DECODE(D, FORMAT, FP8, N)                                                    \
    extern "C" __global__ void __launch_bounds__(256, 1)                             \
        decode_##D##_##FORMAT##_##N(const __grid_constant__ AttendArgs a) {          \
        decode<D, FP8, N>(a);                                                        \
    }
DECODE(64, bf16, false, 1) DECODE(64, bf16, false, 2) DECODE(64, fp8, true, 1) DECODE(64, fp8, true, 2)
DECODE(96, bf16, false, 1) DECODE(96, bf16, false, 2) DECODE(96, fp8, true, 1) DECODE(96, fp8, true, 2)
DECODE(128, bf16, false, 1) DECODE(128, bf16, false, 2) DECODE(128, fp8, true, 1) DECODE(128, fp8, true, 2)
// Sixteen rows of 256 do not fit into registers.
DECODE(256, bf16, false, 1) DECODE(256, fp8, true, 1)
