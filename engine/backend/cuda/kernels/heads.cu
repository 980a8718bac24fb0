// From the product of the q, k and v matrices to what attention reads: norms of heads, RoPE, and keys and values in their blocks.
#include "kv.cuh"

struct HeadsArgs {
    const u16* qkv;             // [T][(heads + 2 * kv_heads) * head_dim] bf16
    u16* q;                     // [T][q_stride] bf16, heads * head_dim of them written; may be `qkv` itself
    u8* pool;                   // the layer's blocks
    const u32* positions;       // [T]
    const u32* kv_rows;         // [T]: block * block_tokens + place in it, or NO_ROW
    const float* q_norm;        // [head_dim] or null
    const float* k_norm;        // [head_dim] or null
    const double* frequencies;  // [dims / 2]
    u64 block_bytes;
    float eps;
    float amplitude;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;               // even, at most 256
    u32 dims;                   // how many values turn; even
    u32 layout;
    u32 block_tokens;
    u32 format;
    u32 q_stride;
};

static constexpr u32 MOST_PAIRS = 128;

// Blocks: [T, heads in eights], a warp for each head. A lane has the pairs lane, lane + 32, ... of its head.
KERNEL heads(const __grid_constant__ HeadsArgs a) {
    __shared__ float2 turns[MOST_PAIRS];
    u32 token = blockIdx.x, turning = a.dims / 2;
    // All of this is older than the kernel before: see NOTES.md.
    u32 row = a.kv_rows[token];
    u32 head = blockIdx.y * (blockDim.x / WARP) + warp_id(), all = a.heads + 2 * a.kv_heads;
    bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
    const float* weight = is_q ? a.q_norm : is_v ? nullptr : a.k_norm;
    // Values that do not turn are pairs of neighbours behind those that do.
    u32 first[MOST_PAIRS / WARP], second[MOST_PAIRS / WARP];
    float2 weights[MOST_PAIRS / WARP];
#pragma unroll
    for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
        u32 pair = j * WARP + lane_id();
        bool halves = pair < turning && a.layout != INTERLEAVED;
        first[j] = halves ? pair : 2 * pair;
        second[j] = halves ? pair + turning : 2 * pair + 1;
        if (weight && 2 * pair < a.head_dim) weights[j] = make_float2(__ldg(weight + first[j]), __ldg(weight + second[j]));
    }
    for (u32 i = threadIdx.x; i < turning; i += blockDim.x) {
        turns[i] = turn_of(a.positions[token], a.frequencies[i], a.amplitude);
    }
    __syncthreads();
    wait_for_before();
    let_next_start();

    if (head >= all || (!is_q && row == NO_ROW)) return;
    const u16* from = a.qkv + (u64(token) * all + head) * a.head_dim;
    float2 values[MOST_PAIRS / WARP];
    float squares = 0.0f;
#pragma unroll
    for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
        u32 pair = j * WARP + lane_id();
        values[j] = make_float2(0.0f, 0.0f);
        if (2 * pair < a.head_dim) values[j] = make_float2(from_bf16(from[first[j]]), from_bf16(from[second[j]]));
        squares += values[j].x * values[j].x + values[j].y * values[j].y;
    }
    if (weight) {
        float scale = rsqrtf(warp_sum(squares) / a.head_dim + a.eps);
#pragma unroll
        for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
            if (2 * (j * WARP + lane_id()) >= a.head_dim) continue;
            values[j].x *= scale * weights[j].x, values[j].y *= scale * weights[j].y;
        }
    }
    float largest = 0.0f;
#pragma unroll
    for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
        u32 pair = j * WARP + lane_id();
        if (!is_v && pair < turning) {
            float2 turn = turns[pair], v = values[j];
            values[j] = make_float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
        }
        largest = fmaxf(largest, fmaxf(fabsf(values[j].x), fabsf(values[j].y)));
    }

    if (!is_q && a.format == KV_FP8) {
        Quantum quantum(warp_largest(largest));
        u32 kv_head = head - a.heads;  // values' heads follow keys'
        u32 place = kv_head * a.block_tokens + row % a.block_tokens;
        u8* block = a.pool + u64(row / a.block_tokens) * a.block_bytes;
        u8* to = block + u64(place) * a.head_dim;
        float* scales = reinterpret_cast<float*>(block + 2ull * a.kv_heads * a.block_tokens * a.head_dim);
        if (lane_id() == 0) scales[place] = quantum.scale;
#pragma unroll
        for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
            if (2 * (j * WARP + lane_id()) >= a.head_dim) continue;
            to[first[j]] = e4m3_of(values[j].x * quantum.up), to[second[j]] = e4m3_of(values[j].y * quantum.up);
        }
        return;
    }
    u16* to = a.q + u64(token) * a.q_stride + head * a.head_dim;
    if (!is_q) {
        u32 place = (head - a.heads) * a.block_tokens + row % a.block_tokens;
        to = reinterpret_cast<u16*>(a.pool + u64(row / a.block_tokens) * a.block_bytes) + u64(place) * a.head_dim;
    }
#pragma unroll
    for (u32 j = 0; j < MOST_PAIRS / WARP; j++) {
        if (2 * (j * WARP + lane_id()) >= a.head_dim) continue;
        to[first[j]] = to_bf16(values[j].x), to[second[j]] = to_bf16(values[j].y);
    }
}
