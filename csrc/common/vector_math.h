// Vector functions that several kernels share. Included only by sources that are compiled once per
// instruction set.
#pragma once

#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

static inline float sum_of_squares(const float* x, int64_t count) {
  VecF sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int part = 0; part < 4; ++part) {
      const VecF value = load(x + i + part * kLanes);
      sums[part] += value * value;
    }
  }
  for (; i + kLanes <= count; i += kLanes) {
    const VecF value = load(x + i);
    sums[0] += value * value;
  }
  float total = horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total += x[i] * x[i];
  return total;
}

static inline VecF silu(VecF x) {
  // exp(-x) overflows a float below x = -88. Below -87, |silu(x)| is less than 2e-36: 0 is
  // returned.
  const VecF lowest = splat(-87.0f);
  const VecF exponent = maximum(x, lowest) * -kLog2E;
  // For large positive x, exp2_vector returns 0 and the result is x.
  return x < lowest ? VecF{} : x / (exp2_vector(exponent) + 1.0f);
}

}  // namespace eaglerl::EAGLERL_ISA
