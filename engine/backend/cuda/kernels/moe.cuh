// Mixtures of experts: what their kernels have in common.
//
// A pair is a token and one of its slots: number token * k + slot. Which expert a pair has is in `chosen`; which pairs an expert
// has, in its list, in any order: a pair's results are a column of the tensor cores, which is the same in whatever place.
#pragma once
#include "tiles.cuh"

static constexpr u32 THREADS = 256;
static constexpr u32 WARPS = THREADS / WARP;
// Tokens that the tensor cores take at a time.
static constexpr u32 COLUMNS = 8;

// ---- A strip's sums for eight tokens, from lanes to memory and back ------------------------------------------------------------

// Twenty words to a token: no two lanes of a warp meet in a bank.
static constexpr u32 PITCH = 20;

DEVICE void put_sums(float (&to)[COLUMNS * PITCH], const float (&sums)[4]) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    to[2 * t * PITCH + g] = sums[0], to[(2 * t + 1) * PITCH + g] = sums[1];
    to[2 * t * PITCH + g + 8] = sums[2], to[(2 * t + 1) * PITCH + g + 8] = sums[3];
}

// ---- Experts' lists in tiles -------------------------------------------------------------------------------------------------------

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
