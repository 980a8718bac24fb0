// Mixtures of experts: a router picks some of many gated networks for each token, and lists each one's tokens.
#include "moe.cuh"

DEVICE u32 redux_max(u32 value) {
    u32 most;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(value));
    return most;
}

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
