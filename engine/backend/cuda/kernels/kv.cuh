// How keys and values lie in the pool, for the kernels that write and that read them.
//
// A block of a layer holds `block_tokens` positions (a multiple of 16): keys, then values, each [kv_heads][block_tokens][head_dim],
// in bf16 or e4m3. With e4m3 scales follow, f32: of keys, then of values, each [kv_heads][block_tokens].
#pragma once
#include "common.cuh"

// As the host numbers them.
static constexpr u32 KV_BF16 = 0;
static constexpr u32 KV_FP8 = 1;

static constexpr float LARGEST_E4M3 = 448.0f;

// In `kv_rows`: a token whose keys and values nobody wants.
static constexpr u32 NO_ROW = 0xffffffffu;
