#pragma once

#include <cstdint>

#include "common/cpu_kernels.h"

namespace eaglerl {

struct AttentionLimits {
  int64_t table_length;  // rows of the cos and sin tables
  int64_t slot_count;
};

// Throws std::invalid_argument unless the sizes of a call make sense and fit what counts them.
void check_attention_sizes(const AttentionCall& call, const AttentionLimits& limits, int64_t rows);

// Rotates and writes the keys and values of all rows, then lets every row attend. Throws
// std::invalid_argument, before anything is written, where an index leaves its table or cache.
void cached_attention(const AttentionCall& call, const AttentionLimits& limits, int64_t rows,
                      int threads);

}  // namespace eaglerl
