// Chooses an action from logits. Included only by policy_kernels.cpp.
#pragma once

#include "policy/policy_convert.h"

namespace eaglerl::EAGLERL_ISA {

static bool all_finite(const float* x, int64_t count) {
  // x - x is 0 for finite x and NaN otherwise, and a sum with NaN is NaN: one comparison at the
  // end.
  VecF differences = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) differences += load(x + i) - load(x + i);
  if (i < count) {
    const VecF rest = load_some(x + i, count - i);
    differences += rest - rest;
  }
  return horizontal_sum(differences) == 0.0f;
}

static inline float largest(const float* logits, int64_t count) {
  if (count < kLanes) {
    float best = logits[0];
    for (int64_t i = 1; i < count; ++i) best = logits[i] > best ? logits[i] : best;
    return best;
  }
  // The last vector may overlap the one before it, which does not change a maximum.
  VecF best = load(logits + count - kLanes);
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) best = maximum(best, load(logits + i));
  return horizontal_maximum(best);
}

static int32_t argmax(const float* logits, int64_t count) {
  const float best = largest(logits, count);
  int32_t i = 0;
  while (i + 1 < count && logits[i] != best) ++i;
  return i;
}

static int32_t draw(const float* logits, int64_t count, float temperature, float uniform,
                    float* scratch) {
  const float best = largest(logits, count);
  int64_t i = 0;
  for (; i < count; i += kLanes) {
    const int64_t left = count - i < kLanes ? count - i : kLanes;
    const VecF value = left == kLanes ? load(logits + i) : load_some(logits + i, left);
    const VecF weight = exp2_vector((value - best) / temperature * kLog2E);
    store_some(scratch + i, weight, left);
  }
  double total = 0.0, cumulative = 0.0;
  for (i = 0; i < count; ++i) total += scratch[i];
  const double bound = uniform * total;
  for (i = 0; i + 1 < count; ++i) {
    cumulative += scratch[i];
    if (cumulative > bound) break;
  }
  return int32_t(i);
}

}  // namespace eaglerl::EAGLERL_ISA
