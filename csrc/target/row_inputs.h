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

// The last inputs of a row, which fill no whole block, one after the other; zeros behind.
static inline void compute_last_inputs(const RowSource& source, int64_t row, int64_t place,
                                       float* out) {
  const float* x = source.x + row * source.stride + place;
  const int count = int(source.inputs - place);
  for (int i = 0; i < kSumInputs; ++i) {
    float value = i < count ? x[i] : 0.0f;
    if (i < count && source.kind == RowSource::kNorm) {
      value = value * source.inverse[row] * source.weight[place + i];
    } else if (i < count && source.kind == RowSource::kSiluMul) {
      value = silu(splat(value))[0] * x[source.up + i];
    }
    out[i] = source.rounded ? round_to_bfloat16(splat(value))[0] : value;
  }
}

// One row's 32 inputs from `place` on.
static inline void compute_inputs(const RowSource& source, int64_t row, int64_t place, float* out) {
  if (source.inputs - place < kSumInputs) return compute_last_inputs(source, row, place, out);
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
