// Many tokens: a weight matrix times tokens at the tensor cores' own speed, on Hopper.
//
// The weights come in tiles that are already what a lane feeds to the tensor cores, so they go through its registers, turned into
// bf16 on the way; the tokens are laid out first (`lay_out_tokens`) as the tensor cores read them from shared memory.
#include "products.cuh"

struct LayOutArgs {
    const u16* right;   // [.][right_stride] bf16
    const u32* pick;    // [tokens]: which rows, or null: the first ones
    u8* image;          // [columns / 64][padded][128]
    u32 tokens;
    u32 padded;         // a multiple of a block's tokens; rows from `tokens` on are zeros
    u32 right_stride;
    u32 columns;
};

// Rows of 64 columns as `image_word` says. One thread for each 16 bytes.
KERNEL lay_out_tokens(const __grid_constant__ LayOutArgs a) {
    wait_for_before();
    let_next_start();
    u32 at = blockIdx.x * blockDim.x + threadIdx.x, place = at % 8, token = at / 8 % a.padded, tile = at / 8 / a.padded;
    if (tile >= a.columns / 64) return;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (token < a.tokens) {
        u32 row = a.pick ? a.pick[token] : token;
        const u32* from = reinterpret_cast<const u32*>(a.right + u64(row) * a.right_stride + tile * 64) + place;
        words = make_uint4(from[0], from[8], from[16], from[24]);
    }
    u8* row = a.image + (u64(tile) * a.padded + token) * 128;
    *reinterpret_cast<uint4*>(row + (place ^ token % 8) * 16) = words;
}

struct WideArgs {
    Matrix matrix;
    const u8* image;     // as `lay_out_tokens` writes it
    const float* bias;   // [rows] or null
    void* out;           // [tokens][out_stride]
    u32 tokens;
    u32 padded;
    u32 out_stride;
    u32 epilogue;
    u32 activation;
    u32 slots;           // of shared memory, with the tokens of a chunk each
    u32 beside;          // blocks of strips before the tokens' next block comes
};

// ---- Barriers and copies of kilobytes ---------------------------------------------------------------------------------------

// A barrier in shared memory that counts arrivals and bytes.
DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}

DEVICE void barrier_wait(u64* barrier, u32 parity) {
#if ARCH >= 900
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
}

// Asks for bytes, a multiple of 16, that the barrier expects.
DEVICE void copy_bytes(void* shared, const void* global, u32 bytes, u64* barrier) {
#if ARCH >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives, and makes the barrier's phase end when so many bytes are there too.
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
#if ARCH >= 900
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }"
                 ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#endif
}

// After barriers are made: others, and what copies, see them.
DEVICE void barriers_made() {
#if ARCH >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- Products --------------------------------------------------------------------------------------------------------------


// d (64 x TOKENS) += a (64 x 16, from registers) x b (16 x TOKENS, in shared memory); without `adds`, d becomes the product.
template <u32 TOKENS>
DEVICE void wide_mma(float (&d)[TOKENS / 2], const u32 (&a)[4], u64 b, bool adds) {
#if ARCH == 900
    if constexpr (TOKENS == 128) {
        asm volatile(
            "{ .reg .pred adds; setp.ne.u32 adds, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, adds, 1, 1, 0; }"
            :
            "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
            "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
            "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
            "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
            "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
            "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
            "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
            "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(adds)));
    } else {
        asm volatile(
            "{ .reg .pred adds; setp.ne.u32 adds, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, adds, 1, 1, 0; }"
            :
            "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
            "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
            "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
            "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(adds)));
    }
#endif
}
DEVICE void wide_mma_begin() {
#if ARCH == 900
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void wide_mma_done_so_far() {
#if ARCH == 900
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int LATER>
DEVICE void wait_for_wide_mma() {
#if ARCH == 900
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
#endif
}

// Where 64 columns of tokens lie in shared memory: rows of 128 bytes, swizzled, eight of them 1024 bytes; a multiple of 1024.
DEVICE u64 tokens_at(const void* shared) {
    return u64(shared_address(shared) >> 4 & 0x3fff) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// A scale as the sum of two bf16, each in both halves of a word.
struct Scale {
    u32 high, low;
    DEVICE Scale(float scale) {
        high = to_bf16x2(scale, scale);
        float rest = scale - low_bf16(high);
        low = to_bf16x2(rest, rest);
    }
    // The scaled pair, rounded once.
    DEVICE u32 times(u32 pair) const { return fma_bf16x2(pair, high, mul_bf16x2(pair, low)); }
};

// What the sums of the lane's rows lane / 4 and lane / 4 + 8 over a chunk are multiplied with.
template <u32 FORMAT, u32 GROUP>
DEVICE float2 scales(const u8* chunk) {
    if constexpr (FORMAT == INT4) {
        const u32* about = reinterpret_cast<const u32*>(chunk + GROUP * 8) + lane_id() / 4;
        return make_float2(from_half(u16(about[0])), from_half(u16(about[8])));
    } else {
        const float* about = reinterpret_cast<const float*>(chunk + 1024) + lane_id() / 4;
        return make_float2(about[0], about[8]);
    }
}

// 64 columns of a chunk as the left side of four steps; SCALED: scaled, and rounded to bf16.
template <u32 FORMAT, u32 GROUP, bool SCALED>
DEVICE void take(const u8* chunk, u32 u, u32 (&a)[4][4]) {
    const uint4* words = reinterpret_cast<const uint4*>(chunk) + lane_id();
    if constexpr (FORMAT == BF16) {
        Tiles<BF16> tiles;
        tiles.load_shared(chunk);
#pragma unroll
        for (u32 j = 0; j < 4; j++) tiles.step(j, a[j]);
        return;
    } else if constexpr (FORMAT == INT4) {
        uint4 w = words[u * 32];
        const u32* about = reinterpret_cast<const u32*>(chunk + GROUP * 8) + lane_id() / 4;
        u32 zero[2] = {__byte_perm(about[0], 0, 0x3232), __byte_perm(about[8], 0, 0x3232)};
        u32 word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            a[j][0] = sub_bf16x2(nibbles<0>(word[j]), zero[0]), a[j][1] = sub_bf16x2(nibbles<1>(word[j]), zero[1]);
            a[j][2] = sub_bf16x2(nibbles<2>(word[j]), zero[0]), a[j][3] = sub_bf16x2(nibbles<3>(word[j]), zero[1]);
        }
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j += 2) {
            uint4 w = words[j * 16];
            a[j][0] = e4m3_pair<0>(w.x), a[j][1] = e4m3_pair<1>(w.x), a[j][2] = e4m3_pair<0>(w.y), a[j][3] = e4m3_pair<1>(w.y);
            a[j + 1][0] = e4m3_pair<0>(w.z), a[j + 1][1] = e4m3_pair<1>(w.z);
            a[j + 1][2] = e4m3_pair<0>(w.w), a[j + 1][3] = e4m3_pair<1>(w.w);
        }
    }
    if constexpr (SCALED) {
        float2 both = scales<FORMAT, GROUP>(chunk);
        Scale scale[2] = {both.x, both.y};
#pragma unroll
        for (u32 i = 0; i < 16; i++) a[i / 4][i % 4] = scale[i % 2].times(a[i / 4][i % 4]);
    }
}

DEVICE void store_matrix_x4_transposed(void* shared_row, u32 a, u32 b, u32 c, u32 d) {
#if ARCH >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 ::"r"(shared_address(shared_row)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#endif
}

// Eight bf16 that follow each other in a row; `there` of them belong to it.
DEVICE void put_eight(u16* to, uint4 values, u32 there) {
    if (there >= 8 && (reinterpret_cast<u64>(to) & 15) == 0) {
        *reinterpret_cast<uint4*>(to) = values;
        return;
    }
    u32 words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (i < there) to[i] = u16(words[i / 2] >> i % 2 * 16);
    }
}

// All blocks of the cluster, and what they wrote to shared memory.
DEVICE void cluster_sync() {
#if ARCH >= 900
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// A value in the shared memory of a block of the cluster, where this block has `own`.
DEVICE float of_block(const float* own, u32 block) {
    float value = 0.0f;
#if ARCH >= 900
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %1, %2; ld.shared::cluster.f32 %0, [at]; }"
                 : "=f"(value) : "r"(shared_address(own)), "r"(block) : "memory");
#endif
    return value;
}

// Added to what stands there, in order with everything else that is; nobody waits.
DEVICE void add_four(float* to, float4 values) {
#if ARCH >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};"
                 ::"l"(to), "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w) : "memory");
#endif
}

// Twice eight tokens of the sixteen rows that begin at `row0`, of `rows` that are true ones, to where they belong. `own`: OWN bytes
// of shared memory for the warp.
static constexpr u32 OWN = 1280;
DEVICE void finish(const WideArgs& a, u8* own, u32 row0, u32 rows, u32 token0, float (&sums)[2][4]) {
    u32 lane = lane_id(), g = lane / 4, t = lane % 4;
    if (a.bias && a.epilogue != GATED) {
        u32 row = row0 + g;
        float low = row < rows ? a.bias[row] : 0.0f, high = row + 8 < rows ? a.bias[row + 8] : 0.0f;
#pragma unroll
        for (u32 n = 0; n < 2; n++) sums[n][0] += low, sums[n][1] += low, sums[n][2] += high, sums[n][3] += high;
    }
    bool add = a.epilogue == ADD;
    if (add && row0 + 16 <= rows && a.out_stride % 4 == 0 && (reinterpret_cast<u64>(a.out) & 15) == 0) {
        // Four rows of a token together by way of shared memory.
        float* tokens = reinterpret_cast<float*>(own);
#pragma unroll
        for (u32 i = 0; i < 8; i++) tokens[(i / 4 * 8 + 2 * t + i % 2) * 20 + i / 2 % 2 * 8 + g] = sums[i / 4][i % 4];
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = i * 8 + lane / 4, four = lane % 4 * 4;
            float4 values = *reinterpret_cast<const float4*>(tokens + at * 20 + four);
            float* to = static_cast<float*>(a.out) + u64(token0 + at) * a.out_stride + row0 + four;
            if (token0 + at < a.tokens) add_four(to, values);
        }
        __syncwarp();
        return;
    }
    if (a.epilogue == TO_F32 || add) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 token = token0 + i / 4 * 8 + 2 * t + i % 2, row = row0 + i / 2 % 2 * 8 + g;
            if (token < a.tokens && row < rows) {
                float* to = static_cast<float*>(a.out) + u64(token) * a.out_stride + row;
                *to = sums[i / 4][i % 4] + (add ? *to : 0.0f);
            }
        }
        return;
    }
    // Rows of a token together by way of shared memory.
    store_matrix_x4_transposed(own + (lane / 16 * 8 + lane % 8) * 48 + lane / 8 % 2 * 16, to_bf16x2(sums[0][0], sums[0][1]),
                               to_bf16x2(sums[0][2], sums[0][3]), to_bf16x2(sums[1][0], sums[1][1]),
                               to_bf16x2(sums[1][2], sums[1][3]));
    __syncwarp();
    u32 token = token0 + lane / 2, row = row0 + lane % 2 * 8;
    uint4 values = *reinterpret_cast<const uint4*>(own + lane / 2 * 48 + lane % 2 * 16);
    if (token < a.tokens && row < rows) {
        put_eight(static_cast<u16*>(a.out) + u64(token) * a.out_stride + row, values, rows - row);
    }
    __syncwarp();
}

// A block takes a strip for each of its warps and TOKENS tokens, and of the columns its share of a cluster of SPLIT blocks. Four warps
// multiply together (64 rows); while some multiply, others turn their weights into bf16.
template <u32 FORMAT, u32 GROUP, u32 TOKENS, u32 WARPS, u32 SPLIT>
DEVICE void wide(const WideArgs& a) {
#if ARCH == 900
    constexpr u32 CHUNK = FORMAT == BF16 ? 2048 : FORMAT == FP8 ? 1088 : GROUP * 8 + 64;
    constexpr u32 TILES = GROUP / 64;
    constexpr u32 RIGHT = TOKENS * 128;                      // bytes of 64 columns of the tokens
    constexpr u32 AHEAD = 4;                                 // chunks of its strip that a warp asks for ahead
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ u64 full[8], empty[8];
    u8* shared = memory + (0 - shared_address(memory) & 1023);
    u32 warp = warp_id(), lane = lane_id(), rank = blockIdx.z;
    // Blocks that run together take `beside` blocks of strips and as many tokens as they can: both stay in the second cache.
    u32 id = blockIdx.y * gridDim.x + blockIdx.x, left = id / (a.beside * gridDim.y) * a.beside;
    u32 beside = min(a.beside, gridDim.x - left), place = id - left * gridDim.y;
    u32 strips = (a.matrix.rows + 15) / 16, first = (left + place % beside) * WARPS, token0 = place / beside * TOKENS;
    u32 all = a.matrix.columns / GROUP, begin = rank * all / SPLIT, chunks = (rank + 1) * all / SPLIT - begin;
    u8* lefts = shared + a.slots * TILES * RIGHT + warp * AHEAD * CHUNK;
    const u8* strip = a.matrix.tiles + min(first + warp, strips - 1) * a.matrix.strip_bytes + u64(begin) * CHUNK;

    // Each warp asks for its strip's chunk c, by many small copies: a large one takes a single thread long to ask for.
    auto ask_left = [&](u32 c) {
        if (c < chunks) {
            for (u32 i = lane; i < CHUNK / 16; i += WARP) {
                copy_16(lefts + c % AHEAD * CHUNK + i * 16, strip + u64(c) * CHUNK + i * 16);
            }
        }
        copies_done_so_far();
    };
    // The first thread asks for the tokens'.
    auto ask_right = [&](u32 c) {
        u32 slot = c % a.slots;
        barrier_expect(full + slot, TILES * RIGHT);
#pragma unroll
        for (u32 u = 0; u < TILES; u++) {
            const u8* from = a.image + (u64((begin + c) * TILES + u) * a.padded + token0) * 128;
            copy_bytes(shared + (slot * TILES + u) * RIGHT, from, RIGHT, full + slot);
        }
    };
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < a.slots; i++) barrier_init(full + i, 1), barrier_init(empty + i, WARPS);
        barriers_made();
    }
    __syncthreads();
    // Weights do not depend on what runs ahead.
#pragma unroll
    for (u32 c = 0; c < AHEAD; c++) ask_left(c);
    let_next_start();
    wait_for_before();
    if (threadIdx.x == 0) {
        for (u32 c = 0; c < min(a.slots, chunks); c++) ask_right(c);
    }

    constexpr u32 EIGHTS = TOKENS / 8;
    float sums[EIGHTS * 4];
#pragma unroll
    for (u32 n = 0; n < EIGHTS * 4; n++) sums[n] = 0.0f;
    // With few tokens there is room for a chunk's sums beside all sums, and they are scaled in f32; else the weights are.
    constexpr bool SCALED = TOKENS == 128 && FORMAT != BF16, APART = TOKENS < 128 && FORMAT != BF16;
    float parts_of_chunk[APART ? EIGHTS * 4 : 4];
    // While 64 columns are multiplied, the next ones are turned into bf16; two sets of registers take turns.
    auto take_from = [&](u32 c, u32 u, u32 (&to)[4][4]) {
        if (u == 0) {
            // Two that come later may still be on their way.
            wait_for_copies<AHEAD - 2>();
            __syncwarp();
        }
        take<FORMAT, GROUP, SCALED>(lefts + c % AHEAD * CHUNK, u, to);
    };
    auto multiply = [&](u32 c, u32 u, const u32 (&now)[4][4], u32 (&next)[4][4]) {
        u32 slot = c % a.slots;
        u64 right = tokens_at(shared + (slot * TILES + u) * RIGHT);
        if (u == 0) barrier_wait(full + slot, c / a.slots & 1);
        wide_mma_begin();
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if constexpr (APART) {
                wide_mma<TOKENS>(parts_of_chunk, now[j], right + j * 2, u + j > 0);
            } else {
                wide_mma<TOKENS>(sums, now[j], right + j * 2, true);
            }
        }
        wide_mma_done_so_far();
        bool last = u + 1 == TILES;
        if (!last || c + 1 < chunks) take_from(last ? c + 1 : c, last ? 0 : u + 1, next);
        wait_for_wide_mma<0>();
        if (!last) return;
        if constexpr (APART) {
            float2 scale = scales<FORMAT, GROUP>(lefts + c % AHEAD * CHUNK);
#pragma unroll
            for (u32 n = 0; n < EIGHTS * 4; n++) sums[n] += parts_of_chunk[n] * (n % 4 < 2 ? scale.x : scale.y);
        }
        __syncwarp();
        ask_left(c + AHEAD);
        if (lane == 0) barrier_arrive(empty + slot);
        if (threadIdx.x == 0 && c >= 1 && c - 1 + a.slots < chunks) {
            barrier_wait(empty + (c - 1) % a.slots, (c - 1) / a.slots & 1);
            ask_right(c - 1 + a.slots);
        }
        __syncwarp();
    };
    u32 even[4][4], odd[4][4];
    if (chunks > 0) take_from(0, 0, even);
    for (u32 c = 0; c < chunks; c += 2 / TILES) {
        multiply(c, 0, even, odd);
        if (TILES == 2) {
            multiply(c, 1, odd, even);
        } else if (c + 1 < chunks) {
            multiply(c + 1, 0, odd, even);
        }
    }
    __syncthreads();

    u32 row0 = (first + warp) * 16, rows = a.matrix.rows;
    u8* own = shared + warp * OWN;
    float* parts = reinterpret_cast<float*>(shared + WARPS * OWN);
    if constexpr (SPLIT > 1) {
        // Each block adds up a share of the tokens, always in the order of the blocks.
        parts += threadIdx.x;
#pragma unroll
        for (u32 n = 0; n < EIGHTS * 4; n++) parts[n * WARPS * WARP] = sums[n];
        cluster_sync();
        constexpr u32 SHARE = EIGHTS / SPLIT > 2 ? EIGHTS / SPLIT : 2;
        for (u32 n = rank * SHARE; n < min(rank * SHARE + SHARE, EIGHTS); n += 2) {
            float both[2][4];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                float sum = 0.0f;
#pragma unroll
                for (u32 block = 0; block < SPLIT; block++) sum += of_block(parts + (4 * n + i) * WARPS * WARP, block);
                both[i / 4][i % 4] = sum;
            }
            finish(a, own, row0, rows, token0 + n * 8, both);
        }
        cluster_sync();
        return;
    }
    if (a.epilogue == GATED) {
        // The gate's warp takes the other one's sums.
        parts += warp / 2 * EIGHTS * 4 * WARP + lane;
        if (warp % 2 == 1) {
#pragma unroll
            for (u32 n = 0; n < EIGHTS * 4; n++) parts[n * WARP] = sums[n];
        }
        __syncthreads();
        if (warp % 2 == 1) return;
#pragma unroll
        for (u32 n = 0; n < EIGHTS * 4; n++) sums[n] = activate(a.activation, sums[n]) * parts[n * WARP];
        row0 /= 2, rows /= 2;
    }
#pragma unroll
    for (u32 n = 0; n < EIGHTS; n += 2) {
        float both[2][4];
#pragma unroll
        for (u32 i = 0; i < 8; i++) both[i / 4][i % 4] = sums[4 * n + i];
        finish(a, own, row0, rows, token0 + n * 8, both);
    }
#endif
}

#if ARCH >= 900
#define CLUSTER(blocks) __cluster_dims__(1, 1, blocks)
#else
#define CLUSTER(blocks)
#endif
#define WIDE(name, format, group, tokens, warps, split)                                                                          \
    KERNEL CLUSTER(split) __launch_bounds__(32 * warps, tokens < 128 ? 2 : 1) name##_##tokens##_##warps##x##split(              \
        const __grid_constant__ WideArgs a) {                                                                                    \
        wide<format, group, tokens, warps, split>(a);                                                                            \
    }
#define WIDES(name, format, group)          \
    WIDE(name, format, group, 128, 16, 1)   \
    WIDE(name, format, group, 128, 8, 1)    \
    WIDE(name, format, group, 128, 8, 2)    \
    WIDE(name, format, group, 128, 8, 4)    \
    WIDE(name, format, group, 64, 8, 4)

WIDES(wide_bf16_64, BF16, 64)
WIDES(wide_int4_64, INT4, 64)
WIDES(wide_int4_128, INT4, 128)
WIDES(wide_fp8_64, FP8, 64)
