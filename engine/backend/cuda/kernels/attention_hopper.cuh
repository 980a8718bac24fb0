// Prefill on Hopper: the same walk as `prefill_…`, with products of warp groups.
//
// Of three groups of four warps one copies keys and values of COLUMNS positions into shared memory, two stages ahead, and two have
// 64 rows each. A group starts the scores of the next positions and the sums of these ones, and works out weights
// while the second product still runs. The groups do not wait for each other, so that one's weights meet the other's products.
//
// Keys in e4m3 are multiplied as they are, and their scales are put onto scores; queries are two e4m3 then (`Split`). Values go to f16.
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

// Both in shared memory, row by row. Of e4m3 A has 32 columns, and B 32 rows.
template <bool FP8>
DEVICE void product(float (&d)[64], u64 a, u64 b, u32 add) {
    if (FP8) {
        asm volatile(
            "{ .reg .pred add; setp.ne.b32 add, %66, 0; wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" SIXTY_FOUR
            "}, %64, %65, add, 1, 1; }"
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
    // Tiles of keys: of e4m3 as they came, a half is all.
    template <bool FP8>
    static constexpr u32 KEY_STAGES = FP8 ? 4 : 2;
    static constexpr u32 KEYS = 2 * TILE, VALUES = 2 * TILE;    // bytes
};

// Queries that meet keys in e4m3 are two e4m3, one in sixteenths of the other: with a power of two for all rows of a group they are what bf16 holds.
struct Split {
    u32 exponent;   // of the power of two, as f32 has it
    // The largest value, as bf16 without its sign. It becomes 128 to 256; below that there are 16 bits.
    DEVICE Split(u32 largest) : exponent(127 + 7 - min(max(int(largest >> 7) - 127, -10), 100)) {}
    DEVICE float up() const { return __uint_as_float(exponent << 23); }
    DEVICE float down() const { return __uint_as_float((254 - exponent) << 23); }
    // Four values of bf16 to four bytes of each part.
    DEVICE void of(u32 first, u32 second, u32& high, u32& low) const {
        first = to_half2(low_bf16(first) * up(), high_bf16(first) * up());
        second = to_half2(low_bf16(second) * up(), high_bf16(second) * up());
        high = to_e4m3x4(first, second);
        low = to_e4m3x4(minus(first, e4m3x2_to_half2(high)), minus(second, e4m3x2_to_half2(high >> 16)));
    }
    // From f16.
    static DEVICE u32 to_e4m3x4(u32 first, u32 second) {
        u32 four;
        asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f16x2 low, %1; cvt.rn.satfinite.e4m3x2.f16x2 high, %2; mov.b32 %0, {low, high}; }"
            : "=r"(four)
            : "r"(first), "r"(second));
        return four;
    }
    static DEVICE u32 minus(u32 a, u32 b) {
        u32 difference;
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
        return difference;
    }
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

DEVICE void store_shared(u32 address, u32 x, u32 y) {
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}

DEVICE uint4 load_shared_four(u32 address) {
    uint4 words;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(address)
                 : "memory");
    return words;
}

template <bool FP8>
DEVICE void prefill_wide(const AttendArgs& a) {
    using W = Wide;
    extern __shared__ uint4 shared_hopper[];
    // Queries (the results at the end), then tiles of keys, then two of values; with e4m3 scales of keys and of queries; barriers.
    constexpr u32 KEY_STAGES = W::KEY_STAGES<FP8>, KEY_TILE = W::KEYS / KEY_STAGES;
    u32 base = (shared_address(shared_hopper) + 1023) & ~1023u;
    u32 keys = base + W::TILE, values = keys + W::KEYS, scales = values + W::VALUES;
    u32 group_scales = scales + (FP8 ? KEY_STAGES * W::COLUMNS * 4 : 0), barriers = group_scales + (FP8 ? 32 : 0);
    // Of stage s: keys are there, values are there; keys may be overwritten, values may.
    auto barrier = [&](u32 which, u32 s) { return barriers + (which * 4 + s) * 8; };
    u32 warps = warp_id() / 4, lane = lane_id(), thread = threadIdx.x % W::GROUP, group = a.heads / a.kv_heads;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < 4; s++) {
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
        // Eight lanes know where the sixteens of a step's positions lie: of the layer's blocks, in 16 bytes.
        constexpr u32 SIXTEENS = W::COLUMNS / 16, ROW = FP8 ? W::D : 2 * W::D;
        u32 in_block = u32(a.block_bytes / 16), head_row = head * a.block_tokens;
        u32 values_behind = a.kv_heads * a.block_tokens;    // rows
        struct Sixteen {
            u32 block, row;
        };
        auto sixteen_of = [&](u32 step) {
            u32 place, position = min((min(step, end - 1) * SIXTEENS + lane % SIXTEENS) * 16, about.w - 1);
            u32 block = a.block_of(about, position, place);
            return Sixteen{block, head_row + place};
        };
        auto rows_at = [&](Sixteen at) { return at.block * in_block + at.row * (ROW / 16); };
        auto scales_at = [&](Sixteen at) { return at.block * in_block + values_behind * 2 * (W::D / 16) + at.row / 4; };
        if constexpr (FP8) {
            // Keys and their scales as they are, in the background. A thread has a piece of every sixteenth row. Scales lie as lanes
            // ask for them: of four columns at once.
            u32 key_piece = thread % 8, key_row = thread / 8, column = thread % 8, n = thread / 8;
            u32 key_place = keys + W::place(key_row, key_piece), scale_place = scales + (n / 2 * 16 + column / 2 * 4 + n % 2 * 2 + column % 2) * 4;
            auto copy_keys = [&](u32 step, Sixteen at, u32 s) {
                u32 rows = rows_at(at), left = about.w - step * W::COLUMNS;
#pragma unroll
                for (u32 i = 0; i < SIXTEENS; i++) {
                    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                                 ::"r"(key_place + s * KEY_TILE + i * 16 * 128), "l"(a.pool + u64(__shfl_sync(ALL, rows, i) + thread) * 16),
                                 "r"(i * 16 + key_row < left ? 16 : 0)
                                 : "memory");
                }
                asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                             ::"r"(scale_place + s * W::COLUMNS * 4),
                             "l"(a.pool + u64(__shfl_sync(ALL, scales_at(at), thread / 16) * 4 + thread % 16) * 4), "r"(thread < left ? 4 : 0)
                             : "memory");
                copies_done_so_far();
            };
            // Values wait in registers and go to f16 on the way, scales multiplied in. A thread has 16 values of every sixteenth row:
            // where eight threads' pieces of 16 bytes go are all banks.
            u32 piece = thread % 4 + thread / 8 % 2 * 4, row = thread / 4 % 2 + thread / 16 * 2;
            u32 own_row = values_behind + row, own = own_row * (ROW / 16) + piece, place = values + W::place(row, piece * 2);
            uint4 bytes[SIXTEENS];
            float value_scales[SIXTEENS];
            auto load_values = [&](u32 step, Sixteen at) {
                u32 rows = rows_at(at), its_scales = scales_at(at), left = about.w - step * W::COLUMNS;
#pragma unroll
                for (u32 i = 0; i < SIXTEENS; i++) {
                    const u8* from = a.pool + u64(__shfl_sync(ALL, rows, i) + own) * 16;
                    const u8* scale = a.pool + u64(__shfl_sync(ALL, its_scales, i) * 4 + own_row) * 4;
                    bytes[i] = make_uint4(0, 0, 0, 0), value_scales[i] = 0.0f;
                    if (i * 16 + row < left) {
                        bytes[i] = __ldcg(reinterpret_cast<const uint4*>(from));
                        value_scales[i] = __ldcg(reinterpret_cast<const float*>(scale));
                    }
                }
            };
            auto widen_values = [&](u32 s) {
#pragma unroll
                for (u32 i = 0; i < SIXTEENS; i++) {
                    asm volatile("" : "+f"(value_scales[i]));   // not before they are needed: they are still on their way
                    u32 scale = scale_pair(value_scales[i]), words[8];
                    const u32 from[4] = {bytes[i].x, bytes[i].y, bytes[i].z, bytes[i].w};
#pragma unroll
                    for (u32 j = 0; j < 8; j++) words[j] = scaled_half2(from[j / 2] >> j % 2 * 16, scale);
                    u32 to = place + s * W::TILE + i * 16 * 128;
                    store_shared(to, words[0], words[1], words[2], words[3]);
                    store_shared(to ^ 16, words[4], words[5], words[6], words[7]);
                }
            };
            // Keys are two steps ahead, values one in registers.
            Sixteen at = sixteen_of(begin), next = sixteen_of(begin + 1), later = sixteen_of(begin + 2);
            copy_keys(begin, at, 0);
            load_values(begin, at);
            if (begin + 1 < end) {
                copy_keys(begin + 1, next, 1);
                wait_for_copies<1>();
            } else {
                wait_for_copies<0>();
            }
            for_tensor_cores();
            barrier_arrive(barrier(0, 0));
            for (u32 step = begin; step < end; step++) {
                u32 i = step - begin, s = i % 2, ahead = i + 2;
                if (step + 1 < end) {
                    wait_for_copies<0>();
                    for_tensor_cores();
                    barrier_arrive(barrier(0, (i + 1) % KEY_STAGES));
                }
                if (step + 2 < end) {
                    barrier_wait(barrier(2, ahead % KEY_STAGES), (ahead / KEY_STAGES + 1) % 2);
                    copy_keys(step + 2, later, ahead % KEY_STAGES);
                }
                barrier_wait(barrier(3, s), (i / 2 + 1) % 2);
                widen_values(s);
                for_tensor_cores();
                barrier_arrive(barrier(1, s));
                if (step + 1 < end) load_values(step + 1, next);
                next = later, later = sixteen_of(step + 3);
            }
            return;
        }
        // In the background. A thread has a piece of every eighth row.
        u32 piece = thread % W::PIECES, own_row = thread / W::PIECES;
        const u8* own = a.pool + own_row * ROW + piece * 16;
        u32 own_place = W::place(own_row, piece);
        auto copy_tile = [&](const u8* own, u32 step, Sixteen at, u32 to) {
            u32 rows = rows_at(at), left = about.w - step * W::COLUMNS;
#pragma unroll
            for (u32 i = 0; i < SIXTEENS; i++) {
                const u8* from = own + u64(__shfl_sync(ALL, rows, i)) * 16;
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;"
                                 ::"r"(to + own_place + (i * 16 + j * 8) * 128), "l"(from + j * 8 * ROW),
                                 "r"(i * 16 + j * 8 + own_row < left ? 16 : 0)
                                 : "memory");
                }
            }
            copies_done_so_far();
        };
        // Values of a step with the keys of the next one, which are asked for at the same time.
        Sixteen at = sixteen_of(begin), next = sixteen_of(begin + 1);
        copy_tile(own, begin, at, keys);
        wait_for_copies<0>();
        for_tensor_cores();
        barrier_arrive(barrier(0, 0));
        for (u32 step = begin; step < end; step++) {
            u32 i = step - begin, s = i % 2;
            if (step + 1 < end) {
                barrier_wait(barrier(2, 1 - s), ((i + 1) / 2 + 1) % 2);
                copy_tile(own, step + 1, next, keys + (1 - s) * KEY_TILE);
            }
            barrier_wait(barrier(3, s), (i / 2 + 1) % 2);
            copy_tile(own + values_behind * ROW, step, at, values + s * W::TILE);
            if (step + 1 < end) {
                wait_for_copies<1>();
                for_tensor_cores();
                barrier_arrive(barrier(0, 1 - s));
            }
            at = next, next = sixteen_of(step + 2);
            wait_for_copies<0>();
            for_tensor_cores();
            barrier_arrive(barrier(1, s));
        }
        return;
    }

    if (FP8) asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    else asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    u32 mine = (warps - 1) * 64;  // of the tile's rows
    constexpr u32 EACH = 64 * W::PIECES / W::GROUP;
    uint4 pieces[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 of = min(first_row + mine + (i * W::GROUP + thread) / W::PIECES, rows - 1), token = a.token_of(of);
        const u16* from = a.q + u64(about.x + token) * a.q_stride + (head * group + of - token * group) * W::D;
        pieces[i] = *reinterpret_cast<const uint4*>(from + thread % W::PIECES * 8);
    }
    // With e4m3 a power of two for all rows of the group.
    float to_log2 = a.scale * LOG2_E;
    u32 largest = 0;
    if (FP8) {
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u32 pairs[4] = {pieces[i].x, pieces[i].y, pieces[i].z, pieces[i].w};
#pragma unroll
            for (u32 j = 0; j < 4; j++) largest = max(largest, max(pairs[j] & 0x7fff, pairs[j] >> 16 & 0x7fff));
        }
        u32 shared_by_warps = group_scales + (warps - 1) * 16;
        largest = __reduce_max_sync(ALL, largest);
        if (lane == 0) asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared_by_warps + thread / WARP * 4), "r"(largest) : "memory");
        bar(warps);
        uint4 all = load_shared_four(shared_by_warps);
        largest = max(max(all.x, all.y), max(all.z, all.w));
    }
    Split split(largest);
    if (FP8) to_log2 *= split.down();
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 row = mine + (i * W::GROUP + thread) / W::PIECES, piece = thread % W::PIECES;
        uint4 words = pieces[i];
        if constexpr (!FP8) {
            store_shared(base + W::place(row, piece), words.x, words.y, words.z, words.w);
            continue;
        }
        u32 high[2], low[2], to = base + W::place(row, piece / 2) + piece % 2 * 8;
        split.of(words.x, words.y, high[0], low[0]), split.of(words.z, words.w, high[1], low[1]);
        store_shared(to, high[0], high[1]);
        store_shared(to + W::HALF, low[0], low[1]);
    }
    for_tensor_cores();
    bar(warps);

    u32 g = lane / 4, t = lane % 4, my_row = mine + thread / WARP * 16 + g;  // and the eighth behind it
    float scores[64], sums[64], above[2], total[2] = {}, change[2];
    above[0] = above[1] = FP8 ? 0.0f : LOWEST;
    bool seen[2] = {}, fresh = true, grows;
    u32 weights[32];
    u64 query_tile = tile_of(base + mine * 128, 16);
    auto start_scores = [&](u32 s) {
        u64 key_tile = tile_of(keys + s * KEY_TILE, 16);
        products_begin();
#pragma unroll
        for (u32 k = 0; k < W::D / 16; k++) {
            // Of e4m3 the small parts of queries first: what is added to the sum then is cut off with the least.
            u32 half = FP8 ? 1 - k / 4 : k / 4, at = (half * W::HALF + k % 4 * 32) >> 4;
            product<FP8>(scores, query_tile + at, key_tile + (FP8 ? k % 4 * 32 >> 4 : at), k > 0);
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
    // What a row does not see.
    auto hide = [&](u32 start) {
        if (start + W::COLUMNS <= first_sees && (last_sees <= a.window || start >= last_sees - a.window)) return;
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
    };
    auto most_of_four = [&](float (&most)[2]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            most[i] = fmaxf(most[i], __shfl_xor_sync(ALL, most[i], 1));
            most[i] = fmaxf(most[i], __shfl_xor_sync(ALL, most[i], 2));
        }
    };
    // Scores to weights: powers of two of what they are above a row's `above`. That was the row's largest score once; only where a weight
    // would be above 2^8 it grows, and `change` is for the sums then.
    auto weigh = [&](u32 step, u32 s) {
        float most[2] = {NOTHING, NOTHING};
        if constexpr (FP8) {
            // With scales comes what is taken off, and lanes ask each other only where it grows.
#pragma unroll
            for (u32 n = 0; n < W::COLUMNS / 8; n += 2) {
                uint4 scale = load_shared_four(scales + s * W::COLUMNS * 4 + t * 16 + n * 32);
                float up[4] = {__uint_as_float(scale.x), __uint_as_float(scale.y), __uint_as_float(scale.z), __uint_as_float(scale.w)};
#pragma unroll
                for (u32 j = 0; j < 4; j++) up[j] *= to_log2;
#pragma unroll
                for (u32 j = 0; j < 8; j++) scores[n * 4 + j] = fmaf(scores[n * 4 + j], up[j / 4 * 2 + j % 2], -above[j / 2 % 2]);
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(barrier(2, s));
            hide(step * W::COLUMNS);
#pragma unroll
            for (u32 n = 0; n < 64; n++) most[n / 2 % 2] = fmaxf(most[n / 2 % 2], scores[n]);
            // Until each row has `seen` something this is done at every step.
            grows = __any_sync(ALL, fresh || fmaxf(most[0], most[1]) > 8.0f);
            if (grows) {
                most_of_four(most);
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    bool sees = most[i] > NOTHING;
                    // Without sums yet it may fall, too.
                    float by = seen[i] ? fmaxf(most[i], 0.0f) : sees ? most[i] : 0.0f;
                    change[i] = seen[i] ? exp_2(-by) : 1.0f;
                    seen[i] |= sees, above[i] += by, total[i] *= change[i];
#pragma unroll
                    for (u32 n = 0; n < 32; n++) scores[n / 2 * 4 + 2 * i + n % 2] -= by;
                }
                fresh = __any_sync(ALL, !(seen[0] && seen[1]));
            }
        } else {
            if (lane == 0) barrier_arrive(barrier(2, s));
            hide(step * W::COLUMNS);
#pragma unroll
            for (u32 n = 0; n < 64; n++) most[n / 2 % 2] = fmaxf(most[n / 2 % 2], scores[n]);
            most_of_four(most);
            most[0] *= to_log2, most[1] *= to_log2;
            grows = __any_sync(ALL, most[0] > above[0] + 8.0f || most[1] > above[1] + 8.0f);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float now = grows ? fmaxf(most[i], above[i]) : above[i];
                change[i] = exp_2(above[i] - now);
                above[i] = now, total[i] *= change[i];
            }
        }
#pragma unroll
        for (u32 n = 0; n < 64; n++) {
            scores[n] = exp_2(FP8 ? scores[n] : fmaf(scores[n], to_log2, -above[n / 2 % 2]));
            total[n / 2 % 2] += scores[n];
        }
    };
    auto pack = [&] {
#pragma unroll
        for (u32 i = 0; i < 32; i++) weights[i] = to_pair<FP8>(scores[2 * i], scores[2 * i + 1]);
    };

    barrier_wait(barrier(0, 0), 0);
    start_scores(0);
    products_wait<0>(scores);
    weigh(begin, 0);
    pack();
#pragma unroll 1
    for (u32 step = begin; step + 1 < end; step++) {
        u32 i = step - begin, s = i % 2, phase = i / 2 % 2, next = (i + 1) % KEY_STAGES;
        barrier_wait(barrier(0, next), (i + 1) / KEY_STAGES % 2);
        start_scores(next);
        barrier_wait(barrier(1, s), phase);
        start_sums(s, i > 0);
        products_wait<1>(scores);
        weigh(step + 1, next);
        // It is over: a branch, or the compiler waits for the sums before it works out weights.
        barrier_wait(barrier(1, s), phase);
        products_wait<0>(sums);
        if (lane == 0) barrier_arrive(barrier(3, s));
        if (grows) {
#pragma unroll
            for (u32 n = 0; n < 64; n++) sums[n] *= change[n / 2 % 2];
        }
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
            if (t == 0) part.ends[my_row + i * 8] = make_float2(above[i], all);
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
        uint4 words = load_shared_four(base + W::place(at, piece));
        u16* to = a.out + (u64(about.x + row / group) * a.heads + head * group + row % group) * W::D + piece * 8;
        *reinterpret_cast<uint4*>(to) = words;
    }
}

// Puts the parts of a walk together: the blocks of a tile's first part, each for a head and eight rows, where others follow it.
extern "C" __global__ void __launch_bounds__(256) prefill_join(const __grid_constant__ AttendArgs a) {
    using W = Wide;
    constexpr u32 BATCH = 4;    // parts on their way at once
    uint2 tile = __ldg(a.tiles + blockIdx.y);
    u32 head = blockIdx.x, group = a.heads / a.kv_heads, first_row = (tile.y & 0xffff) * W::ROWS;
    Part first(a, tile.y, blockIdx.y * gridDim.x + head);
    uint4 about = __ldg(a.sequences + tile.x);
    u32 row = blockIdx.z * 8 + threadIdx.x / WARP, column = lane_id() * 4, of = first_row + row;
    wait_for_before();
    let_next_start();
    if (first.count < 2 || first.number > 0 || of >= about.y * group) return;
    float largest = LOWEST, total = 0.0f;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (u32 n = 0; n < first.count; n += BATCH) {
        float2 ends[BATCH];
        float4 values[BATCH];
#pragma unroll
        for (u32 b = 0; b < BATCH; b++) {
            Part part(a, tile.y, (blockIdx.y + min(n + b, first.count - 1)) * gridDim.x + head);
            ends[b] = __ldcg(part.ends + row);
            values[b] = __ldcg(reinterpret_cast<const float4*>(part.sums + row * W::D + column));
        }
#pragma unroll
        for (u32 b = 0; b < BATCH; b++) {
            // One that saw nothing may have written no sums.
            if (n + b >= first.count || ends[b].y == 0.0f) continue;
            float most = fmaxf(largest, ends[b].x), before = exp_2(largest - most), now = exp_2(ends[b].x - most);
            sum.x = sum.x * before + values[b].x * now, sum.y = sum.y * before + values[b].y * now;
            sum.z = sum.z * before + values[b].z * now, sum.w = sum.w * before + values[b].w * now;
            total = total * before + ends[b].y * now;
            largest = most;
        }
    }
    float up = 1.0f / total;
    u16* to = a.out + (u64(about.x + of / group) * a.heads + head * group + of % group) * W::D + column;
    *reinterpret_cast<uint2*>(to) = make_uint2(to_bf16x2(sum.x * up, sum.y * up), to_bf16x2(sum.z * up, sum.w * up));
}

extern "C" __global__ void __launch_bounds__(384, 1) prefill_128_bf16(const __grid_constant__ AttendArgs a) {
    prefill_wide<false>(a);
}
extern "C" __global__ void __launch_bounds__(384, 1) prefill_128_fp8(const __grid_constant__ AttendArgs a) {
    prefill_wide<true>(a);
}
#endif
