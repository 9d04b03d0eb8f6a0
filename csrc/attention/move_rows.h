#pragma once

#include <cstdint>

namespace eaglerl {

// Where the first row of every lane (one layer's keys or values of one head) lies; strides in
// bytes.
struct Lanes {
  int64_t outer;
  int64_t outer_stride;
  int64_t inner;
  int64_t inner_stride;
};

// In each lane, copies cache row rows[i] to row destination + i, in ascending order.
// Throws std::invalid_argument if rows do not ascend strictly or rows[i] < destination + i, where a
// copy in place would overwrite a row before it is read, or if lanes overlap.
void move_rows(char* base, const Lanes& lanes, int64_t row_bytes, const int32_t* rows,
               int64_t count, int64_t destination, int64_t capacity);

}  // namespace eaglerl
