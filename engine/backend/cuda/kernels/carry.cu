// Blocks of the pool, one whole block after the other: what leaves for host memory, and what comes from there.
#include "common.cuh"

static constexpr u32 TOGETHER = 16;

struct CarryArgs {
    u8* pool;               // [layers][blocks][bytes]
    u8* packed;             // [places][layers][bytes]
    u64 layer_bytes;
    u32 bytes;              // of one block of one layer; a multiple of 16
    u32 layers;
    u32 out;                // from the pool; else to it
    u32 pad;
    u32 blocks[TOGETHER];   // in the pool
    u32 places[TOGETHER];   // in `packed`
};

// Rows of blocks along the bytes, one for each layer and for each block of the pool.
KERNEL carry(const __grid_constant__ CarryArgs a) {
    u32 layer = blockIdx.y;
    u64 in_pool = layer * a.layer_bytes + u64(a.blocks[blockIdx.z]) * a.bytes;
    u64 in_packed = (u64(a.places[blockIdx.z]) * a.layers + layer) * a.bytes;
    const uint4* from = reinterpret_cast<const uint4*>(a.out ? a.pool + in_pool : a.packed + in_packed);
    uint4* to = reinterpret_cast<uint4*>(a.out ? a.packed + in_packed : a.pool + in_pool);
    u32 pieces = a.bytes / 16, step = gridDim.x * blockDim.x;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < pieces; i += 4 * step) {
        // Four loads on their way before the first is needed.
        uint4 values[4];
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (i + n * step < pieces) values[n] = from[i + n * step];
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (i + n * step < pieces) to[i + n * step] = values[n];
        }
    }
}
