// Checks that the bindings of the choice of nodes share.
#pragma once

#include <array>

#include "acceptance/selection_rules.h"
#include "common/checks.h"

namespace eaglerl {

// Sums of survivals fit a word within these.
constexpr int32_t kMostWidth = 32, kMostDepth = 31, kMostRuleRows = 256, kMostLookup = 64;

inline SelectionSizes read_selection_sizes(const std::array<int32_t, 4>& sizes) {
  const auto [top_k, depth, rows, lookup] = sizes;
  return {int32_t(check_between("top_k", top_k, 1, kMostWidth)),
          int32_t(check_between("depth", depth, 0, kMostDepth)),
          int32_t(check_between("rows", rows, 1, kMostRuleRows)),
          int32_t(check_between("lookup", lookup, 0, kMostLookup))};
}

}  // namespace eaglerl
