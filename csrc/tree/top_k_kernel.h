// log(sum(exp(row))) and the top_k largest entries of one row of logits. Included only by
// cpu_kernels.cpp.
//
// A first pass takes the maximum of every block of 64 logits, with vectors. Then only blocks whose
// maximum reaches the top_k-th largest maximum are searched one logit at a time: without ties top_k
// blocks, 640 of 32,000 logits at top_k 10.
#pragma once

#include <math.h>

#include "common/cpu_kernels.h"
#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

constexpr int kMaximaBlock = 64;

// Keeps values[0, count) in descending order; an equal value goes behind those already there.
static inline int insert_descending(float* values, int32_t* ids, int count, int capacity,
                                    float value, int32_t id) {
  if (count == capacity && !(value > values[count - 1])) return count;
  int place = count < capacity ? count : capacity - 1;
  while (place > 0 && value > values[place - 1]) {
    values[place] = values[place - 1];
    if (ids) ids[place] = ids[place - 1];
    --place;
  }
  values[place] = value;
  if (ids) ids[place] = id;
  return count < capacity ? count + 1 : capacity;
}

static inline float block_maximum(const float* logits, int64_t count) {
  if (count == kMaximaBlock) {
    VecF best = load(logits);
    for (int i = kLanes; i < kMaximaBlock; i += kLanes) best = maximum(best, load(logits + i));
    return horizontal_maximum(best);
  }
  float best = logits[0];
  for (int64_t i = 1; i < count; ++i) best = logits[i] > best ? logits[i] : best;
  return best;
}

// Returns NaN if any logit is NaN. The sum is float32 in 4 * kLanes parts: of a vocabulary of
// 32,000, a part has 500 terms with AVX-512, and a relative rounding error of at most 500 * 2^-24 =
// 3e-5.
static inline float sum_of_exponentials(const float* logits, int64_t count, float maximum_logit) {
  const float shift = -maximum_logit * kLog2E;
  VecF sums[4] = {};
  VecI unordered = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int part = 0; part < 4; ++part) {
      const VecF value = load(logits + i + part * kLanes);
      sums[part] += exp2_vector(value * kLog2E + shift);
      unordered |= (VecI)(value != value);
    }
  }
  float total = horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  bool any_unordered = false;
  for (; i < count; ++i) {
    total += exp2_vector(splat(logits[i] * kLog2E + shift))[0];
    any_unordered |= logits[i] != logits[i];
  }
  for (int lane = 0; lane < kLanes; ++lane) any_unordered |= unordered[lane] != 0;
  return any_unordered ? __builtin_nanf("") : total;
}

static TopKResult top_k(const float* logits, int64_t vocab, int top_k, float* values, int32_t* ids,
                        float* block_maxima) {
  const int64_t blocks = (vocab + kMaximaBlock - 1) / kMaximaBlock;
  float* largest_maxima = block_maxima + blocks;
  int found = 0;
  const int wanted = top_k < blocks ? top_k : int(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kMaximaBlock;
    const int64_t count = vocab - begin < kMaximaBlock ? vocab - begin : kMaximaBlock;
    block_maxima[block] = block_maximum(logits + begin, count);
    found = insert_descending(largest_maxima, nullptr, found, wanted, block_maxima[block], 0);
  }
  const float maximum_logit = largest_maxima[0];
  // top_k logits, the maxima of top_k blocks, are at least `bound`: a block whose maximum is below
  // it has none of the top_k largest.
  const bool bounded = blocks >= top_k;
  const float bound = largest_maxima[wanted - 1];
  int count = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (bounded && block_maxima[block] < bound) continue;
    const int64_t begin = block * kMaximaBlock;
    const int64_t end = vocab - begin < kMaximaBlock ? vocab : begin + kMaximaBlock;
    for (int64_t i = begin; i < end; ++i) {
      count = insert_descending(values, ids, count, top_k, logits[i], int32_t(i));
    }
  }
  const float total = sum_of_exponentials(logits, vocab, maximum_logit);
  return {maximum_logit + logf(total), count};
}

}  // namespace eaglerl::EAGLERL_ISA
