// What kernels that multiply with weight matrices have in common.
#pragma once
#include "tiles.cuh"

// What becomes of the sums, as the host numbers them.
static constexpr u32 TO_BF16 = 0;
static constexpr u32 TO_F32 = 1;
static constexpr u32 ADD = 2;    // to the f32 that stands there
static constexpr u32 GATED = 3;  // strip 2i activated times strip 2i + 1, as bf16
