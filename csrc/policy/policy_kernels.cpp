// Compiled once per instruction set, like cpu_kernels.cpp and under its rule for inline functions.
#include "policy/policy_kernels.h"

#include "policy/policy_choose.h"
#include "policy/policy_features.h"
#include "policy/policy_layer.h"

namespace eaglerl::EAGLERL_ISA {

extern const PolicyKernels policy;

static float read(const void* memory, int64_t bytes) {
  const float* source = (const float*)memory;
  VecF sums[8] = {};
  for (int64_t i = 0; i + 8 * kLanes <= bytes / 4; i += 8 * kLanes) {
    for (int part = 0; part < 8; ++part) sums[part] += load(source + i + part * kLanes);
  }
  for (int part = 1; part < 8; ++part) sums[0] += sums[part];
  return horizontal_sum(sums[0]);
}

const PolicyKernels policy = {prepare_features, sketch, layer, to_float, from_float, dot,
                              all_finite,       argmax, draw,  read};

}  // namespace eaglerl::EAGLERL_ISA
