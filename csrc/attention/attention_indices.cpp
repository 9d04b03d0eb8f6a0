#include "attention/attention_indices.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace eaglerl {

void check_index(const char* name, int64_t row, int64_t value, int64_t limit) {
  if (value >= 0 && value < limit) return;
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(row) +
                              "] = " + std::to_string(value) + " is outside [0, " +
                              std::to_string(limit) + ")");
}

void check_indices(const AttentionCall& call, const AttentionLimits& limits, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    check_index("positions", row, call.positions[row], limits.table_length);
    check_index("cache_rows", row, call.cache_rows[row], call.capacity);
    check_index("prefix_lengths", row, call.prefix_lengths[row],
                call.capacity - call.block_length + 1);
    if (call.slots) check_index("slots", row, call.slots[row], limits.slot_count);
  }
}

AttentionCall with_own_indices(AttentionCall call, int64_t rows, std::vector<int32_t>& indices) {
  if (int64_t(indices.size()) < 4 * rows) indices.resize(size_t(4 * rows));
  int32_t* place = indices.data();
  for (const int32_t** field :
       {&call.positions, &call.cache_rows, &call.prefix_lengths, &call.slots}) {
    if (!*field) continue;
    *field = std::copy_n(*field, rows, place) - rows;
    place += rows;
  }
  return call;
}

}  // namespace eaglerl
