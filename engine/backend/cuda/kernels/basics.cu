// Embedding rows, norms, and copies of KV blocks.
#include "tiles.cuh"

// ---- The stream of hidden states, from token numbers ------------------------------------------------------------------------

struct EmbedArgs {
    const u32* tokens;      // [T]: a token, or FROM_SLOT | a slot, whose last token counts
    const u32* last;        // [slots]: what each slot sampled last
    const u16* table;       // [vocab][hidden] bf16
    float* x;               // [T][hidden]
    float scale;
    u32 hidden;
};

static constexpr u32 FROM_SLOT = 0x80000000u;

// One block for each token.
KERNEL embed(const __grid_constant__ EmbedArgs a) {
    wait_for_before();
    let_next_start();
    u32 token = a.tokens[blockIdx.x];
    if (token & FROM_SLOT) token = a.last[token & ~FROM_SLOT];
    const u32* row = reinterpret_cast<const u32*>(a.table + u64(token) * a.hidden);
    float2* x = reinterpret_cast<float2*>(a.x + u64(blockIdx.x) * a.hidden);
    for (u32 i = threadIdx.x; i < a.hidden / 2; i += blockDim.x) {
        u32 pair = row[i];
        x[i] = make_float2(low_bf16(pair) * a.scale, high_bf16(pair) * a.scale);
    }
}

// ---- RMS norm ----------------------------------------------------------------------------------------------------------------

struct NormArgs {
    float* x;               // [rows of `pick`, else T][hidden]: the stream; what is added is added here too
    const u16* add;         // [T][hidden] bf16, or null: added to the stream before the norm
    const float* add_norm;  // [hidden] or null: what is added is normed with these weights first
    const float* weight;    // [hidden]
    const u32* pick;        // [blocks] or null: which rows of the stream
    u16* out;               // [blocks][hidden] bf16, or null: the norm is not wanted
    float* out_f32;         // [blocks][hidden], or null
    float eps;
    u32 hidden;             // even
    u32 padded;             // not 0: `out` is laid out for many tokens (`image_word`), and so many rows of them; or TURNED
};

// One block for each row. Picked rows are only read.
KERNEL rms_norm(const __grid_constant__ NormArgs a) {
    __shared__ float scratch[WARP];
    wait_for_before();
    let_next_start();
    u32 row = a.pick ? a.pick[blockIdx.x] : blockIdx.x;
    float2* x = reinterpret_cast<float2*>(a.x + u64(row) * a.hidden);
    u32 pairs = a.hidden / 2;
    if (a.add) {
        const u32* add = reinterpret_cast<const u32*>(a.add + u64(row) * a.hidden);
        float scale = 1.0f;
        if (a.add_norm) {
            float sum = 0.0f;
            for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
                float low = low_bf16(add[i]), high = high_bf16(add[i]);
                sum += low * low + high * high;
            }
            scale = rsqrtf(block_sum(sum, scratch) / a.hidden + a.eps);
        }
        for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
            float low = low_bf16(add[i]), high = high_bf16(add[i]);
            if (a.add_norm) {
                low *= scale * a.add_norm[2 * i];
                high *= scale * a.add_norm[2 * i + 1];
            }
            float2 value = x[i];
            x[i] = make_float2(value.x + low, value.y + high);
        }
    }
    if (!a.out && !a.out_f32) return;
    float sum = 0.0f;
    // Each thread reads what it wrote itself.
    for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) sum += x[i].x * x[i].x + x[i].y * x[i].y;
    float scale = rsqrtf(block_sum(sum, scratch) / a.hidden + a.eps);
    for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
        float low = x[i].x * scale * a.weight[2 * i], high = x[i].y * scale * a.weight[2 * i + 1];
        u64 at = u64(blockIdx.x) * pairs + i;
        u64 turned = u64(blockIdx.x) * pairs + turned_pair(i);
        u64 to = a.padded == TURNED ? turned : a.padded ? image_word(blockIdx.x, i, a.padded) : at;
        if (a.out) reinterpret_cast<u32*>(a.out)[to] = to_bf16x2(low, high);
        if (a.out_f32) reinterpret_cast<float2*>(a.out_f32)[at] = make_float2(low, high);
    }
}

// ---- Copies of KV blocks -----------------------------------------------------------------------------------------------------

struct CopyBlocksArgs {
    u8* pool;               // [layers][blocks][bytes]
    const u32* pairs;       // [copies][2]: from, to
    u32 copies;             // done one after the other
    u32 bytes;              // of one block of one layer; a multiple of 16
    u64 layer_bytes;
};

// One row of blocks along the bytes, one for each layer: a byte's copies are all done by one thread, in order.
KERNEL copy_blocks(const __grid_constant__ CopyBlocksArgs a) {
    wait_for_before();
    let_next_start();
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * 16;
    if (at >= a.bytes) return;
    u8* layer = a.pool + u64(blockIdx.y) * a.layer_bytes;
    for (u32 i = 0; i < a.copies; i++) {
        const uint4* from = reinterpret_cast<const uint4*>(layer + u64(a.pairs[2 * i]) * a.bytes + at);
        *reinterpret_cast<uint4*>(layer + u64(a.pairs[2 * i + 1]) * a.bytes + at) = *from;
    }
}
