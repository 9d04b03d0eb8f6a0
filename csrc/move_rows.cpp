#include "move_rows.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace eaglerl {

void move_rows(char* base, const Lanes& lanes, int64_t row_bytes, const int32_t* rows,
               int64_t count, int64_t destination, int64_t capacity) {
  int64_t in_place = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < destination + i || rows[i] >= capacity || (i > 0 && rows[i] <= rows[i - 1])) {
      throw std::invalid_argument(
          "rows must ascend strictly, with destination + i <= rows[i] < capacity = " +
          std::to_string(capacity) + "; rows[" + std::to_string(i) +
          "] = " + std::to_string(rows[i]) + ", destination = " + std::to_string(destination));
    }
    if (in_place == i && rows[i] == destination + i) ++in_place;
  }
  if (in_place == count) return;
  for (int64_t lane = 0; lane < lanes.outer * lanes.inner; ++lane) {
    char* lane_base = base + lane / lanes.inner * lanes.outer_stride +
                      lane % lanes.inner * lanes.inner_stride;
    for (int64_t i = in_place; i < count; ++i) {
      std::memcpy(lane_base + (destination + i) * row_bytes, lane_base + rows[i] * row_bytes,
                  row_bytes);
    }
  }
}

}  // namespace eaglerl
