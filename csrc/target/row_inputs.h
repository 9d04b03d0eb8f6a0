// The inputs of a product, 32 at a time. Included only by sources that are compiled once per
// instruction set.
#pragma once

#include "common/vector_math.h"
#include "target/code_kernels.h"

namespace eaglerl::EAGLERL_ISA {

// To nearest, ties to even; a NaN stays one.
static inline VecF round_to_bfloat16(VecF value) {
  const VecU bits = (VecU)value;
  const VecU rounded = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
  return value == value ? (VecF)rounded : (VecF)(bits | 0x400000u);
}

// One row's 32 inputs from `place` on.
static inline void compute_inputs(const RowSource& source, int64_t row, int64_t place, float* out) {
  const float* x = source.x + row * source.stride + place;
  for (int i = 0; i < kSumInputs; i += kLanes) {
    VecF value = load(x + i);
    if (source.kind == RowSource::kNorm) {
      value = value * source.inverse[row] * load(source.weight + place + i);
    } else if (source.kind == RowSource::kSiluMul) {
      value = silu(value) * load(x + source.up + i);
    }
    store(out + i, source.rounded ? round_to_bfloat16(value) : value);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
