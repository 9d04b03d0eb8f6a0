#include "attention/move_rows.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "common/checks.h"

namespace eaglerl {
namespace {

void check_lanes(const Lanes& lanes, int64_t row_bytes, int64_t capacity) {
  check_between("capacity", capacity, 0, kLargestCount);
  check_size("the bytes of a row", row_bytes);
  const int64_t lane_bytes = check_product("a lane", {row_bytes, capacity});
  check_product("lanes", {lanes.outer, lanes.inner});
  check_size("the lanes' stride", lanes.outer_stride);
  check_size("the lanes' stride", lanes.inner_stride);
  const bool outer_is_wider = lanes.outer_stride >= lanes.inner_stride;
  const int64_t near = outer_is_wider ? lanes.inner : lanes.outer;
  const int64_t far = outer_is_wider ? lanes.outer : lanes.inner;
  const int64_t near_stride = outer_is_wider ? lanes.inner_stride : lanes.outer_stride;
  const int64_t far_stride = outer_is_wider ? lanes.outer_stride : lanes.inner_stride;
  check_product("the cache", {far, far_stride});
  const int64_t group =
      near > 1 ? check_product("the cache", {near - 1, near_stride}) + lane_bytes : lane_bytes;
  if ((near > 1 && near_stride < lane_bytes) || (far > 1 && far_stride < group)) {
    throw std::invalid_argument(
        "cache must not overlap itself: lanes of " + std::to_string(lane_bytes) + " bytes lie " +
        std::to_string(near_stride) + " and " + std::to_string(far_stride) + " bytes apart");
  }
}

}  // namespace

void move_rows(char* base, const Lanes& lanes, int64_t row_bytes, const int32_t* rows,
               int64_t count, int64_t destination, int64_t capacity) {
  check_lanes(lanes, row_bytes, capacity);
  check_between("destination", destination, 0, kLargestCount);
  int64_t in_place = 0;  // leading rows that need no move: the tree's first branch
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
  // No second buffer is needed: in ascending order with rows[i] >= destination + i, every row is
  // read before it is overwritten.
  for (int64_t lane = 0; lane < lanes.outer * lanes.inner; ++lane) {
    char* lane_base =
        base + lane / lanes.inner * lanes.outer_stride + lane % lanes.inner * lanes.inner_stride;
    for (int64_t i = in_place; i < count; ++i) {
      std::memcpy(lane_base + (destination + i) * row_bytes, lane_base + rows[i] * row_bytes,
                  row_bytes);
    }
  }
}

}  // namespace eaglerl
