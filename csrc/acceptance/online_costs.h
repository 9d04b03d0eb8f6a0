// What a cycle costs.
#pragma once

#include <cstdint>
#include <vector>

namespace eaglerl {

// Seconds of a cycle: verifying r + 1 rows at context length c takes base[r] + c * slope[r], a
// draft of d + 1 passes of s + 1 slots first_pass[s] + d * later_pass[s] + (1 + d) * c *
// draft_slope.
struct OnlineCosts {
  std::vector<double> base;
  std::vector<double> slope;
  std::vector<double> first_pass;
  std::vector<double> later_pass;
  double draft_slope;

  double verify_seconds(int64_t rows, double context) const {
    return base[rows - 1] + context * slope[rows - 1];
  }
  double later_seconds(int64_t slots, double context) const {
    return later_pass[slots - 1] + context * draft_slope;
  }
  // Of so many rounds after the first.
  double passes_seconds(int64_t slots, double rounds, double context) const {
    return first_pass[slots - 1] + rounds * later_pass[slots - 1] +
           (1.0 + rounds) * context * draft_slope;
  }
};

// The passes of a cycle's draft, by the number of their slots, which never rises.
struct DraftPasses {
  struct Run {
    int64_t slots;
    int64_t passes;
  };

  int64_t first = 0;       // slots of the first pass; 0: nothing was drafted
  std::vector<Run> later;  // all others

  void clear() {
    first = 0;
    later.clear();
  }
  void add(int64_t slots) {
    if (first == 0) {
      first = slots;
    } else if (later.empty() || later.back().slots != slots) {
      later.push_back({slots, 1});
    } else {
      ++later.back().passes;
    }
  }
};

}  // namespace eaglerl
