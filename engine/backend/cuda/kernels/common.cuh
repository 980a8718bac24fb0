// What every kernel is written with: numbers, warps, tensor cores, copies and the order of launches.
//
// Self-contained on purpose: no header of the toolkit is needed, so that the compiler's library alone builds everything.
// Written for sm_80 and up; what is newer stands behind ARCH and has a way round.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDA_ARCH__
#define ARCH __CUDA_ARCH__
#else
#define ARCH 0
#endif

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void

static constexpr u32 WARP = 32;
static constexpr u32 ALL = 0xffffffffu;

DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }

// ---- Order of launches ---------------------------------------------------------------------------------------------------
// A kernel that is launched to overlap starts while the one before it still runs. Whatever is not the result of an earlier
// kernel (weights) may be read before `wait_for_before`; nothing else may be read or written. `let_next_start` only lets
// the next one's blocks come in early: they wait for this kernel's end all the same.

DEVICE void wait_for_before() {
#if ARCH >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEVICE void let_next_start() {
#if ARCH >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Numbers ---------------------------------------------------------------------------------------------------------------
// bfloat16 as its bits; two of them in a word, the first in the low half.

DEVICE float from_bf16(u16 bits) { return __uint_as_float(u32(bits) << 16); }
DEVICE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Rounded to nearest, ties to even.
DEVICE u32 to_bf16x2(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE u16 to_bf16(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE float from_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE u16 to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Products of pairs; `a - b` in one.
DEVICE u32 sub_bf16x2(u32 a, u32 b) {
    u32 difference;
    asm("{ .reg .b32 minus_one; mov.b32 minus_one, 0xbf80bf80; fma.rn.bf16x2 %0, %2, minus_one, %1; }"
        : "=r"(difference)
        : "r"(a), "r"(b));
    return difference;
}

DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    u32 product;
    asm("{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 %0, %1, %2, zero; }" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// e4m3 (4 bits of exponent, bias 7, no infinity). Two of them, the first in the low byte, to two bf16. Exact: bf16 holds all.
DEVICE u32 e4m3x2_to_bf16x2(u32 pair) {
    // Exponent and mantissa to bf16's places give the value times 2^-120, subnormals too.
    u32 spread = (pair & 0xff) | (pair & 0xff00) << 8;
    u32 bits = (spread & 0x80) << 8 | (spread & 0x800000) << 8 | (spread & 0x7f007f) << 4;
    return mul_bf16x2(bits, 0x7b807b80);  // 2^120 twice
}

// Rounded to nearest, ties to even; what is too large becomes the largest (448).
DEVICE u8 to_e4m3(float value) {
    u32 sign = __float_as_uint(value) >> 24 & 0x80;
    float size = fminf(fabsf(value), 448.0f);
    if (size < 0.015625f) {  // 2^-6: subnormals count in 2^-9
        return sign | u32(__float2int_rn(size * 512.0f));
    }
    u32 bits = __float_as_uint(size);
    bits += 0x7ffff + (bits >> 20 & 1);
    return sign | ((bits >> 20) - (120 << 3));
}

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

DEVICE float gelu_tanh(float x) {
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

// A gate's non-linearity, as the host numbers them.
static constexpr u32 SILU = 0;
static constexpr u32 GELU_TANH = 1;

DEVICE float activate(u32 activation, float x) { return activation == SILU ? silu(x) : gelu_tanh(x); }

// ---- Warps -----------------------------------------------------------------------------------------------------------------

DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, step));
    return value;
}

// Of all threads of the block, in an order that never changes; `scratch` holds 32 values. Every thread gets the result.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = value;
    __syncthreads();
    u32 warps = (blockDim.x + WARP - 1) / WARP;
    return warp_sum(lane_id() < warps ? scratch[lane_id()] : 0.0f);
}

// ---- Tensor cores: D (16x8) += A (16x16, row by row) x B (16x8, column by column) --------------------------------------------
// With g = lane / 4 and t = lane % 4 a lane holds
//   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]
//   d[0] = D[g][2t]  d[1] = D[g][2t+1]  d[2] = D[g+8][2t]  d[3] = D[g+8][2t+1]

DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Memory ----------------------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

// Four 8x8 matrices of 16-bit values; lanes 0-7 give the rows of the first, 8-15 of the second, and so on.
DEVICE void load_matrix_x4(u32 (&to)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

DEVICE void load_matrix_x4_transposed(u32 (&to)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

// Sixteen bytes that are read once: past the first cache, so that nothing else is pushed out of it.
DEVICE uint4 load_once(const void* pointer) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer));
    return value;
}

// Sixteen bytes from device to shared memory, in the background; zeros where `there` is false.
DEVICE void copy_16(void* shared, const void* global, bool there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(shared)), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}

DEVICE void copies_done_so_far() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `LATER` groups of copies are still on their way.
template <int LATER>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}
