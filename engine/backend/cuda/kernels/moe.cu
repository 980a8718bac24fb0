// Mixtures of experts: a router picks some of many gated networks for each token.
//
// A pair is a token and one of its slots: number token * k + slot. Which expert a pair has is in `chosen`; which pairs an expert
// has, in its list, in any order: a pair's results are a column of the tensor cores, which is the same in whatever place.
#include "tiles.cuh"

static constexpr u32 THREADS = 256;
static constexpr u32 WARPS = THREADS / WARP;
// Tokens that the tensor cores take at a time.
static constexpr u32 COLUMNS = 8;
// The most experts that a token may have.
static constexpr u32 MOST_CHOSEN = 16;

DEVICE u32 redux_max(u32 value) {
    u32 most;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(value));
    return most;
}

DEVICE u32 redux_min(u32 value) {
    u32 least;
    asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(value));
    return least;
}

// ---- A strip's sums for eight tokens, from lanes to memory and back ------------------------------------------------------------

// Twenty words to a token: no two lanes of a warp meet in a bank.
static constexpr u32 PITCH = 20;

DEVICE void put_sums(float (&to)[COLUMNS * PITCH], const float (&sums)[4]) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    to[2 * t * PITCH + g] = sums[0], to[(2 * t + 1) * PITCH + g] = sums[1];
    to[2 * t * PITCH + g + 8] = sums[2], to[(2 * t + 1) * PITCH + g + 8] = sums[3];
}

// ---- The router ----------------------------------------------------------------------------------------------------------------

struct RouteArgs {
    const float* x;         // [T][hidden]: the stream; null if `normed` is the input
    const float* norm;      // [hidden]: weights of the norm
    u16* normed;            // [T][hidden] bf16: where x is given, what is written
    Matrix router;          // [experts][hidden] bf16
    float* logits;          // [splits][T][experts]: memory for what is not yet summed
    u32* arrived;           // [blocks of tokens]: zeros, before and after
    u32* chosen;            // [T][k]: the best experts, from the best one down
    float* weights;         // [T][k]
    u32* counts;            // [experts] or null: how many pairs each has; zeros before
    u32* lists;             // [experts][T]: its pairs
    float eps;
    u32 tokens;
    u32 chosen_per_token;   // k
    u32 renormalized;       // the weights of a token add up to one
};

// Whether the calling block is the last one of `blocks` that comes here. What all of them wrote before is then there to read,
// past the first cache. The counter is zero again.
DEVICE bool is_last(u32* arrived, u32 blocks) {
    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1) + 1 == blocks;
        if (last) *arrived = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// Numbers in the order of floats; 0 is below all of them, and ALL above.
DEVICE u32 key_of(float value) {
    u32 bits = __float_as_uint(value);
    u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return min(max(key, 1u), ALL - 1);
}

DEVICE float of_key(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The experts of a token, by one warp. A lane looks at every 32nd expert: in registers where they are at most 32 * PER, else
// (PER 0) it asks for them again in every round. `logit(expert)` is what the router says.
template <u32 PER, class Logit>
DEVICE void choose(const RouteArgs& a, u32 token, Logit logit) {
    u32 experts = a.router.rows, k = a.chosen_per_token, lane = lane_id();
    // Keys with their experts behind them, the first one above the later ones.
    u64 items[PER + 1];
    auto item_of = [&](u32 expert) { return u64(key_of(logit(expert))) << 32 | (ALL - expert); };
#pragma unroll
    for (u32 j = 0; j < PER; j++) {
        u32 expert = lane + j * WARP;
        items[j] = expert < experts ? item_of(expert) : 0;
    }
    u32 my_key = 0, my_expert = 0;
    // Round by round the best one of those below the one before.
    u64 top = ~0ull;
    for (u32 slot = 0; slot < k; slot++) {
        u64 best = 0;
        if (PER) {
#pragma unroll
            for (u32 j = 0; j < PER; j++) best = items[j] < top && items[j] > best ? items[j] : best;
        } else {
            for (u32 expert = lane; expert < experts; expert += WARP) {
                u64 item = item_of(expert);
                if (item < top && item > best) best = item;
            }
        }
        u32 key = redux_max(u32(best >> 32));
        u32 last = redux_max(u32(best >> 32) == key ? u32(best) : 0);
        top = u64(key) << 32 | last;
        if (lane == slot) my_key = key, my_expert = ALL - last;
    }

    float most = of_key(__shfl_sync(ALL, my_key, 0));
    float share = lane < k ? __expf(of_key(my_key) - most) : 0.0f, whole = share;
    if (!a.renormalized) {
        whole = 0.0f;
#pragma unroll
        for (u32 j = 0; j < PER; j++) whole += items[j] ? __expf(of_key(u32(items[j] >> 32)) - most) : 0.0f;
        if (PER == 0) {
            for (u32 expert = lane; expert < experts; expert += WARP) whole += __expf(logit(expert) - most);
        }
    }
    whole = warp_sum(whole);
    if (lane >= k) return;
    u32 pair = token * k + lane;
    a.chosen[pair] = my_expert;
    a.weights[pair] = share / whole;
    if (a.counts) a.lists[u64(my_expert) * a.tokens + atomicAdd(a.counts + my_expert, 1)] = pair;
}

template <class Logit>
DEVICE void choose_any(const RouteArgs& a, u32 token, Logit logit) {
    if (a.router.rows <= 4 * WARP) {
        choose<4>(a, token, logit);
    } else if (a.router.rows <= 16 * WARP) {
        choose<16>(a, token, logit);
    } else {
        choose<0>(a, token, logit);
    }
}

// From what several blocks have left in memory.
DEVICE void choose_summed(const RouteArgs& a, u32 token, u32 splits) {
    const float* logits = a.logits + u64(token) * a.router.rows;
    u64 next_split = u64(a.tokens) * a.router.rows;
    choose_any(a, token, [=](u32 expert) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 split = 0; split < splits; split++) sum += __ldcg(logits + split * next_split + expert);
        return sum;
    });
}

#if ARCH >= 900
// ---- Eight blocks that see each other's shared memory

static constexpr u32 CLUSTER = 8;

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes where `to` lies in block `block` of the cluster.
DEVICE void put_remote(float* to, u32 block, float value) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.f32 [there], %2; }" ::"r"(
            shared_address(to)),
        "r"(block), "f"(value)
        : "memory");
}

// Units of 64 columns that a warp has on their way before it waits.
static constexpr u32 ROUTE_AHEAD = 4;

// Eight blocks for eight tokens: each multiplies every eighth strip, and chooses for one token.
// Grid: 8, tokens / 8. Shared: weights of the norm, eight rows of bf16, logits of one token.
KERNEL __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS) route_cluster(const __grid_constant__ RouteArgs a) {
    extern __shared__ uint4 dynamic[];
    __shared__ float part[WARPS][COLUMNS * PITCH];
    __shared__ float squares[WARPS];
    u32 warp = warp_id(), lane = lane_id(), g = lane / 4, rank = blockIdx.x, experts = a.router.rows;
    u32 hidden = a.router.columns, units = hidden / 64, strips = (experts + 15) / 16, pitch = hidden + 8;
    float* norm = reinterpret_cast<float*>(dynamic);
    u16* rows = reinterpret_cast<u16*>(norm + hidden);
    float* logits = reinterpret_cast<float*>(rows + COLUMNS * pitch);

    cluster_arrive();
    const u8* strip = a.router.tiles + rank * a.router.strip_bytes;
    Tiles<BF16> ahead[ROUTE_AHEAD];
#pragma unroll
    for (u32 i = 0; i < ROUTE_AHEAD; i++) {
        if (warp + i * WARPS < units && rank < strips) ahead[i].load(strip, (warp + i * WARPS) * 64, 64);
    }
    if (a.x) {
        for (u32 i = threadIdx.x * 4; i < hidden; i += THREADS * 4) copy_16(norm + i, a.norm + i);
    }
    copies_done_so_far();

    wait_for_before();
    let_next_start();
    u32 first = blockIdx.y * COLUMNS, count = min(COLUMNS, a.tokens - first);
    // A single token is normed by all blocks; of several each block norms one, and reads what the others made of theirs.
    bool alone = count == 1;
    u32 token = alone ? 0 : rank;
    if (a.x) {
        const float* x = a.x + u64(first + token) * hidden;
        u16* to = a.normed + u64(first + token) * hidden;
        static constexpr u32 STEP = THREADS * 4;
        float sum = 0.0f;
        if (token < count) {
            for (u32 i = threadIdx.x * 4; i < hidden; i += 4 * STEP) {
                float4 v[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    bool there = i + j * STEP < hidden;
                    v[j] = there ? *reinterpret_cast<const float4*>(x + i + j * STEP) : make_float4(0, 0, 0, 0);
                }
#pragma unroll
                for (u32 j = 0; j < 4; j++) sum += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[warp] = sum;
        wait_for_copies<0>();
        __syncthreads();
        if (token < count) {
            float all = 0.0f;
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) all += squares[i];
            float scale = rsqrtf(all / hidden + a.eps);
#pragma unroll 2
            for (u32 i = threadIdx.x * 4; i < hidden; i += STEP) {
                float4 v = *reinterpret_cast<const float4*>(x + i), w = *reinterpret_cast<const float4*>(norm + i);
                uint2 words = make_uint2(to_bf16x2(v.x * scale * w.x, v.y * scale * w.y),
                                         to_bf16x2(v.z * scale * w.z, v.w * scale * w.w));
                if (alone) *reinterpret_cast<uint2*>(rows + i) = words;
                if (!alone || i / (WARP * 4) % CLUSTER == rank) *reinterpret_cast<uint2*>(to + i) = words;
            }
        }
        if (!alone) {
            cluster_wait();
            cluster_arrive();
        }
    }
    cluster_wait();  // all eight are there, and have normed what they norm
    if (!a.x || !alone) {
        if (warp < count) {
            for (u32 i = lane * 8; i < hidden; i += WARP * 8) {
                copy_16(rows + warp * pitch + i, a.normed + u64(first + warp) * hidden + i);
            }
        }
        copies_done_so_far();
        wait_for_copies<0>();
    }
    __syncthreads();

    // Columns of tokens that are not there count nothing, whatever is in them.
    const u16* row = rows + (g < count ? g : 0) * pitch;
    for (u32 s = rank; s < strips; s += CLUSTER) {
        float sums[4] = {};
        auto multiply = [&](const Tiles<BF16>& left, u32 unit) {
            Right right;
            right.load(row, unit * 64);
            multiply_64<BF16>(sums, left, right);
        };
        u32 done = 0;
        if (s == rank) {
#pragma unroll
            for (u32 i = 0; i < ROUTE_AHEAD; i++) {
                if (warp + i * WARPS < units) multiply(ahead[i], warp + i * WARPS);
            }
            done = ROUTE_AHEAD * WARPS;
        }
        for (u32 unit = warp + done; unit < units; unit += WARPS) {
            Tiles<BF16> left;
            left.load(a.router.tiles + s * a.router.strip_bytes, unit * 64, 64);
            multiply(left, unit);
        }
        put_sums(part[warp], sums);
        __syncthreads();
        u32 n = threadIdx.x / 16, expert = s * 16 + threadIdx.x % 16;
        if (n < count && expert < experts) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) sum += part[i][n * PITCH + threadIdx.x % 16];
            put_remote(logits + expert, n, sum);
        }
        __syncthreads();
    }
    cluster_arrive();
    cluster_wait();
    if (warp == 0 && rank < count) choose_any(a, first + rank, [=](u32 expert) { return logits[expert]; });
}
#endif

// A block for a strip of the router, a part of the columns and eight tokens; the last one of these tokens chooses.
// Grid: strips, parts, tokens / 8.
KERNEL __launch_bounds__(THREADS) route_few(const __grid_constant__ RouteArgs a) {
    __shared__ float part[WARPS][COLUMNS * PITCH];
    __shared__ float squares[WARPS];
    let_next_start();
    u32 warp = warp_id(), g = lane_id() / 4, t = lane_id() % 4;
    u32 hidden = a.router.columns, units = hidden / 64, splits = gridDim.y;
    const u8* strip = a.router.tiles + blockIdx.x * a.router.strip_bytes;
    // Units of 64 columns go round the warps of all parts.
    u32 unit = warp * splits + blockIdx.y, step = WARPS * splits;

    Tiles<BF16> ahead;
    float4 norm_ahead[4] = {};
    auto load_norm = [&](float4 (&norm)[4], u32 unit) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) norm[i] = __ldg(reinterpret_cast<const float4*>(a.norm + unit * 64 + t * 16) + i);
    };
    if (unit < units) {
        ahead.load(strip, unit * 64, 64);
        if (a.x) load_norm(norm_ahead, unit);
    }

    wait_for_before();
    u32 first = blockIdx.z * COLUMNS, count = min(COLUMNS, a.tokens - first);
    float scale = 0.0f;
    if (a.x) {
        // Few tokens are read by several warps each.
        u32 per = count > 4 ? 1 : count > 2 ? 2 : count > 1 ? 4 : 8;
        u32 token = warp / per;
        float sum = 0.0f;
        if (token < count) {
            const float4* row = reinterpret_cast<const float4*>(a.x + u64(first + token) * hidden);
#pragma unroll 8
            for (u32 i = warp % per * WARP + lane_id(); i < hidden / 4; i += per * WARP) {
                float4 v = row[i];
                sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            }
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) squares[warp] = sum;
        __syncthreads();
        if (g < count) {
            float all = 0.0f;
            for (u32 i = 0; i < per; i++) all += squares[g * per + i];
            scale = rsqrtf(all / hidden + a.eps);
        }
    }

    float sums[4] = {};
    auto multiply = [&](const Tiles<BF16>& left, const float4 (&norm)[4], u32 unit) {
        Right right;
        right.clear();
        u64 at = u64(first + g) * hidden + unit * 64;
        if (g < count && a.x) {
            const float4* x = reinterpret_cast<const float4*>(a.x + at + t * 16);
            u32 words[8];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float4 v = x[i];
                words[2 * i] = to_bf16x2(v.x * scale * norm[i].x, v.y * scale * norm[i].y);
                words[2 * i + 1] = to_bf16x2(v.z * scale * norm[i].z, v.w * scale * norm[i].w);
            }
            right.words[0] = make_uint4(words[0], words[1], words[2], words[3]);
            right.words[1] = make_uint4(words[4], words[5], words[6], words[7]);
            if (a.normed && unit % gridDim.x == blockIdx.x) {
                uint4* to = reinterpret_cast<uint4*>(a.normed + at + t * 16);
                to[0] = right.words[0], to[1] = right.words[1];
            }
        } else if (g < count) {
            right.load(a.normed + u64(first + g) * hidden, unit * 64);
        }
        multiply_64<BF16>(sums, left, right);
    };
    if (unit < units) multiply(ahead, norm_ahead, unit);
    for (unit += step; unit < units; unit += step) {
        Tiles<BF16> left;
        left.load(strip, unit * 64, 64);
        float4 norm[4] = {};
        if (a.x) load_norm(norm, unit);
        multiply(left, norm, unit);
    }

    put_sums(part[warp], sums);
    __syncthreads();
    if (threadIdx.x < COLUMNS * 16) {
        u32 n = threadIdx.x / 16, row = threadIdx.x % 16, expert = blockIdx.x * 16 + row;
        if (n < count && expert < a.router.rows) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) sum += part[i][n * PITCH + row];
            a.logits[(u64(blockIdx.y) * a.tokens + first + n) * a.router.rows + expert] = sum;
        }
    }
    if (is_last(a.arrived + blockIdx.z, gridDim.x * gridDim.y) && warp < count) choose_summed(a, first + warp, splits);
}

// The norm of many tokens, a block for each. Grid: tokens.
KERNEL __launch_bounds__(THREADS) norm_many(const __grid_constant__ RouteArgs a) {
    __shared__ float scratch[WARP];
    wait_for_before();
    let_next_start();
    u32 quads = a.router.columns / 4;
    const float4* x = reinterpret_cast<const float4*>(a.x) + u64(blockIdx.x) * quads;
    const float4* norm = reinterpret_cast<const float4*>(a.norm);
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < quads; i += THREADS) {
        float4 v = x[i];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float scale = rsqrtf(block_sum(sum, scratch) / a.router.columns + a.eps);
    uint2* to = reinterpret_cast<uint2*>(a.normed) + u64(blockIdx.x) * quads;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < quads; i += THREADS) {
        float4 v = x[i], w = norm[i];
        to[i] = make_uint2(to_bf16x2(v.x * scale * w.x, v.y * scale * w.y), to_bf16x2(v.z * scale * w.z, v.w * scale * w.w));
    }
}

// Tokens of a block where there are many.
static constexpr u32 MANY = 64;

// A block for eight strips and 64 tokens, each warp a strip; the last block of these tokens chooses. Reads `normed`.
// Grid: strips / 8, tokens / 64.
KERNEL __launch_bounds__(THREADS) route_many(const __grid_constant__ RouteArgs a) {
    let_next_start();
    wait_for_before();
    u32 warp = warp_id(), g = lane_id() / 4, t = lane_id() % 4;
    u32 first = blockIdx.y * MANY, count = min(MANY, a.tokens - first), experts = a.router.rows;
    u32 hidden = a.router.columns, strip = blockIdx.x * WARPS + warp;
    if (strip * 16 < experts) {
        const u8* tiles = a.router.tiles + strip * a.router.strip_bytes;
        float sums[MANY / COLUMNS][4] = {};
        for (u32 column = 0; column < hidden; column += 64) {
            Tiles<BF16> left;
            left.load(tiles, column, 64);
#pragma unroll
            for (u32 n = 0; n < MANY / COLUMNS; n++) {
                Right right;
                u32 token = n * COLUMNS + g;
                right.load(a.normed + u64(first + min(token, count - 1)) * hidden, column);
                multiply_64<BF16>(sums[n], left, right);
            }
        }
#pragma unroll
        for (u32 n = 0; n < MANY / COLUMNS; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 token = n * COLUMNS + 2 * t + i % 2, expert = strip * 16 + g + i / 2 * 8;
                if (token < count && expert < experts) a.logits[u64(first + token) * experts + expert] = sums[n][i];
            }
        }
    }
    if (!is_last(a.arrived + blockIdx.y, gridDim.x)) return;
    for (u32 token = warp; token < count; token += WARPS) choose_summed(a, first + token, 1);
}

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

// ---- Many tokens ------------------------------------------------------------------------------------------------------------------
// Each expert's pairs in tiles of 128, each with the expert's rows in tiles of 256: a list of work that every block reads out of
// the experts' counts, and goes through in strides.

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

DEVICE void load_shared(Tiles<BF16>& tiles, const u8* unit) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) tiles.words[j] = *reinterpret_cast<const uint4*>(unit + j * 512 + lane_id() * 16);
}

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

// before[e]: tiles of all experts before e; before[experts]: all tiles.
template <u32 TOKENS>
DEVICE void count_tiles(u32* before, const u32* counts, u32 experts) {
    __shared__ u32 of_warps[WARPS];
    u32 each = (experts + THREADS - 1) / THREADS, from = threadIdx.x * each, to = min(from + each, experts);
    u32 own = 0;
    for (u32 e = from; e < to; e++) own += (counts[e] + TOKENS - 1) / TOKENS;
    u32 up_to = own;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        u32 other = __shfl_up_sync(ALL, up_to, step);
        if (lane_id() >= step) up_to += other;
    }
    if (lane_id() == WARP - 1) of_warps[warp_id()] = up_to;
    __syncthreads();
    u32 at = up_to - own;
    for (u32 i = 0; i < warp_id(); i++) at += of_warps[i];
    for (u32 e = from; e < to; e++) {
        before[e] = at;
        at += (counts[e] + TOKENS - 1) / TOKENS;
    }
    if (threadIdx.x == THREADS - 1) before[experts] = at;
    __syncthreads();
}

// The last expert that begins at or before a tile.
DEVICE u32 expert_of(const u32* before, u32 experts, u32 tile) {
    u32 expert = 0, end = experts;
    while (end - expert > 1) {
        u32 middle = (expert + end) / 2;
        (before[middle] <= tile ? expert : end) = middle;
    }
    return expert;
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

// How many units of 64 columns a warp has on their way at once: as many as fit into registers.

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

#define INSTANCES(NAME, FORMAT, GROUP, PAIRS_AHEAD, AHEAD, BLOCKS)                                                            \
    KERNEL __launch_bounds__(THREADS, BLOCKS) gate_up_few_##NAME(const __grid_constant__ GateUpArgs a) {                       \
        gate_up_few<FORMAT, GROUP, PAIRS_AHEAD>(a);                                                                            \
    }                                                                                                                         \
    KERNEL __launch_bounds__(MOST_CHOSEN * WARP) down_few_##NAME(const __grid_constant__ DownArgs a) {                         \
        down_few<FORMAT, GROUP, AHEAD>(a);                                                                                     \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 2) down_each_##NAME(const __grid_constant__ DownArgs a) {                                \
        down_each<FORMAT, GROUP, AHEAD>(a);                                                                                    \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 1) gate_up_many_##NAME(const __grid_constant__ ManyArgs a) {                             \
        many<FORMAT, GROUP, true>(a);                                                                                          \
    }                                                                                                                         \
    KERNEL __launch_bounds__(THREADS, 1) down_many_##NAME(const __grid_constant__ ManyArgs a) {                                \
        many<FORMAT, GROUP, false>(a);                                                                                         \
    }

INSTANCES(bf16, BF16, 64, 2, 4, 2)
INSTANCES(int4_64, INT4, 64, 4, 8, 2)
INSTANCES(int4_128, INT4, 128, 4, 8, 2)
INSTANCES(fp8, FP8, 64, 2, 6, 2)
