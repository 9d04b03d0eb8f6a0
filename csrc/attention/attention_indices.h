// Checks of the indices that attention is given.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cached_attention.h"

namespace eaglerl {

// Throws std::invalid_argument unless value is in [0, limit).
void check_index(const char* name, int64_t row, int64_t value, int64_t limit);

void check_indices(const AttentionCall& call, const AttentionLimits& limits, int64_t rows);

// Copies a call's indices: another thread may change them between check and use.
AttentionCall with_own_indices(AttentionCall call, int64_t rows, std::vector<int32_t>& indices);

}  // namespace eaglerl
