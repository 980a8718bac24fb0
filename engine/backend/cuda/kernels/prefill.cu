// Softmax attention of sequences with many tokens, in tiles of rows.
#include "attention.cuh"

// ---- Prefill -----------------------------------------------------------------------------------------------------------------
// A block of the grid has a tile of rows of one sequence and key/value head: a fragment of 16 rows (M of them) is a warp's. Keys
// and values of COLUMNS positions at a time come into shared memory; those of the next ones are on their way while the
// other kind is worked on. Rows in shared memory are 16 bytes longer than they are, so that eight of them lie in all banks.

template <u32 D, bool FP8>
struct Tile {
    static constexpr u32 WARPS = 4, M = D <= 128 ? 2 : 1, ROWS = WARPS * M * 16;
    static constexpr u32 COLUMNS = D <= 128 ? 64 : 32;
    static constexpr u32 WIDE = D + 8;              // of a row, in values
    static constexpr u32 BYTES = FP8 ? 1 : 2;       // of a value in the pool
    static constexpr u32 RAW = FP8 ? COLUMNS * D : 0;   // e4m3, as they came
    static constexpr u32 KEY_TILES = FP8 ? 1 : 2;
};

// Copies positions from `start` on to rows of shared memory: keys (0) or values (1), and their scales.
template <u32 D, bool FP8>
DEVICE void copy_tile(const AttendArgs& a, uint4 about, u32 head, u32 which, u32 start, u8* to, u32 wide, float* scales) {
    using T = Tile<D, FP8>;
    constexpr u32 PIECES = D * T::BYTES / 16, THREADS = T::WARPS * WARP, ROW = D * T::BYTES;
    u32 head_row = (which * a.kv_heads + head) * a.block_tokens, thread = threadIdx.x;
    asm volatile("" : "+r"(thread));  // places are worked out each time: registers are scarce
#pragma unroll 1
    for (u32 first = 0; first < T::COLUMNS; first += 16) {
        // Sixteen positions lie in one block.
        u32 place, block = a.block_of(about, min(start + first, about.w - 1), place);
        const u8* rows = a.pool + u64(block) * a.block_bytes;
#pragma unroll
        for (u32 i = 0; i < 16 * PIECES; i += THREADS) {
            u32 at = i + thread, row = at / PIECES, piece = at % PIECES;
            if (16 * PIECES % THREADS != 0 && at >= 16 * PIECES) break;
            copy_16(to + (first + row) * wide + piece * 16, rows + (head_row + place) * ROW + at * 16, start + first + row < about.w);
        }
        if (FP8 && thread < 16) {
            const u8* from = rows + 2 * a.kv_heads * a.block_tokens * D + (head_row + place + thread) * 4;
            copy<4>(scales + first + thread, from, start + first + thread < about.w);
        }
    }
}

// e4m3 as they came to f16 in rows, scales multiplied in.
template <u32 D>
DEVICE void widen_tile(const u8* raw, const float* scales, u16* to) {
    using T = Tile<D, true>;
    constexpr u32 PIECES = D / 8, EACH = T::COLUMNS * PIECES / (T::WARPS * WARP);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 at = i * T::WARPS * WARP + threadIdx.x, row = at / PIECES, piece = at % PIECES, scale = scale_pair(scales[row]);
        uint2 bytes = *reinterpret_cast<const uint2*>(raw + at * 8);
        *reinterpret_cast<uint4*>(to + row * T::WIDE + piece * 8) =
            make_uint4(scaled_half2(bytes.x, scale), scaled_half2(bytes.x >> 16, scale), scaled_half2(bytes.y, scale),
                       scaled_half2(bytes.y >> 16, scale));
    }
}

// As `load_matrix_x4`, at an address of shared memory.
template <bool TRANSPOSED>
DEVICE void load_matrices(u32 (&to)[4], u32 address) {
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    }
}

template <u32 D, bool FP8>
DEVICE void prefill(const AttendArgs& a) {
    using T = Tile<D, FP8>;
    constexpr u32 M = T::M, COLUMNS = T::COLUMNS, WIDE = T::WIDE;
    extern __shared__ uint4 shared[];
    u16* queries = reinterpret_cast<u16*>(shared);      // [ROWS][WIDE]; the results at the end
    u16* keys = queries + T::ROWS * WIDE;               // [KEY_TILES][COLUMNS][WIDE]
    u16* values = keys + T::KEY_TILES * COLUMNS * WIDE; // [COLUMNS][WIDE]
    u8* raw_keys = reinterpret_cast<u8*>(values + COLUMNS * WIDE);
    u8* raw_values = raw_keys + T::RAW;
    float* scales = reinterpret_cast<float*>(raw_values + T::RAW);  // FP8: [2][keys, values][COLUMNS]
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4, group = a.heads / a.kv_heads;

    uint2 tile = __ldg(a.tiles + blockIdx.y);
    uint4 about = __ldg(a.sequences + tile.x);
    u32 head = blockIdx.x, first_row = tile.y * T::ROWS, rows = about.y * group;
    u32 cached = about.w - about.y;
    u32 first_sees = cached + first_row / group + 1;
    u32 last_sees = cached + (min(first_row + T::ROWS, rows) - 1) / group + 1;
    u32 begin = (first_sees > a.window ? first_sees - a.window : 0) / COLUMNS;
    u32 end = ceil_div(last_sees, COLUMNS);
    wait_for_before();
    let_next_start();

    constexpr u32 PIECES = D / 8;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < T::ROWS * PIECES; i += T::WARPS * WARP) {
        u32 row = first_row + i / PIECES, piece = i % PIECES;
        bool there = row < rows;
        u32 of = there ? row : 0;
        const u16* from = a.q + u64(about.x + of / group) * a.q_stride + (head * group + of % group) * D + piece * 8;
        u16* to = queries + i / PIECES * WIDE + piece * 8;
        if (FP8) {
            uint4 words = there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
            *reinterpret_cast<uint4*>(to) =
                make_uint4(bf16x2_to_half2(words.x), bf16x2_to_half2(words.y), bf16x2_to_half2(words.z), bf16x2_to_half2(words.w));
        } else {
            copy_16(to, from, there);
        }
    }
    auto ask = [&](u32 which, u32 step) {
        if (step < end) {
            u8* to = FP8 ? (which ? raw_values : raw_keys) : reinterpret_cast<u8*>(which ? values : keys + step % 2 * COLUMNS * WIDE);
            copy_tile<D, FP8>(a, about, head, which, step * COLUMNS, to, FP8 ? D : WIDE * 2,
                              scales + (step % 2 * 2 + which) * COLUMNS);
        }
        copies_done_so_far();
    };
    ask(0, begin);
    if (FP8) ask(1, begin);

    // A lane has rows g and g + 8 of each of its warp's fragments.
    float to_log2 = a.scale * LOG2_E;
    float sums[M][D / 8][4] = {}, largest[M][2], total[M][2] = {};
#pragma unroll
    for (u32 m = 0; m < M; m++) largest[m][0] = largest[m][1] = LOWEST;
    u16* my_queries = queries + warp * M * 16 * WIDE;
    u32 query_place = shared_address(my_queries + lane % 16 * WIDE + lane / 16 * 8);
    u32 first_key = shared_address(keys + (lane / 16 * 8 + lane % 8) * WIDE + lane / 8 % 2 * 8);
    u32 value_place = shared_address(values + lane % 16 * WIDE + lane / 16 * 8);

    for (u32 step = begin; step < end; step++) {
        const float* scales_here = scales + step % 2 * 2 * COLUMNS;
        wait_for_copies<FP8 ? 1 : 0>();
        __syncthreads();  // keys are there, and all warps are done with the values before
        if constexpr (FP8) {
            widen_tile<D>(raw_keys, scales_here, keys);
            __syncthreads();
            ask(0, step + 1);
        } else {
            ask(1, step);
            ask(0, step + 1);
        }
        u32 key_place = first_key + (FP8 ? 0 : step % 2 * COLUMNS * WIDE * 2);
        float scores[M][COLUMNS / 8][4] = {};
#pragma unroll
        for (u32 k = 0; k < D; k += 16) {
            u32 left[M][4];
#pragma unroll
            for (u32 m = 0; m < M; m++) load_matrices<false>(left[m], query_place + (m * 16 * WIDE + k) * 2);
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 8; n += 2) {
                u32 right[4];
                load_matrices<false>(right, key_place + (n * 8 * WIDE + k) * 2);
#pragma unroll
                for (u32 m = 0; m < M; m++) {
                    mma<FP8>(scores[m][n], left[m][0], left[m][1], left[m][2], left[m][3], right[0], right[1]);
                    mma<FP8>(scores[m][n + 1], left[m][0], left[m][1], left[m][2], left[m][3], right[2], right[3]);
                }
            }
        }

        u32 start = step * COLUMNS;
        // Only where some row does not see some position.
        if (start + COLUMNS > first_sees || (last_sees > a.window && start < last_sees - a.window)) {
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    u32 row = first_row + (warp * M + m) * 16 + g + i * 8, sees = cached + min(row, rows - 1) / group + 1;
#pragma unroll
                    for (u32 n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
                        for (u32 j = 0; j < 2; j++) {
                            u32 position = start + n * 8 + 2 * t + j;
                            bool seen = position < sees && sees - position <= a.window;
                            if (!seen) scores[m][n][2 * i + j] = NOTHING;
                        }
                    }
                }
            }
        }

#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float most = NOTHING;
#pragma unroll
                for (u32 n = 0; n < COLUMNS / 8; n++) most = fmaxf(most, fmaxf(scores[m][n][2 * i], scores[m][n][2 * i + 1]));
                most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
                most = fmaxf(most * to_log2, largest[m][i]);
                float change = exp_2(largest[m][i] - most);
                largest[m][i] = most;
                float sum = 0.0f;
#pragma unroll
                for (u32 n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
                    for (u32 j = 0; j < 2; j++) {
                        float weight = exp_2(scores[m][n][2 * i + j] * to_log2 - most);
                        scores[m][n][2 * i + j] = weight;
                        sum += weight;
                    }
                }
                total[m][i] = total[m][i] * change + sum;
#pragma unroll
                for (u32 n = 0; n < D / 8; n++) sums[m][n][2 * i] *= change, sums[m][n][2 * i + 1] *= change;
            }
        }
        if constexpr (FP8) {
            wait_for_copies<1>();
            __syncthreads();
            widen_tile<D>(raw_values, scales_here + COLUMNS, values);
            __syncthreads();
            ask(1, step + 1);
        } else {
            wait_for_copies<1>();
            __syncthreads();
        }
#pragma unroll
        for (u32 k = 0; k < COLUMNS / 16; k++) {
            u32 left[M][4];
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float (&s)[4] = scores[m][2 * k + j];
                    left[m][2 * j] = to_pair<FP8>(s[0], s[1]);
                    left[m][2 * j + 1] = to_pair<FP8>(s[2], s[3]);
                }
            }
#pragma unroll
            for (u32 n = 0; n < D / 8; n += 2) {
                u32 right[4];
                load_matrices<true>(right, value_place + (k * 16 * WIDE + n * 8) * 2);
#pragma unroll
                for (u32 m = 0; m < M; m++) {
                    mma<FP8>(sums[m][n], left[m][0], left[m][1], left[m][2], left[m][3], right[0], right[1]);
                    mma<FP8>(sums[m][n + 1], left[m][0], left[m][1], left[m][2], left[m][3], right[2], right[3]);
                }
            }
        }
    }

    // A warp's results go where its queries were, and from there in 16 bytes to memory.
#pragma unroll
    for (u32 m = 0; m < M; m++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float all = total[m][i];
            all += __shfl_xor_sync(ALL, all, 1);
            all += __shfl_xor_sync(ALL, all, 2);
            float up = 1.0f / all;
            u32* row = reinterpret_cast<u32*>(my_queries + (m * 16 + g + i * 8) * WIDE);
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) row[n * 4 + t] = to_bf16x2(sums[m][n][2 * i] * up, sums[m][n][2 * i + 1] * up);
        }
    }
    __syncwarp();
    for (u32 i = lane; i < M * 16 * PIECES; i += WARP) {
        u32 row = first_row + warp * M * 16 + i / PIECES, piece = i % PIECES;
        if (row >= rows) continue;
        u16* to = a.out + (u64(about.x + row / group) * a.heads + head * group + row % group) * D + piece * 8;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(my_queries + i / PIECES * WIDE + piece * 8);
    }
}

#define PREFILL(D, FORMAT, FP8)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2) prefill_##D##_##FORMAT(const __grid_constant__ AttendArgs a) {              \
        prefill<D, FP8>(a);                                                                                                         \
    }
PREFILL(64, bf16, false) PREFILL(64, fp8, true) PREFILL(96, bf16, false) PREFILL(96, fp8, true)
PREFILL(256, bf16, false) PREFILL(256, fp8, true)

#if ARCH != 900
PREFILL(128, bf16, false) PREFILL(128, fp8, true)
#endif
#include "attention_hopper.cuh"
