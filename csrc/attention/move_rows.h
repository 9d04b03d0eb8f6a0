#pragma once

#include <cstdint>

namespace eaglerl {

// Where the first row of every lane lies; strides in bytes.
struct Lanes {
  int64_t outer;
  int64_t outer_stride;
  int64_t inner;
  int64_t inner_stride;
};

// In each lane, copies cache row rows[i] to row destination + i, in ascending order.
// Throws std::invalid_argument where rows do not ascend strictly, or rows[i] < destination + i: an
// in-place copy would then overwrite what a later one reads. So do lanes that overlap.
void move_rows(char* base, const Lanes& lanes, int64_t row_bytes, const int32_t* rows,
               int64_t count, int64_t destination, int64_t capacity);

}  // namespace eaglerl
