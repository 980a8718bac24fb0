// Prefill on Hopper: the same walk as `prefill_…`, with products of warp groups.
//
// Of three groups of four warps one copies keys and values of COLUMNS positions into shared memory, two stages ahead, and two have
// 64 rows each. A group starts the scores of the next positions and the sums of these ones, and works out weights
// while the second product still runs. The groups do not wait for each other, so that one's weights meet the other's products.
#pragma once
#if ARCH == 900

// ---- Barriers in shared memory -----------------------------------------------------------------------------------------------

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Until the phase of that parity is over.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 over;
    do {
        asm volatile(
            "{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!over);
}

// What ordinary copies wrote to shared memory is there for the tensor cores.
DEVICE void for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Products of a group of four warps: D (64 x 128, f32) += A (64 x 16) x B (16 x 128), bf16 ----------------------------------
// Tiles in shared memory are halves of 64 columns, rows of 128 bytes whose pieces of 16 are xored with the row's last three bits.
// A lane holds of D what it holds of 16 x 8 pieces in `mma_bf16`, one after the other; a warp has 16 rows.

DEVICE u64 tile_of(u32 address, u32 leading) {
    return u64((address & 0x3ffff) >> 4) | u64(leading >> 4) << 16 | u64(1024 >> 4) << 32 | 1ull << 62;
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_sent() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most LATER groups of products are not done; `d` is what one of them made.
template <int LATER>
DEVICE void products_wait(float (&d)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
#pragma unroll
    for (u32 i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define SIXTY_FOUR \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
        "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
        "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
        "%62, %63 "
#define ALL_OF_D \
          "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), \
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), \
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), \
          "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), \
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// Both in shared memory, row by row.
template <bool FP8>
DEVICE void product(float (&d)[64], u64 a, u64 b, u32 add) {
    if (FP8) {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SIXTY_FOUR
            "}, %64, %65, add, 1, 1, 0, 0; }"
            : ALL_OF_D
            : "l"(a), "l"(b), "r"(add));
    } else {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIXTY_FOUR
            "}, %64, %65, add, 1, 1, 0, 0; }"
            : ALL_OF_D
            : "l"(a), "l"(b), "r"(add));
    }
}

// A in registers, B column by column.
template <bool FP8>
DEVICE void product(float (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, u32 add) {
    if (FP8) {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SIXTY_FOUR
            "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1; }"
            : ALL_OF_D
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
    } else {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIXTY_FOUR
            "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1; }"
            : ALL_OF_D
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
    }
}

// ---- The kernel --------------------------------------------------------------------------------------------------------------

struct Wide {
    static constexpr u32 D = 128, ROWS = 128, COLUMNS = 128, GROUP = 4 * WARP, PIECES = D / 8;
    static constexpr u32 HALF = COLUMNS * 128, TILE = 2 * HALF;     // bytes; a tile of queries is as large
    // Where a piece of 16 bytes of a row lies in a tile.
    static DEVICE u32 place(u32 row, u32 piece) { return piece / 8 * HALF + row * 128 + ((piece % 8) ^ (row % 8)) * 16; }
};

// A tile's walk may be cut (`parts.rs`): the low half of its word is the tile, then a byte each which part and of how many; 0 and 1 are
// a whole walk. Of a part stay sums that are not divided yet, and for each row the largest score and the sum of weights.
struct Part {
    u32 number, count;
    float* sums;    // [ROWS][D]
    float2* ends;   // [ROWS]
    DEVICE Part(const AttendArgs& a, u32 word, u32 block) : number(word >> 16 & 0xff), count(word >> 24) {
        constexpr u32 FLOATS = Wide::ROWS * (Wide::D + 2);
        sums = a.partials + u64(block) * FLOATS;
        ends = reinterpret_cast<float2*>(sums + Wide::ROWS * Wide::D);
    }
    DEVICE void cut(u32& begin, u32& end) const {
        if (count < 2) return;
        u32 length = ceil_div(end - begin, count);
        begin += number * length;
        end = min(end, begin + length);
    }
};

DEVICE void bar(u32 name) { asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory"); }

DEVICE void store_shared(u32 address, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

template <bool FP8>
DEVICE void prefill_wide(const AttendArgs& a) {
    using W = Wide;
    extern __shared__ uint4 shared_hopper[];
    // Queries (the results at the end), then two tiles of keys, then two of values, then barriers.
    u32 base = (shared_address(shared_hopper) + 1023) & ~1023u;
    u32 keys = base + W::TILE, values = keys + 2 * W::TILE, barriers = values + 2 * W::TILE;
    // Of stage s: keys are there, values are there; keys may be overwritten, values may.
    auto barrier = [&](u32 which, u32 s) { return barriers + (which * 2 + s) * 8; };
    u32 warps = warp_id() / 4, lane = lane_id(), thread = threadIdx.x % W::GROUP, group = a.heads / a.kv_heads;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < 2; s++) {
            barrier_init(barrier(0, s), W::GROUP), barrier_init(barrier(1, s), W::GROUP);
            barrier_init(barrier(2, s), 8), barrier_init(barrier(3, s), 8);  // a lane of each warp that multiplies
        }
    }
    __syncthreads();

    uint2 tile = __ldg(a.tiles + blockIdx.y);
    uint4 about = __ldg(a.sequences + tile.x);
    u32 head = blockIdx.x, first_row = (tile.y & 0xffff) * W::ROWS, rows = about.y * group, cached = about.w - about.y;
    u32 first_sees = cached + first_row / group + 1;
    u32 last_sees = cached + (min(first_row + W::ROWS, rows) - 1) / group + 1;
    u32 begin = (first_sees > a.window ? first_sees - a.window : 0) / W::COLUMNS;
    u32 end = ceil_div(last_sees, W::COLUMNS);
    Part part(a, tile.y, blockIdx.y * gridDim.x + blockIdx.x);
    part.cut(begin, end);
    wait_for_before();
    let_next_start();
    // A window may leave nothing for a part.
    if (begin >= end) {
        if (threadIdx.x < W::ROWS) part.ends[threadIdx.x] = make_float2(LOWEST, 0.0f);
        return;
    }

    if (warps == 0) {
        if (FP8) asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
        else asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        auto rows_of = [&](u32 which, u32 start, u32 block, u32& head_row) {
            u32 sixteen = min(start, about.w - 1) / 16 * 16;
            head_row = (which * a.kv_heads + head) * a.block_tokens + sixteen -
                       u32((sixteen / 16) * a.block_part >> 32) * a.block_tokens;
            return a.pool + u64(block) * a.block_bytes;
        };
        // bf16, in the background. A thread has a piece of every eighth row.
        auto copy_tile = [&](u32 which, u32 start, u32 block, u32 to) {
            u32 piece = thread % W::PIECES, own_row = thread / W::PIECES;
#pragma unroll
            for (u32 i = 0; i < W::COLUMNS / 16; i++) {
                u32 head_row;
                const u8* from = rows_of(which, start + i * 16, __shfl_sync(ALL, block, i), head_row);
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    u32 row = own_row + j * 8;
                    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;"
                                 ::"r"(to + W::place(i * 16 + row, piece)), "l"(from + (head_row + row) * (W::D * 2) + piece * 16),
                                 "r"(start + i * 16 + row < about.w ? 16 : 0)
                                 : "memory");
                }
            }
            copies_done_so_far();
        };
        // e4m3, to f16 on the way, scales multiplied in. A thread has 16 values of every sixteenth row.
        auto widen_tile = [&](u32 which, u32 start, u32 block, u32 to, u32 barrier, u32 parity) {
            u32 piece = thread % 8, row = thread / 8;
            uint4 bytes[W::COLUMNS / 16];
            float scales[W::COLUMNS / 16];
#pragma unroll
            for (u32 i = 0; i < W::COLUMNS / 16; i++) {
                u32 head_row;
                const u8* from = rows_of(which, start + i * 16, __shfl_sync(ALL, block, i), head_row);
                bytes[i] = make_uint4(0, 0, 0, 0), scales[i] = 0.0f;
                if (start + i * 16 + row < about.w) {
                    bytes[i] = __ldcg(reinterpret_cast<const uint4*>(from + (head_row + row) * W::D + piece * 16));
                    scales[i] = __ldcg(reinterpret_cast<const float*>(from + 2 * a.kv_heads * a.block_tokens * W::D) + head_row + row);
                }
            }
            barrier_wait(barrier, parity);
#pragma unroll
            for (u32 i = 0; i < W::COLUMNS / 16; i++) {
                u32 scale = scale_pair(scales[i]), words[8];
                const u32 from[4] = {bytes[i].x, bytes[i].y, bytes[i].z, bytes[i].w};
#pragma unroll
                for (u32 j = 0; j < 8; j++) words[j] = scaled_half2(from[j / 2] >> j % 2 * 16, scale);
                store_shared(to + W::place(i * 16 + row, piece * 2), words[0], words[1], words[2], words[3]);
                store_shared(to + W::place(i * 16 + row, piece * 2 + 1), words[4], words[5], words[6], words[7]);
            }
            for_tensor_cores();
        };
        auto blocks_of = [&](u32 start) {
            u32 place;
            return a.block_of(about, min(start + lane % (W::COLUMNS / 16) * 16, about.w - 1), place);
        };
        u32 next = blocks_of(begin * W::COLUMNS);
        for (u32 step = begin; step < end; step++) {
            u32 i = step - begin, s = i % 2, free = (i / 2 + 1) % 2, block = next;
            if (step + 1 < end) next = blocks_of((step + 1) * W::COLUMNS);
            if (FP8) {
                widen_tile(0, step * W::COLUMNS, block, keys + s * W::TILE, barrier(2, s), free);
                barrier_arrive(barrier(0, s));
                widen_tile(1, step * W::COLUMNS, block, values + s * W::TILE, barrier(3, s), free);
                barrier_arrive(barrier(1, s));
                continue;
            }
            barrier_wait(barrier(2, s), free);
            copy_tile(0, step * W::COLUMNS, block, keys + s * W::TILE);
            if (i > 0) {
                wait_for_copies<1>();
                for_tensor_cores();
                barrier_arrive(barrier(1, 1 - s));
            }
            barrier_wait(barrier(3, s), free);
            copy_tile(1, step * W::COLUMNS, block, values + s * W::TILE);
            wait_for_copies<1>();
            for_tensor_cores();
            barrier_arrive(barrier(0, s));
        }
        if (FP8) return;
        wait_for_copies<0>();
        for_tensor_cores();
        barrier_arrive(barrier(1, (end - 1 - begin) % 2));
        return;
    }

    if (FP8) asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    else asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    u32 mine = (warps - 1) * 64;  // of the tile's rows
#pragma unroll 2
    for (u32 i = thread; i < 64 * W::PIECES; i += W::GROUP) {
        u32 row = mine + i / W::PIECES, piece = i % W::PIECES, of = min(first_row + row, rows - 1);
        const u16* from = a.q + u64(about.x + of / group) * a.q_stride + (head * group + of % group) * W::D + piece * 8;
        uint4 words = *reinterpret_cast<const uint4*>(from);
        if (FP8) words = make_uint4(bf16x2_to_half2(words.x), bf16x2_to_half2(words.y), bf16x2_to_half2(words.z), bf16x2_to_half2(words.w));
        store_shared(base + W::place(row, piece), words.x, words.y, words.z, words.w);
    }
    for_tensor_cores();
    bar(warps);

    u32 g = lane / 4, t = lane % 4, my_row = mine + thread / WARP * 16 + g;  // and the eighth behind it
    float to_log2 = a.scale * LOG2_E;
    float scores[64], sums[64], largest[2] = {LOWEST, LOWEST}, total[2] = {}, change[2];
    u32 weights[32];
    u64 query_tile = tile_of(base + mine * 128, 16);
    auto start_scores = [&](u32 s) {
        u64 key_tile = tile_of(keys + s * W::TILE, 16);
        products_begin();
#pragma unroll
        for (u32 k = 0; k < W::D / 16; k++) {
            u32 at = (k / 4 * W::HALF + k % 4 * 32) >> 4;
            product<FP8>(scores, query_tile + at, key_tile + at, k > 0);
        }
        products_sent();
    };
    auto start_sums = [&](u32 s, u32 add) {
        u64 value_tile = tile_of(values + s * W::TILE, W::HALF);
        products_begin();
#pragma unroll
        for (u32 k = 0; k < W::COLUMNS / 16; k++) {
            product<FP8>(sums, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3],
                    value_tile + (k * 2048 >> 4), k > 0 || add);
        }
        products_sent();
    };
    auto weigh = [&](u32 step) {
        u32 start = step * W::COLUMNS;
        if (start + W::COLUMNS > first_sees || (last_sees > a.window && start < last_sees - a.window)) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 sees = cached + min(first_row + my_row + i * 8, rows - 1) / group + 1;
#pragma unroll
                for (u32 n = 0; n < W::COLUMNS / 8; n++) {
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        u32 position = start + n * 8 + 2 * t + j;
                        bool seen = position < sees && sees - position <= a.window;
                        if (!seen) scores[n * 4 + 2 * i + j] = NOTHING;
                    }
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float most = NOTHING;
#pragma unroll
            for (u32 n = 0; n < W::COLUMNS / 8; n++) most = fmaxf(most, fmaxf(scores[n * 4 + 2 * i], scores[n * 4 + 2 * i + 1]));
            most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
            most = fmaxf(most * to_log2, largest[i]);
            change[i] = exp_2(largest[i] - most);
            largest[i] = most;
            float sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < W::COLUMNS / 8; n++) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float weight = exp_2(fmaf(scores[n * 4 + 2 * i + j], to_log2, -most));
                    scores[n * 4 + 2 * i + j] = weight;
                    sum += weight;
                }
            }
            total[i] = total[i] * change[i] + sum;
        }
    };
    auto pack = [&] {
#pragma unroll
        for (u32 i = 0; i < 32; i++) weights[i] = to_pair<FP8>(scores[2 * i], scores[2 * i + 1]);
    };

    barrier_wait(barrier(0, 0), 0);
    start_scores(0);
    products_wait<0>(scores);
    if (lane == 0) barrier_arrive(barrier(2, 0));
    weigh(begin);
    pack();
#pragma unroll 1
    for (u32 step = begin; step + 1 < end; step++) {
        u32 i = step - begin, s = i % 2, phase = i / 2 % 2;
        barrier_wait(barrier(0, 1 - s), (i + 1) / 2 % 2);
        start_scores(1 - s);
        barrier_wait(barrier(1, s), phase);
        start_sums(s, i > 0);
        products_wait<1>(scores);
        if (lane == 0) barrier_arrive(barrier(2, 1 - s));
        weigh(step + 1);
        products_wait<0>(sums);
        if (lane == 0) barrier_arrive(barrier(3, s));
#pragma unroll
        for (u32 n = 0; n < 64; n++) sums[n] *= change[n / 2 % 2];
        pack();
    }
    u32 i = end - 1 - begin;
    barrier_wait(barrier(1, i % 2), i / 2 % 2);
    start_sums(i % 2, i > 0);
    products_wait<0>(sums);

    if (part.count > 1) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float all = total[i];
            all += __shfl_xor_sync(ALL, all, 1);
            all += __shfl_xor_sync(ALL, all, 2);
            if (t == 0) part.ends[my_row + i * 8] = make_float2(largest[i], all);
            float* to = part.sums + (my_row + i * 8) * W::D + 2 * t;
#pragma unroll
            for (u32 n = 0; n < W::D / 8; n++) {
                *reinterpret_cast<float2*>(to + n * 8) = make_float2(sums[n * 4 + 2 * i], sums[n * 4 + 2 * i + 1]);
            }
        }
        return;
    }

    // Results go where the queries were, and from there in 16 bytes to memory.
    bar(warps);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        float all = total[i];
        all += __shfl_xor_sync(ALL, all, 1);
        all += __shfl_xor_sync(ALL, all, 2);
        float up = 1.0f / all;
#pragma unroll
        for (u32 n = 0; n < W::D / 8; n++) {
            u32 pair = to_bf16x2(sums[n * 4 + 2 * i] * up, sums[n * 4 + 2 * i + 1] * up);
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(base + W::place(my_row + i * 8, n) + t * 4), "r"(pair) : "memory");
        }
    }
    bar(warps);
#pragma unroll 1
    for (u32 i = thread; i < 64 * W::PIECES; i += W::GROUP) {
        u32 at = mine + i / W::PIECES, row = first_row + at, piece = i % W::PIECES;
        if (row >= rows) continue;
        uint4 words;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                     : "r"(base + W::place(at, piece))
                     : "memory");
        u16* to = a.out + (u64(about.x + row / group) * a.heads + head * group + row % group) * W::D + piece * 8;
        *reinterpret_cast<uint4*>(to) = words;
    }
}

// Puts the parts of a walk together: the blocks of a tile's first part, each for a head, where others follow it.
extern "C" __global__ void __launch_bounds__(256) prefill_join(const __grid_constant__ AttendArgs a) {
    using W = Wide;
    uint2 tile = __ldg(a.tiles + blockIdx.y);
    u32 head = blockIdx.x, group = a.heads / a.kv_heads, first_row = (tile.y & 0xffff) * W::ROWS;
    Part first(a, tile.y, blockIdx.y * gridDim.x + head);
    uint4 about = __ldg(a.sequences + tile.x);
    wait_for_before();
    let_next_start();
    if (first.count < 2 || first.number > 0) return;
    u32 rows = min(about.y * group - first_row, W::ROWS);
    for (u32 i = threadIdx.x; i < rows * (W::D / 4); i += blockDim.x) {
        u32 row = i / (W::D / 4), column = i % (W::D / 4) * 4;
        float largest = LOWEST, total = 0.0f;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (u32 n = 0; n < first.count; n++) {
            Part part(a, tile.y, (blockIdx.y + n) * gridDim.x + head);
            float2 end = __ldcg(part.ends + row);
            if (end.y == 0.0f) continue;  // it saw nothing, and may have written nothing
            float most = fmaxf(largest, end.x), before = exp_2(largest - most), now = exp_2(end.x - most);
            float4 values = __ldcg(reinterpret_cast<const float4*>(part.sums + row * W::D + column));
            sum.x = sum.x * before + values.x * now, sum.y = sum.y * before + values.y * now;
            sum.z = sum.z * before + values.z * now, sum.w = sum.w * before + values.w * now;
            total = total * before + end.y * now;
            largest = most;
        }
        float up = 1.0f / total;
        u32 of = first_row + row;
        u16* to = a.out + (u64(about.x + of / group) * a.heads + head * group + of % group) * W::D + column;
        *reinterpret_cast<uint2*>(to) = make_uint2(to_bf16x2(sum.x * up, sum.y * up), to_bf16x2(sum.z * up, sum.w * up));
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) prefill_128_bf16(const __grid_constant__ AttendArgs a) {
    prefill_wide<false>(a);
}
extern "C" __global__ void __launch_bounds__(384, 1) prefill_128_fp8(const __grid_constant__ AttendArgs a) {
    prefill_wide<true>(a);
}
#endif
