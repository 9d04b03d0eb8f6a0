// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Random
// numbers are a function of a key and a counter, so every device draws the same ones.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace eaglerl {

// Runs ten rounds, which turn the counter into four random words.
EAGLERL_HOST_DEVICE inline void philox4x32_10(uint32_t counter[4], uint32_t key_0, uint32_t key_1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * counter[0];
    const uint64_t second = uint64_t(0xCD9E8D57u) * counter[2];
    const uint32_t next[4] = {uint32_t(second >> 32) ^ counter[1] ^ key_0, uint32_t(second),
                              uint32_t(first >> 32) ^ counter[3] ^ key_1, uint32_t(first)};
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

// Returns a number in [0, 1) of 24 bits, the precision of a float: with more, it could round up
// to 1. An action with a probability below 2^-24 = 6e-8 may therefore never be drawn. The key is
// the seed, the counter (offset, sequence, window).
EAGLERL_HOST_DEVICE inline float philox_uniform(uint64_t seed, uint64_t offset, uint32_t sequence,
                                                uint32_t window) {
  uint32_t counter[4] = {uint32_t(offset), uint32_t(offset >> 32), sequence, window};
  philox4x32_10(counter, uint32_t(seed), uint32_t(seed >> 32));
  return float(counter[0] >> 8) * 5.9604644775390625e-8f;  // 2^-24
}

}  // namespace eaglerl
