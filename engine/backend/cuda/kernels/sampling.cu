// From logits to tokens: penalties, bias and mask, filters, the draw, logprobs, and which rows of a draft count.
//
// Everything about a row is read from device memory, so that one recorded graph serves every step. Two ways:
//   sample_greedy                                   where every row takes its best token and nothing else is asked for
//   sample_adjust, sample_weigh, sample_choose      everything else
//
// Weights (the probability of a token over that of the best one) are whole numbers of 2^-37: their sums are the same in whatever
// order they are added, so a row's token depends on nothing but the row. What is less likely than that beside the best one
// is never drawn.
//
// Equal logits: the lower token first, everywhere. So the order of tokens is one number (`compose`), all different, and "the best
// so many" or "the best that reach so much" is all from one number on (`cut`): found in bins, then in bins of the one bin that
// matters.
#include "common.cuh"

// ---- What the host writes for each row (`RowParameters` in sampling.rs) ------------------------------------------------------

struct RowParameters {
    u32 flags;
    u32 slot;
    u32 draft;        // rows of the draft that starts here, this one too; 0: the row goes on with one
    u32 guesses_at;   // the words of the guesses before this row ...
    u32 guesses;      // ... and how many; the last is the token whose row this is
    u32 bias_at;      // pairs of words: a token, a number; ascending tokens
    u32 biases;
    u32 mask_at;      // a bit for each token
    u32 top_k;        // 0: off
    u32 top;          // how many logprobs beside the chosen one's
    float temperature;
    float top_p;
    float min_p;
    float presence;
    float frequency;
    float repetition;
    u64 draw;         // where the draw falls, of 2^64
};

static constexpr u32 ROW_WORDS = sizeof(RowParameters) / 4;

static constexpr u32 USED = 1;
static constexpr u32 DRAWS = 2;      // temperature > 0
static constexpr u32 PENALTIES = 4;
static constexpr u32 MASK = 8;
static constexpr u32 LOGPROBS = 16;
static constexpr u32 FILTERS = 32;   // top-k or top-p

struct SampleArgs {
    float* logits;       // [rows][stride]; changed where a row has penalties, bias or a mask
    const u32* words;    // [rows] RowParameters, then what they point at
    u16* counts;         // [slots][count_stride]: how often a token was sampled, and IN_PROMPT
    u32* last;           // [slots]
    u64* best;           // [rows], zeros between steps: the largest logit as `order`, then ~token
    u64* likely;         // [rows], zeros between steps: sum of weights at temperature 1
    u64* chunk_sums;     // [rows][WEIGH_CHUNKS]: sums of weights
    u64* bin_sums;       // [rows][BINS], zeros between steps
    u32* bin_counts;     // [rows][BINS], zeros between steps
    float* maxima;       // [rows][GROUPS]: the largest logit of each group
    u32* seen;           // [rows], zeros between steps: what there is among the logits
    u32* done;           // [rows], zeros between steps: blocks of sample_greedy that are through
    u32* drafted;        // [rows], zeros between steps: rows of the draft that starts here that have their heads
    u32* heads;          // [rows][4]: status, token, logprob, number of tops
    u32* tops;           // [rows][TOPS][2]: token, logprob
    u32 vocab;
    u32 stride;          // a multiple of 4
    u32 count_stride;    // a multiple of 4
    u32 chunk;           // of sample_greedy: logits of a block, a multiple of 4
};

static constexpr u32 SAMPLED = 1, UNUSABLE = 2, VOID = 3;
static constexpr u32 BAD = 1, POSSIBLE = 2;
static constexpr u32 TOPS = 20;
static constexpr u16 IN_PROMPT = 0x8000, MOST_COUNTED = 0x7fff;

static constexpr u32 BINS = 1024;
static constexpr u32 ADJUST_CHUNK = 2048, ADJUST_THREADS = 256;
static constexpr u32 WEIGH_CHUNK = 8192, CHOOSE_THREADS = 1024, WEIGH_CHUNKS = 32;
static constexpr u32 TOKEN_BITS = 18, LAST_TOKEN = (1 << TOKEN_BITS) - 1;
static constexpr u32 LIST = 5120;
static constexpr float ONE = 137438953472.0f;  // 2^37
static constexpr u32 LOW_BITS = 19;
static constexpr u32 LOADS = 4;  // on their way at once, for each thread
// The largest logit of so many in a row is kept, so that most of a row need not be read again.
static constexpr u32 GROUP = 128, GROUPS = (LAST_TOKEN + 1) / GROUP;

DEVICE float infinity() { return __uint_as_float(0x7f800000); }

// As numbers that compare as the logits do; -0 is below 0.
DEVICE u32 order(float value) {
    u32 bits = __float_as_uint(value);
    return bits ^ (u32(int(bits) >> 31) | 0x80000000u);
}

DEVICE float value_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A token's place among all: larger is better.
DEVICE u64 compose(float logit, u32 token) { return u64(order(logit)) << TOKEN_BITS | (LAST_TOKEN - token); }
DEVICE u32 token_of(u64 place) { return LAST_TOKEN - (u32(place) & LAST_TOKEN); }
DEVICE float logit_of(u64 place) { return value_of(u32(place >> TOKEN_BITS)); }

DEVICE const RowParameters& parameters(const SampleArgs& a, u32 row) {
    return *reinterpret_cast<const RowParameters*>(a.words + row * ROW_WORDS);
}

DEVICE u64 warp_largest(u64 value) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// What one thread has seen of the logits, the largest first, as the host compares them: -0 is 0, the lower token of equals.
struct Seen {
    u64 best = 0;
    bool bad = false, possible = false;

    DEVICE void check(float logit) {
        bad |= !(logit < infinity());
        possible |= logit > -infinity();
    }

    DEVICE void take(float logit, u32 token) {
        u64 place = u64(order(logit + 0.0f)) << 32 | u32(~token);
        best = place > best ? place : best;
    }

    DEVICE void publish(const SampleArgs& a, u32 row) {
        __shared__ u64 bests[WARP];
        __shared__ u32 theres[WARP];
        u32 there = (__any_sync(ALL, bad) ? BAD : 0) | (__any_sync(ALL, possible) ? POSSIBLE : 0);
        best = warp_largest(best);
        if (lane_id() == 0) bests[warp_id()] = best, theres[warp_id()] = there;
        __syncthreads();
        if (warp_id() > 0) return;
        bool mine = lane_id() < blockDim.x / WARP;
        best = warp_largest(mine ? bests[lane_id()] : 0);
        there = __reduce_or_sync(ALL, mine ? theres[lane_id()] : 0);
        if (lane_id() == 0) {
            atomicMax(&a.best[row], best);
            atomicOr(&a.seen[row], there);
        }
    }
};

// ---- Which rows count --------------------------------------------------------------------------------------------------------

DEVICE void note_sampled(const SampleArgs& a, u32 slot, u32 token) {
    a.last[slot] = token;
    u16& count = a.counts[u64(slot) * a.count_stride + token];
    if ((count & MOST_COUNTED) < MOST_COUNTED) count++;
}

// By one thread, when a row has its head: the last row of a draft that gets so far settles all of it.
DEVICE void finish(const SampleArgs& a, u32 row, const RowParameters& r, u32 status, u32 token) {
    // An unusable row gives the next step a token to read all the same.
    if (r.draft == 1) return note_sampled(a, r.slot, status == SAMPLED ? token : 0);
    u32 first = row - r.guesses;
    u32 rows = parameters(a, first).draft;
    __threadfence();
    if (atomicAdd(&a.drafted[first], 1) != rows - 1) return;
    a.drafted[first] = 0;
    __threadfence();
    bool counts = true;
    u32 before = 0;
    for (u32 i = 0; i < rows; i++) {
        u32* head = a.heads + (first + i) * 4;
        status = __ldcg(head), token = __ldcg(head + 1);
        if (i > 0) counts = counts && before == a.words[r.guesses_at + i - 1];
        if (counts) {
            note_sampled(a, r.slot, status == SAMPLED ? token : 0);
        } else {
            head[0] = VOID;
        }
        counts = counts && status == SAMPLED;
        before = token;
    }
}

// ---- Nothing but the best token ----------------------------------------------------------------------------------------------

// Blocks along the row, and one row of blocks for each row.
KERNEL sample_greedy(const __grid_constant__ SampleArgs a) {
    wait_for_before();
    let_next_start();
    u32 row = blockIdx.y;
    const RowParameters& r = parameters(a, row);
    const float* logits = a.logits + u64(row) * a.stride;
    u32 end = min((blockIdx.x + 1) * a.chunk, a.vocab);
    Seen seen;
    for (u32 from = blockIdx.x * a.chunk + threadIdx.x * 4; from < end; from += blockDim.x * 4 * LOADS) {
        float4 fours[LOADS];
#pragma unroll
        for (u32 j = 0; j < LOADS; j++) {
            u32 at = from + j * blockDim.x * 4;
            if (at < end) fours[j] = *reinterpret_cast<const float4*>(logits + at);
        }
        if (!(r.flags & USED)) break;
#pragma unroll
        for (u32 j = 0; j < LOADS; j++) {
            u32 at = from + j * blockDim.x * 4;
            float v[4] = {fours[j].x, fours[j].y, fours[j].z, fours[j].w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (at + i >= end) continue;
                seen.check(v[i]);
                seen.take(v[i], at + i);
            }
        }
    }
    if (!(r.flags & USED)) return;
    seen.publish(a, row);
    if (threadIdx.x > 0) return;
    __threadfence();
    if (atomicAdd(&a.done[row], 1) != gridDim.x - 1) return;
    __threadfence();
    u32 status = __ldcg(&a.seen[row]) == POSSIBLE ? SAMPLED : UNUSABLE, token = ~u32(__ldcg(&a.best[row]));
    a.done[row] = 0;
    a.seen[row] = 0;
    a.best[row] = 0;
    *reinterpret_cast<uint4*>(a.heads + row * 4) = make_uint4(status, token, 0, 0);
    finish(a, row, r, status, token);
}

// ---- Penalties, bias and mask; the best logit --------------------------------------------------------------------------------

DEVICE float penalised(float logit, const RowParameters& r, u32 count) {
    logit = logit > 0.0f ? __fdiv_rn(logit, r.repetition) : __fmul_rn(logit, r.repetition);
    if (count > 0) logit = __fsub_rn(logit, __fadd_rn(r.presence, __fmul_rn(r.frequency, float(count))));
    return logit;
}

KERNEL sample_adjust(const __grid_constant__ SampleArgs a) {
    __shared__ float tile[ADJUST_CHUNK];
    wait_for_before();
    let_next_start();
    u32 row = blockIdx.y;
    const RowParameters& r = parameters(a, row);
    float* logits = a.logits + u64(row) * a.stride;
    u32 start = blockIdx.x * ADJUST_CHUNK;
    static constexpr u32 HALF = ADJUST_CHUNK / 2;
    float v[8];
    Seen seen;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 at = start + half * HALF + threadIdx.x * 4;
        float4 four = at < a.vocab ? *reinterpret_cast<const float4*>(logits + at) : make_float4(0, 0, 0, 0);
        v[half * 4] = four.x, v[half * 4 + 1] = four.y, v[half * 4 + 2] = four.z, v[half * 4 + 3] = four.w;
    }
    if (!(r.flags & USED)) return;
    auto token = [&](u32 i) { return start + i / 4 * HALF + threadIdx.x * 4 + i % 4; };
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        if (token(i) < a.vocab) seen.check(v[i]);
    }
    if (r.flags & PENALTIES) {
        const u16* counts = a.counts + u64(r.slot) * a.count_stride;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 at = start + half * HALF + threadIdx.x * 4;
            uint2 four = at < a.vocab ? *reinterpret_cast<const uint2*>(counts + at) : make_uint2(0, 0);
            u32 had[4] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
            u32 guessed[4] = {0, 0, 0, 0};
            for (u32 g = 0; g < r.guesses; g++) {
                u32 guess = a.words[r.guesses_at + g] - at;
#pragma unroll
                for (u32 i = 0; i < 4; i++) guessed[i] += guess == i;
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (had[i] | guessed[i]) v[half * 4 + i] = penalised(v[half * 4 + i], r, (had[i] & MOST_COUNTED) + guessed[i]);
            }
        }
    }
    if (r.biases) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) tile[token(i) - start] = v[i];
        __syncthreads();
        const u32* bias = a.words + r.bias_at;
        for (u32 e = threadIdx.x; e < r.biases; e += ADJUST_THREADS) {
            u32 biased = bias[2 * e];
            // One thread adds all that a token gets, in order.
            if (biased - start >= ADJUST_CHUNK || (e > 0 && bias[2 * e - 2] == biased)) continue;
            for (u32 f = e; f < r.biases && bias[2 * f] == biased; f++) tile[biased - start] += __uint_as_float(bias[2 * f + 1]);
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = tile[token(i) - start];
    }
    if (r.flags & MASK) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 at = start + half * HALF + threadIdx.x * 4;
            u32 bits = at < a.vocab ? a.words[r.mask_at + at / 32] >> at % 32 : 0;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (!(bits >> i & 1)) v[half * 4 + i] = -infinity();
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        // An impossible token that a bias makes certain stays impossible.
        if (v[i] != v[i]) v[i] = -infinity();
        if (token(i) < a.vocab) seen.take(v[i], token(i));
    }
    if (r.biases || r.flags & (PENALTIES | MASK)) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 at = start + half * HALF + threadIdx.x * 4;
            const float* four = v + half * 4;
            if (at < a.vocab) *reinterpret_cast<float4*>(logits + at) = make_float4(four[0], four[1], four[2], four[3]);
        }
    }
    seen.publish(a, row);
}

// ---- How likely each token is beside the best one ----------------------------------------------------------------------------

struct Scale {
    float max;          // finite
    float temperature;  // 1 where nothing is drawn

    DEVICE Scale(const SampleArgs& a, u32 row, const RowParameters& r)
        : max(value_of(u32(__ldcg(&a.best[row]) >> 32))), temperature(r.flags & DRAWS ? r.temperature : 1.0f) {}

    // Over the best one's, from 0 to 1.
    DEVICE float share(float logit) const { return expf(-__fdiv_rn(max - logit, temperature)); }

    // Lower logits have the same bin or a higher one. Fine near the best token; the last bin has everything that is far.
    DEVICE u32 bin(float logit) const {
        float far = max - logit;
        if (temperature > 1.0f) far = __fdiv_rn(far, temperature);
        return bin_at(far);
    }

    DEVICE static u32 bin_at(float far) { return min(BINS - 1, (__float_as_uint(far + 1.0f) - 0x3f800000u) >> 16); }

    // The first bin of tokens that all weigh nothing: e^-27 is below half of 2^-37.
    DEVICE u32 nothing() const { return min(BINS - 1, bin_at(27.0f * fminf(temperature, 1.0f)) + 1); }
};

DEVICE u64 weight(float share) { return __float2ull_rn(share * ONE); }

DEVICE u64 weight(const Scale& scale, const RowParameters& r, float logit) {
    float share = scale.share(logit);
    return share >= r.min_p ? weight(share) : 0;
}

DEVICE u64 warp_sum(u64 value) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

// Blocks along the row, and one row of blocks for each row.
KERNEL __launch_bounds__(CHOOSE_THREADS) sample_weigh(const __grid_constant__ SampleArgs a) {
    __shared__ u32 counts[BINS], low[BINS], high[BINS];
    __shared__ u64 sums[WARP], likelies[WARP];
    wait_for_before();
    let_next_start();
    u32 row = blockIdx.y;
    const RowParameters& r = parameters(a, row);
    u32 flags = r.flags;
    const float* logits = a.logits + u64(row) * a.stride;
    // All loads are on their way before the first is waited for.
    float4 fours[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 at = blockIdx.x * WEIGH_CHUNK + half * WEIGH_CHUNK / 2 + threadIdx.x * 4;
        fours[half] = at < a.vocab ? *reinterpret_cast<const float4*>(logits + at) : make_float4(0, 0, 0, 0);
    }
    Scale scale(a, row, r);
    u32 seen = __ldcg(&a.seen[row]);
    if (!(flags & USED) || !(flags & (DRAWS | LOGPROBS)) || seen != POSSIBLE || isinf(scale.max)) return;
    bool bins = flags & FILTERS || r.top > 0;
    if (bins) {
        counts[threadIdx.x] = low[threadIdx.x] = high[threadIdx.x] = 0;
        __syncthreads();
    }
    u64 sum = 0, likely = 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 at = blockIdx.x * WEIGH_CHUNK + half * WEIGH_CHUNK / 2 + threadIdx.x * 4;
        float v[4] = {fours[half].x, fours[half].y, fours[half].z, fours[half].w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (at + i >= a.vocab) v[i] = -infinity();
        }
        if (bins) {
            float largest = warp_max(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])));
            if (lane_id() == 0) a.maxima[row * GROUPS + at / GROUP] = largest;
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (v[i] == -infinity()) continue;
            if (flags & LOGPROBS) likely += weight(expf(v[i] - scale.max));
            u32 bin = bins ? scale.bin(v[i]) : 0;
            if (bins) atomicAdd(&counts[bin], 1);
            if (flags & FILTERS) {
                u64 w = weight(scale.share(v[i]));
                if (w) {
                    // Both halves of a whole chunk fit into 32 bits.
                    atomicAdd(&low[bin], u32(w) & ((1 << LOW_BITS) - 1));
                    atomicAdd(&high[bin], u32(w >> LOW_BITS));
                }
            } else if (flags & DRAWS) {
                sum += weight(scale, r, v[i]);
            }
        }
    }
    sum = warp_sum(sum);
    likely = warp_sum(likely);
    if (lane_id() == 0) sums[warp_id()] = sum, likelies[warp_id()] = likely;
    __syncthreads();
    if (warp_id() == 0) {
        sum = warp_sum(sums[lane_id()]);
        likely = warp_sum(likelies[lane_id()]);
        if (lane_id() == 0) {
            a.chunk_sums[row * WEIGH_CHUNKS + blockIdx.x] = sum;
            if (likely) atomicAdd(&a.likely[row], likely);
        }
    }
    if (bins && counts[threadIdx.x]) {
        u32 at = row * BINS + threadIdx.x;
        atomicAdd(&a.bin_counts[at], counts[threadIdx.x]);
        u64 all = u64(low[threadIdx.x]) + (u64(high[threadIdx.x]) << LOW_BITS);
        if (all) atomicAdd(&a.bin_sums[at], all);
    }
}

// ---- The choice: one block for each row --------------------------------------------------------------------------------------

struct Choose {
    u64 list[LIST];      // places of the tokens that may matter, in no order
    u64 sums[BINS];
    // What each thread knows of its bin of the row, kept here to save registers.
    u64 bin_sums[BINS], bin_sums_before[BINS];
    u32 bin_counts[BINS], bin_counts_before[BINS];
    u32 grouped;
    u32 counts[BINS];
    u64 warp_sums[WARP];
    u32 warp_counts[WARP];
    u64 total_sum;
    u32 total_count;
    // The thread in which a running total reached what was asked, with what was before it and what it has itself.
    u32 found;
    u64 sum_before, sum;
    u32 count_before, count;
    u32 listed;
    u32 first_allowed;
    u32 gathered;
    u64 best[TOPS];
};
// `CHOOSE_SHARED` in sampling.rs.
static_assert(sizeof(Choose) <= 80 * 1024, "more shared memory than the host asks for");

// Running totals over the threads, before this one.
struct Before {
    u32 count;
    u64 sum;
};

// Every thread comes here, those from `threads` on with zeros; totals of all are then in `m`.
DEVICE Before running_totals(Choose& m, u32 count, u64 sum, u32 threads = CHOOSE_THREADS) {
    u32 counts = count;
    u64 sums = sum;
    if (warp_id() * WARP < threads) {
#pragma unroll
        for (u32 step = 1; step < WARP; step *= 2) {
            u32 c = __shfl_up_sync(ALL, counts, step);
            u64 s = __shfl_up_sync(ALL, sums, step);
            if (lane_id() >= step) counts += c, sums += s;
        }
    }
    __syncthreads();
    if (lane_id() == WARP - 1) m.warp_counts[warp_id()] = counts, m.warp_sums[warp_id()] = sums;
    __syncthreads();
    if (warp_id() == 0) {
        u32 own = m.warp_counts[lane_id()], c = own;
        u64 own_sum = m.warp_sums[lane_id()], s = own_sum;
#pragma unroll
        for (u32 step = 1; step < WARP; step *= 2) {
            u32 other = __shfl_up_sync(ALL, c, step);
            u64 other_sum = __shfl_up_sync(ALL, s, step);
            if (lane_id() >= step) c += other, s += other_sum;
        }
        m.warp_counts[lane_id()] = c - own;
        m.warp_sums[lane_id()] = s - own_sum;
        if (lane_id() == WARP - 1) m.total_count = c, m.total_sum = s;
    }
    __syncthreads();
    return {m.warp_counts[warp_id()] + counts - count, m.warp_sums[warp_id()] + sums - sum};
}

// The thread in which the total reaches `need`, from 1 to what there is.
DEVICE void find(Choose& m, Before before, u32 count, u64 sum, bool by_count, u64 need) {
    __syncthreads();
    u64 had = by_count ? before.count : before.sum;
    u64 has = by_count ? count : sum;
    if (had < need && need <= had + has) {
        m.found = threadIdx.x;
        m.sum_before = before.sum;
        m.sum = sum;
        m.count_before = before.count;
        m.count = count;
    }
    __syncthreads();
}

static constexpr u32 SORTED = CHOOSE_THREADS;

// For lists that are too long to sort: functions of their own, so that the others have enough registers.
#define SELDOM __device__ __noinline__

// Thread i gets the i-th largest of `count`, at most one of each thread; the others hold 0.
DEVICE u64 sorted(Choose& m, u64 value, u32 count) {
    for (u32 run = 2; run < 2 * count; run *= 2) {
        for (u32 step = run / 2; step > 0; step /= 2) {
            u64 other;
            // Warps that have nothing only keep in step.
            if (step >= WARP) {
                __syncthreads();
                m.sums[threadIdx.x] = value;
                __syncthreads();
                other = m.sums[threadIdx.x ^ step];
            } else if (warp_id() * WARP < 2 * count) {
                other = __shfl_xor_sync(ALL, value, step);
            } else {
                continue;
            }
            bool larger = !(threadIdx.x & run) == !(threadIdx.x & step);
            value = (other > value) == larger ? other : value;
        }
    }
    return value;
}

struct Choice {
    Choose& m;
    const SampleArgs& a;
    const RowParameters& r;
    const float* logits;
    Scale scale;
    bool listed;  // all that matters is in the list

    DEVICE u64 weight_of(u64 place) const { return weight(scale.share(logit_of(place))); }

    // All places from `floor` on, each by some thread.
    template <class Do>
    DEVICE void each(u64 floor, Do todo) const {
        static constexpr u32 PAIR = 2;
        if (listed) {
            u32 count = m.listed;
            for (u32 i = threadIdx.x; i < count; i += CHOOSE_THREADS) {
                u64 place = m.list[i];
                if (place >= floor) todo(place);
            }
        } else {
            for (u32 from = threadIdx.x * 4; from < a.vocab; from += CHOOSE_THREADS * 4 * PAIR) {
                float4 fours[PAIR];
#pragma unroll
                for (u32 j = 0; j < PAIR; j++) {
                    u32 at = from + j * CHOOSE_THREADS * 4;
                    if (at < a.vocab) fours[j] = *reinterpret_cast<const float4*>(logits + at);
                }
#pragma unroll
                for (u32 j = 0; j < PAIR; j++) {
                    float v[4] = {fours[j].x, fours[j].y, fours[j].z, fours[j].w};
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        u32 token = from + j * CHOOSE_THREADS * 4 + i;
                        u64 place = compose(v[i], token);
                        if (token < a.vocab && v[i] != -infinity() && place >= floor) todo(place);
                    }
                }
            }
        }
    }

    DEVICE void find_bin(bool by_count, u64 need) const {
        Before before{m.bin_counts_before[threadIdx.x], m.bin_sums_before[threadIdx.x]};
        find(m, before, m.bin_counts[threadIdx.x], m.bin_sums[threadIdx.x], by_count, need);
    }

    DEVICE void put_top(u32 row, u32 rank, u64 place, float normaliser) const {
        u32* top = a.tops + (row * TOPS + rank) * 2;
        top[0] = token_of(place);
        top[1] = __float_as_uint(logit_of(place) - normaliser);
    }

    // Fills the list with all tokens down to a bin, which fit.
    DEVICE void collect(u32 row, u32 deepest) const {
        float lowest = value_of(lowest_key(deepest));
        u32 groups = (a.vocab + GROUP - 1) / GROUP;
        u32* with = reinterpret_cast<u32*>(m.sums);  // groups that have such tokens
        for (u32 group = threadIdx.x; group < groups; group += CHOOSE_THREADS) {
            if (a.maxima[row * GROUPS + group] >= lowest) with[atomicAdd(&m.grouped, 1)] = group;
        }
        __syncthreads();
        groups = m.grouped;
        for (u32 from = warp_id(); from < groups; from += CHOOSE_THREADS / WARP * LOADS) {
            u32 at[LOADS];
            float4 fours[LOADS];
#pragma unroll
            for (u32 j = 0; j < LOADS; j++) {
                u32 entry = from + j * CHOOSE_THREADS / WARP;
                at[j] = entry < groups ? with[entry] * GROUP + lane_id() * 4 : a.vocab;
                if (at[j] < a.vocab) fours[j] = *reinterpret_cast<const float4*>(logits + at[j]);
            }
#pragma unroll
            for (u32 j = 0; j < LOADS; j++) {
                float v[4] = {fours[j].x, fours[j].y, fours[j].z, fours[j].w};
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    // -0 is not below 0, but in a bin.
                    if (at[j] + i < a.vocab && v[i] >= lowest && v[i] != -infinity() && scale.bin(v[i]) <= deepest)
                        m.list[atomicAdd(&m.listed, 1)] = compose(v[i], at[j] + i);
                }
            }
        }
        __syncthreads();
    }

    // The lowest key of a bin up to `bin`; a search by all threads at once.
    DEVICE u32 lowest_key(u32 bin) const {
        u32 low = order(-infinity()) + 1, high = order(scale.max);
        while (low < high) {
            u32 step = (high - low) / CHOOSE_THREADS + 1;
            u32 key = low + min(u64(threadIdx.x) * step, u64(high - low));
            // Those beyond are a head of the threads.
            u32 beyond = __syncthreads_count(scale.bin(value_of(key)) > bin);
            u32 start = low;
            if (beyond > 0) low = start + (beyond - 1) * step + 1;
            high = u32(min(u64(high), start + u64(beyond) * step));
        }
        return low;
    }

    // The place from which on, among those of one bin and from `floor` on, there are `need`, or weigh `need`. `above` gets the
    // weights of those that are kept added.
    SELDOM u64 cut(u32 bin, u64 floor, bool by_count, u64 need, u64& above) const {
        u64 low = u64(lowest_key(bin)) << TOKEN_BITS;
        u64 high = bin == 0 ? ~0ull : (u64(lowest_key(bin - 1)) << TOKEN_BITS) - 1;
        high = min(high, u64(order(scale.max)) << TOKEN_BITS | LAST_TOKEN);
        low = max(low, floor);
        while (true) {
            u32 bits = 64 - __clzll(high - low);
            u32 shift = bits > 10 ? bits - 10 : 0;
            __syncthreads();
            m.counts[threadIdx.x] = 0;
            m.sums[threadIdx.x] = 0;
            __syncthreads();
            each(low, [&](u64 place) {
                if (place > high) return;
                u32 at = u32((place - low) >> shift);
                atomicAdd(&m.counts[at], 1);
                if (r.flags & FILTERS) atomicAdd(&m.sums[at], weight_of(place));
            });
            __syncthreads();
            u32 at = BINS - 1 - threadIdx.x;
            u32 count = m.counts[at];
            u64 sum = m.sums[at];
            find(m, running_totals(m, count, sum), count, sum, by_count, need);
            need -= by_count ? m.count_before : m.sum_before;
            above += m.sum_before;
            low += u64(BINS - 1 - m.found) << shift;
            high = min(high, low + (1ull << shift) - 1);
            if (shift == 0 || m.count == 1 || (by_count && m.count == need)) {
                above += m.sum;
                return low;
            }
        }
    }

    // The same of the whole list, where this thread's is `place` and the first `kept` are; `all` is the weight of all tokens.
    DEVICE u32 draw_of_sorted(u64 place, u32 kept, bool by_k, bool by_p, u64 all) const {
        u64 w = threadIdx.x < kept ? weight_of(place) : 0;
        if (by_p) {
            Before before = running_totals(m, 0, w, m.listed);
            u64 need = enough(by_k ? m.total_sum : all);
            if (before.sum >= need) w = 0;
        }
        if (w && scale.share(logit_of(place)) < r.min_p) w = 0;
        // By ascending token, with the weight behind it; what is not kept comes last.
        static constexpr u32 WEIGHT_BITS = 38;
        u64 entry = w ? u64(LAST_TOKEN - token_of(place)) << WEIGHT_BITS | w : 0;
        entry = sorted(m, entry, m.listed);
        w = entry & ((1ull << WEIGHT_BITS) - 1);
        Before before = running_totals(m, 0, w, m.listed);
        find(m, before, 0, w, false, __umul64hi(r.draw, m.total_sum) + 1);
        if (threadIdx.x == m.found) m.gathered = LAST_TOKEN - u32(entry >> WEIGHT_BITS);
        __syncthreads();
        return m.gathered;
    }

    // What top-p wants of a whole.
    DEVICE u64 enough(u64 all) const { return max(1ull, u64(ceil(double(r.top_p) * double(all)))); }

    // The few from `floor` on, in no order.
    SELDOM void gather(u64 floor) const {
        each(floor, [&](u64 place) { m.best[atomicAdd(&m.gathered, 1)] = place; });
        __syncthreads();
    }

    // The tokens from `floor` on, drawn in the order of the vocabulary.
    SELDOM u32 draw(u64 floor) const {
        static constexpr u32 PART = (LAST_TOKEN + 1) / BINS;
        __syncthreads();
        m.sums[threadIdx.x] = 0;
        __syncthreads();
        auto weigh = [&](u64 place) { return weight(scale, r, logit_of(place)); };
        // Of a token of the whole row, where it is kept.
        auto weigh_token = [&](u32 token) {
            float logit = token < a.vocab ? logits[token] : -infinity();
            u64 place = compose(logit, token);
            return logit != -infinity() && place >= floor ? weigh(place) : 0;
        };
        if (listed) {
            each(floor, [&](u64 place) {
                u64 w = weigh(place);
                if (w) atomicAdd(&m.sums[token_of(place) / PART], w);
            });
        } else {
            for (u32 part = warp_id(); part * PART < a.vocab; part += CHOOSE_THREADS / WARP) {
                u64 sum = 0;
#pragma unroll
                for (u32 i = 0; i < PART; i += WARP) sum += weigh_token(part * PART + i + lane_id());
                sum = warp_sum(sum);
                if (lane_id() == 0) m.sums[part] = sum;
            }
        }
        __syncthreads();
        u64 sum = m.sums[threadIdx.x];
        Before before = running_totals(m, 0, sum);
        u64 target = __umul64hi(r.draw, m.total_sum);
        find(m, before, 0, sum, false, target + 1);
        u32 part = m.found;
        target -= m.sum_before;
        __syncthreads();
        m.sums[threadIdx.x] = 0;
        __syncthreads();
        if (listed) {
            each(floor, [&](u64 place) {
                if (token_of(place) / PART == part) m.sums[token_of(place) % PART] = weigh(place);
            });
        } else if (threadIdx.x < PART) {
            m.sums[threadIdx.x] = weigh_token(part * PART + threadIdx.x);
        }
        __syncthreads();
        sum = m.sums[threadIdx.x];
        find(m, running_totals(m, 0, sum), 0, sum, false, target + 1);
        return part * PART + m.found;
    }

    // All tokens, drawn in the order of the vocabulary.
    DEVICE u32 draw_of_all(u32 row) const {
        u32 chunks = (a.vocab + WEIGH_CHUNK - 1) / WEIGH_CHUNK;
        u64 sum = threadIdx.x < chunks ? a.chunk_sums[row * WEIGH_CHUNKS + threadIdx.x] : 0;
        Before before = running_totals(m, 0, sum);
        u64 target = __umul64hi(r.draw, m.total_sum);
        find(m, before, 0, sum, false, target + 1);
        target -= m.sum_before;
        static constexpr u32 PART = WEIGH_CHUNK / CHOOSE_THREADS;
        u32 start = m.found * WEIGH_CHUNK + threadIdx.x * PART;
        u64 weights[PART];
        sum = 0;
#pragma unroll
        for (u32 i = 0; i < PART; i++) {
            float logit = start + i < a.vocab ? logits[start + i] : -infinity();
            weights[i] = logit == -infinity() ? 0 : weight(scale, r, logit);
            sum += weights[i];
        }
        before = running_totals(m, 0, sum);
        find(m, before, 0, sum, false, target + 1);
        if (threadIdx.x == m.found) {
            u32 at = 0;
            target -= before.sum;
#pragma unroll
            for (u32 i = 0; i + 1 < PART; i++) {
                if (at == i && target >= weights[i]) target -= weights[i], at++;
            }
            m.gathered = start + at;
        }
        __syncthreads();
        return m.gathered;
    }
};

// Shared memory: a Choose.
KERNEL __launch_bounds__(CHOOSE_THREADS) sample_choose(const __grid_constant__ SampleArgs a) {
    extern __shared__ u64 memory[];
    Choose& m = *reinterpret_cast<Choose*>(memory);
    wait_for_before();
    let_next_start();
    u32 row = blockIdx.x;
    const RowParameters& r = parameters(a, row);
    const float* logits = a.logits + u64(row) * a.stride;
    Choice c{m, a, r, logits, Scale(a, row, r), false};
    u32 flags = r.flags;
    u32 status = !(flags & USED) ? 0 : __ldcg(&a.seen[row]) == POSSIBLE ? SAMPLED : UNUSABLE;
    u32 token = ~u32(__ldcg(&a.best[row])), tops = 0;
    u64 likely = __ldcg(&a.likely[row]);
    u32 bin = row * BINS + threadIdx.x;
    u32 count = __ldcg(&a.bin_counts[bin]);
    u64 sum = __ldcg(&a.bin_sums[bin]);
    float logprob = 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        a.seen[row] = 0;
        a.best[row] = 0;
        a.likely[row] = 0;
    }
    if (status == SAMPLED && c.scale.max == -infinity() && flags & MASK) {
        // All that the mask allows is impossible: its first token is certain.
        if (threadIdx.x == 0) m.first_allowed = a.vocab;
        __syncthreads();
        for (u32 word = threadIdx.x; word * 32 < a.vocab; word += CHOOSE_THREADS) {
            u32 bits = a.words[r.mask_at + word];
            if (bits) {
                atomicMin(&m.first_allowed, word * 32 + __ffs(bits) - 1);
                break;
            }
        }
        __syncthreads();
        token = m.first_allowed;
        tops = min(r.top, 1);
        if (threadIdx.x == 0 && tops) {
            a.tops[row * TOPS * 2] = token;
            a.tops[row * TOPS * 2 + 1] = 0;
        }
    } else if (status == SAMPLED && isinf(c.scale.max)) {
        logprob = __uint_as_float(0x7fc00000);
    } else if (status == SAMPLED && flags & (DRAWS | LOGPROBS)) {
        float normaliser = 0.0f;
        // Only the first warp writes logprobs.
        if (flags & LOGPROBS && warp_id() == 0) normaliser = float(double(c.scale.max) + log(double(likely) / double(ONE)));
        if (!(flags & FILTERS) && flags & DRAWS) token = c.draw_of_all(row);
        if (flags & FILTERS || r.top > 0) {
            a.bin_counts[bin] = 0;
            a.bin_sums[bin] = 0;
            Before before = running_totals(m, count, sum);
            m.bin_counts[threadIdx.x] = count;
            m.bin_sums[threadIdx.x] = sum;
            m.bin_counts_before[threadIdx.x] = before.count;
            m.bin_sums_before[threadIdx.x] = before.sum;
            u32 possible = m.total_count;
            u64 all = m.total_sum;

            // Which bins matter, first for the most likely tokens, then for each filter.
            u32 deepest = 0, top_bin = 0, k_bin = BINS, p_bin = 0;
            u64 top_need = 0, k_need = 0;
            auto look = [&](bool by_count, u64 need, u32& bin) {
                c.find_bin(by_count, need);
                bin = m.found;
                return need - (by_count ? m.count_before : m.sum_before);
            };
            if (r.top > 0) {
                tops = min(r.top, possible);
                top_need = look(true, tops, top_bin);
                deepest = top_bin;
            }
            u64 floor = 0;
            bool filters = flags & FILTERS, sorted_all = false;
            bool by_k = filters && r.top_k > 0 && r.top_k < possible, by_p = filters && r.top_p < 1.0f;
            if (filters) {
                u32 nothing = c.scale.nothing(), bin = nothing;
                if (by_k) {
                    k_need = look(true, r.top_k, k_bin);
                    // All that weighs something is among the best k.
                    by_k = k_bin < nothing;
                    bin = min(bin, k_bin);
                } else if (by_p) {
                    look(false, c.enough(all), p_bin);
                    bin = p_bin;
                }
                deepest = max(deepest, bin);
                if (!by_k) k_bin = BINS;
            }
            // How many there are down to the deepest bin.
            __syncthreads();
            if (threadIdx.x == deepest) m.count = m.bin_counts_before[deepest] + m.bin_counts[deepest];
            if (threadIdx.x == 0) m.listed = 0, m.gathered = 0, m.grouped = 0;
            __syncthreads();
            c.listed = m.count <= LIST;
            if (c.listed) {
                c.collect(row, deepest);
            }
            if (c.listed && m.listed <= SORTED) {
                u64 place = sorted(m, threadIdx.x < m.listed ? m.list[threadIdx.x] : 0, m.listed);
                if (threadIdx.x < tops) c.put_top(row, threadIdx.x, place, normaliser);
                if (filters) token = c.draw_of_sorted(place, by_k ? r.top_k : m.listed, by_k, by_p, all);
                filters = false;
                sorted_all = true;
            }
            if (filters) {
                if (by_k) {
                    c.find_bin(true, r.top_k);
                    u64 kept = m.sum_before;
                    floor = c.cut(k_bin, 0, true, k_need, kept);
                    all = kept;
                }
                if (by_p) {
                    u64 need = look(false, c.enough(all), p_bin);
                    u64 kept = 0;
                    floor = c.cut(p_bin, floor, false, need, kept);
                }
                token = c.draw(floor);
            }
            if (tops && !sorted_all) {
                u64 kept = 0;
                c.gather(c.cut(top_bin, 0, true, top_need, kept));
                if (threadIdx.x < tops) {
                    u64 place = m.best[threadIdx.x];
                    u32 rank = 0;
                    for (u32 i = 0; i < tops; i++) rank += m.best[i] > place;
                    c.put_top(row, rank, place, normaliser);
                }
            }
        }
        logprob = logits[token] - normaliser;
    }
    if (threadIdx.x == 0 && flags & USED) {
        *reinterpret_cast<uint4*>(a.heads + row * 4) = make_uint4(status, token, __float_as_uint(logprob), tops);
        finish(a, row, r, status, token);
    }
}

// ---- Slots that start anew ---------------------------------------------------------------------------------------------------

struct ResetArgs {
    const u32* resets;    // [n][4]: slot, where its history starts among the words here, its length, how many were not sampled
    u16* counts;
    u32* last;
    u32 count_stride;     // a multiple of 4
};

// Blocks along the vocabulary, and one row of blocks for each slot.
KERNEL sample_clear(const __grid_constant__ ResetArgs a) {
    wait_for_before();
    let_next_start();
    uint2* counts = reinterpret_cast<uint2*>(a.counts + u64(a.resets[4 * blockIdx.y]) * a.count_stride);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < a.count_stride / 4; i += gridDim.x * blockDim.x) {
        counts[i] = make_uint2(0, 0);
    }
}

// Blocks along the history, and one row of blocks for each slot.
KERNEL sample_remember(const __grid_constant__ ResetArgs a) {
    wait_for_before();
    let_next_start();
    const u32* reset = a.resets + 4 * blockIdx.y;
    u32 slot = reset[0], at = reset[1], length = reset[2], prompt = reset[3];
    u32* counts = reinterpret_cast<u32*>(a.counts + u64(slot) * a.count_stride);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < length; i += gridDim.x * blockDim.x) {
        u32 token = a.resets[at + i], side = token % 2 * 16;
        if (i + 1 == length && prompt < length) a.last[slot] = token;
        if (i < prompt) {
            atomicOr(&counts[token / 2], u32(IN_PROMPT) << side);
            continue;
        }
        u32 seen = counts[token / 2];
        while (true) {
            if ((seen >> side & MOST_COUNTED) == MOST_COUNTED) break;
            u32 before = atomicCAS(&counts[token / 2], seen, seen + (1u << side));
            if (before == seen) break;
            seen = before;
        }
    }
}
