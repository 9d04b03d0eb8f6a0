// Results of a panel to where they belong. Included only by sources that are compiled once per
// instruction set.
#pragma once

#include "common/simd.h"
#include "target/code_kernels.h"

namespace eaglerl::EAGLERL_ISA {

// Writes kLanes outputs of each row from `first` on, of which the matrix may have fewer.
template <int kRows>
static inline void write_results(const VecF (&results)[kRows], int64_t first, int64_t outputs,
                                 const ProductTarget& target) {
  if (first >= outputs) return;
  const int64_t lanes = outputs - first;
  for (int r = 0; r < kRows; ++r) {
    float* place = target.out + r * target.stride + first;
    if (lanes >= kLanes) {
      VecF value = results[r];
      if (target.bias) value += load(target.bias + first);
      store(place, target.accumulate ? load(place) + value : value);
      continue;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      float value = results[r][lane];
      if (target.bias) value += target.bias[first + lane];
      place[lane] = target.accumulate ? place[lane] + value : value;
    }
  }
}

}  // namespace eaglerl::EAGLERL_ISA
