// Rows of tensors that have one for each slot.
#pragma once

#include <cstdint>

#include "common/checks.h"

namespace eaglerl {

// Addresses of one slot after another in tensors with a row for each.
template <typename T>
class Slots {
 public:
  Slots(const char* name, uintptr_t address, int64_t slots, int64_t stride)
      : first_(element_address<T>(name, address, slots * stride)), stride_(stride) {}
  T* operator[](int64_t slot) const { return first_ + slot * stride_; }

 private:
  T* first_;
  int64_t stride_;
};

}  // namespace eaglerl
