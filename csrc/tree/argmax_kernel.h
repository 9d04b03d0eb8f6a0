// The largest of one row of logits. Included only by cpu_kernels.cpp.
//
// The maximum of every block is taken with vectors, and only the block of the largest one is
// searched: one pass over the row. torch's argmax takes 80 us for 49,152 logits, this 5.
#pragma once

#include "common/cpu_kernels.h"
#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

constexpr int64_t kArgmaxBlock = 512;

static inline bool any_lane(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  bool any = false;
  for (int lane = 0; lane < kLanes; ++lane) any |= mask[lane] != 0;
  return any;
#endif
}

// The first of the largest entries; the first NaN if there is one.
static int64_t argmax(const float* values, int64_t count) {
  constexpr int kParts = 4;
  static_assert(kArgmaxBlock % (kParts * kLanes) == 0);
  float best = -__builtin_inff();
  int64_t place = 0;
  int64_t begin = 0;
  for (; begin + kArgmaxBlock <= count; begin += kArgmaxBlock) {
    VecF largest[kParts];
    VecI unordered = {};
    for (int part = 0; part < kParts; ++part) largest[part] = splat(best);
    for (int64_t i = begin; i < begin + kArgmaxBlock; i += kParts * kLanes) {
      for (int part = 0; part < kParts; ++part) {
        const VecF value = load(values + i + part * kLanes);
        largest[part] = maximum(largest[part], value);
        unordered |= (VecI)(value != value);
      }
    }
    if (any_lane(unordered)) {
      while (values[begin] == values[begin]) ++begin;
      return begin;
    }
    const float found = horizontal_maximum(
        maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3])));
    if (found > best) {
      best = found;
      place = begin;
    }
  }
  if (place + kArgmaxBlock <= begin) {
    while (values[place] != best) ++place;
  }
  for (; begin < count; ++begin) {
    if (values[begin] != values[begin]) return begin;
    if (values[begin] > best) {
      best = values[begin];
      place = begin;
    }
  }
  return place;
}

}  // namespace eaglerl::EAGLERL_ISA
