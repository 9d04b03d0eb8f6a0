// The action cache: how long each slot keeps a policy's decision. The CPU code and the CUDA kernels
// compile these rules; the Triton kernels take the layout from constants that the bindings export.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace eaglerl {

enum CacheMode : int32_t {
  kCacheFixed = 0,      // keeps a decision for `interval` steps
  kCacheAdaptive = 1,   // keeps it while the features resemble its own, at most `interval` steps
  kCacheScheduled = 2,  // keeps a ring of `horizon` decisions, `interval` steps each
};

// Columns of a table of actions, which are also the limits of a draft on a device. A table may lack
// the last column; then no tokens are looked up for its actions.
enum ActionColumn : int32_t {
  kTotalTokensColumn = 0,
  kDepthColumn = 1,
  kTopKColumn = 2,
  kLookupTokensColumn = 3,
  kActionColumns = 4,
  kFewestActionColumns = 3,
};

// Words of a slot's record, 32 bits each. A record fills one cache line, so that threads that reset
// or step different slots do not share one.
enum CacheWord : int32_t {
  kStep = 0,      // steps that the decision has served so far
  kInterval = 1,  // steps that it may serve (scheduled: that each entry may serve)
  kValid = 2,     // 0: decide at the next step
  kAction = 3,    // the kept action, then a word for each column
  kTotalTokens = kAction + 1 + kTotalTokensColumn,
  kDepth = kAction + 1 + kDepthColumn,
  kTopK = kAction + 1 + kTopKColumn,
  kLookupTokens = kAction + 1 + kLookupTokensColumn,
  // Steps served by an earlier decision; counters wrap after 2^32 steps.
  kHits = kAction + 1 + kActionColumns,
  kMisses = kHits + 1,     // decisions
  kFallbacks = kHits + 2,  // decisions whose logits were not finite
  // float32, adaptive: smallest cosine similarity that keeps a decision, and norm of the features
  // of the last one.
  kThreshold = kHits + 3,
  kReferenceNorm = kHits + 4,
  kHorizon = kHits + 5,  // scheduled: entries of the ring, for readers of a record
  kRecordWords = 16,
};

// An entry of the ring: the action, then a word for each column, as in a record.
constexpr int32_t kRingWords = 1 + kActionColumns;

// Buckets of the sketch that an adaptive cache compares if g is not computed: 256 bytes a slot. For
// normal vectors of 3 * 576 numbers with a cosine of 0.9, the sketches' cosine is 0.90 +- 0.025 (of
// 0.98: +- 0.005; of 0: +- 0.125 = 1 / sqrt(64)).
constexpr int32_t kSketchSize = 64;

EAGLERL_HOST_DEVICE inline float word_as_float(int32_t word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

EAGLERL_HOST_DEVICE inline int32_t float_as_word(float value) {
  int32_t word;
  memcpy(&word, &value, sizeof word);
  return word;
}

// Wraps around instead of overflowing, which is undefined for signed words.
EAGLERL_HOST_DEVICE inline void count_up(int32_t& word) { word = int32_t(uint32_t(word) + 1u); }

// Writes an action and its parameters as a record and an entry of the ring hold them. A column that
// the table lacks is 0.
EAGLERL_HOST_DEVICE inline void write_action(int32_t* words, int32_t action, const int32_t* table,
                                             int32_t columns) {
  words[0] = action;
  for (int32_t column = 0; column < kActionColumns; ++column) {
    words[1 + column] = column < columns ? table[int64_t(action) * columns + column] : 0;
  }
}

// Copies the parameters that a table with so many columns has. With the constant bound, a GPU keeps
// `words` in registers.
EAGLERL_HOST_DEVICE inline void copy_params(const int32_t* words, int32_t columns,
                                            int32_t* params) {
  for (int32_t column = 0; column < kActionColumns; ++column) {
    if (column < columns) params[column] = words[1 + column];
  }
}

// Returns whether the decision has steps left, which can be told without the features. Records are
// in a tensor that anyone may write to: a record that no step can have left counts as used up, and
// the ring's length is an argument, not read from the record.
EAGLERL_HOST_DEVICE inline bool cache_in_time(const int32_t* record, CacheMode mode,
                                              int64_t horizon) {
  const int64_t windows = mode == kCacheScheduled ? horizon : 1;
  const int32_t step = record[kStep], interval = record[kInterval];
  return record[kValid] != 0 && step >= 0 && interval > 0 && step < interval * windows;
}

// Returns whether the features, given their dot product with the reference and their norm, still
// resemble those of the decision. False if a norm is zero or anything is infinite or NaN: infinity
// >= infinity is true and would count as similar.
EAGLERL_HOST_DEVICE inline bool cache_resembles(const int32_t* record, float dot, float norm) {
  const float scale = norm * word_as_float(record[kReferenceNorm]);
  const bool comparable = scale > 0.0f && scale <= FLT_MAX;
  return comparable && dot >= word_as_float(record[kThreshold]) * scale;
}

// Takes a step that the kept decision serves. `ring` is the slot's, null unless scheduled. Another
// thread may have changed the record after cache_in_time(), so the entry's index is checked again.
EAGLERL_HOST_DEVICE inline void cache_hit(int32_t* record, const int32_t* ring, int64_t horizon) {
  if (ring != nullptr) {
    const int32_t step = record[kStep], interval = record[kInterval];
    const int64_t window = step >= 0 && interval > 0 ? step / interval : 0;
    const int32_t* entry = ring + (window < horizon ? window : 0) * kRingWords;
    for (int32_t word = 0; word < kRingWords; ++word) record[kAction + word] = entry[word];
  }
  count_up(record[kStep]);
  count_up(record[kHits]);
}

// Takes a step with a new decision, as write_action() gives it. A fallback is not kept: the next
// step decides again.
EAGLERL_HOST_DEVICE inline void cache_miss(int32_t* record, const int32_t* taken, bool fallback) {
  record[kStep] = 1;
  record[kValid] = fallback ? 0 : 1;
  for (int32_t word = 0; word < kRingWords; ++word) record[kAction + word] = taken[word];
  count_up(record[kMisses]);
  if (fallback) count_up(record[kFallbacks]);
}

// Returns the sign of element n of [low | mid | high] in the sketch; its bucket is n % kSketchSize.
// This is the count sketch of Charikar, Chen and Farach-Colton (2002) with the top bit of a
// multiplicative hash (2^32 divided by the golden ratio) as the sign.
EAGLERL_HOST_DEVICE inline float sketch_sign(uint32_t n) {
  return (n * 2654435769u) >> 31 ? -1.0f : 1.0f;
}

}  // namespace eaglerl
