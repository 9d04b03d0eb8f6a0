// A block of threads imitated on the host, for the bodies of the CUDA kernels. Each phase runs
// thread by thread in an order that a test chooses: code that needs a barrier where it has none
// gives other results in another order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/device_common.h"

namespace eaglerl {

class EmulatedBlock {
 public:
  // Orders: 0 upwards, 1 downwards, above that shuffled with it as the seed.
  EmulatedBlock(int tile, int tiles, int group, uint32_t order)
      : tile_(tile), tiles_(tiles), group_(group), order_(order), random_(order) {}

  int tile() const { return tile_; }
  int tiles() const { return tiles_; }
  int group() const { return group_; }

  template <class Phase>
  void each(Phase phase) {
    for (int thread : shuffled(kBlockThreads)) phase(thread);
  }

  // Warps do not wait for each other between steps, so each runs through all of them.
  template <int kCount, class Terms, class Use>
  void warp_sums(int steps, Terms terms, Use use) {
    for (int warp : shuffled(kBlockWarps)) {
      for (int step = 0; step < steps; ++step) {
        float sums[kWarpLanes][kCount] = {};
        for (int lane : shuffled(kWarpLanes)) terms(warp * kWarpLanes + lane, step, sums[lane]);
        for (int number : shuffled(kCount)) {
          float total = 0.0f;
          for (int lane = 0; lane < kWarpLanes; ++lane) total += sums[lane][number];
          use(warp * kWarpLanes + number * (kWarpLanes / kCount), step, number, total);
        }
      }
    }
  }

  // Blocks run one after the other.
  bool is_last(uint32_t* ticket, uint32_t count, int32_t& flag) {
    flag = ++*ticket == count;
    if (flag) *ticket = 0;
    return flag;
  }

  static float fresh(const float* value) { return *value; }

  // Granules at the ends of a matrix may hold bytes beside it, which a device's memory always has
  // and AddressSanitizer would report.
  __attribute__((no_sanitize("address"))) static Granule load(const Granule* source) {
    Granule granule;
    for (int i = 0; i < 4; ++i) granule.words[i] = source->words[i];
    return granule;
  }

 private:
  std::vector<int> shuffled(int count) {
    std::vector<int> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (order_ == 1) std::reverse(numbers.begin(), numbers.end());
    if (order_ > 1) std::shuffle(numbers.begin(), numbers.end(), random_);
    return numbers;
  }

  int tile_;
  int tiles_;
  int group_;
  uint32_t order_;
  std::mt19937 random_;
};

}  // namespace eaglerl
