// The action cache: how long a policy's decision is kept, slot by slot. The CPU loop and the CUDA
// kernels compile these rules; the Triton kernels take the layout from constants that the bindings
// export.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace eaglerl {

enum CacheMode : int32_t {
  kCacheFixed = 0,      // a decision is kept for `interval` steps
  kCacheAdaptive = 1,   // while the features resemble the decision's, `interval` steps at most
  kCacheScheduled = 2,  // a decision fills a ring: one entry for each of `horizon` intervals
};

// Words of a slot's record, 32 bits each. A record fills one cache line, so that slots that reset
// or step on different threads do not share one.
enum CacheWord : int32_t {
  kStep = 0,      // steps that the decision has served
  kInterval = 1,  // steps that it may serve (scheduled: each entry of the ring)
  kValid = 2,     // 0: decide at the next step
  kAction = 3,    // the action in force and its three parameters
  kTotalTokens = 4,
  kDepth = 5,
  kTopK = 6,
  kHits = 7,            // steps served by an earlier decision; counters wrap after 2^32 steps
  kMisses = 8,          // decisions
  kFallbacks = 9,       // decisions among them whose logits were not finite
  kThreshold = 10,      // float32, adaptive: smallest cosine similarity that keeps a decision
  kReferenceNorm = 11,  // float32, adaptive: norm of the features of the last decision
  kHorizon = 12,        // scheduled: entries of the ring, for who reads a record
  kRecordWords = 16,
};

// An entry of the ring: action, total_tokens, depth, top_k.
constexpr int32_t kRingWords = 4;

// Buckets of the sketch that stands for the features where g is not computed: 256 bytes a slot. For
// normal vectors of 3 * 576 numbers with a cosine of 0.9, the sketches' cosine is 0.90 +- 0.025 (of
// 0.98: +- 0.005; of 0: +- 0.125, which is 1 / sqrt(64)).
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

// A counter goes round instead of overflowing, which for signed words has no defined result.
EAGLERL_HOST_DEVICE inline void count_up(int32_t& word) { word = int32_t(uint32_t(word) + 1u); }

// Whether the steps of the decision are not used up: what can be said without the features. Records
// lie in a tensor that anyone may write to: one that no step can have left counts as used up, and
// how many entries the ring has is not theirs to say.
EAGLERL_HOST_DEVICE inline bool cache_in_time(const int32_t* record, CacheMode mode,
                                              int64_t horizon) {
  const int64_t windows = mode == kCacheScheduled ? horizon : 1;
  const int32_t step = record[kStep], interval = record[kInterval];
  return record[kValid] != 0 && step >= 0 && interval > 0 && step < interval * windows;
}

// Whether the features, by their dot product with the reference and their norm, still resemble
// those of the decision. False where a norm is zero, or anything is infinite or not a number:
// infinity is at least infinity, and so would pass for similar.
EAGLERL_HOST_DEVICE inline bool cache_resembles(const int32_t* record, float dot, float norm) {
  const float scale = norm * word_as_float(record[kReferenceNorm]);
  const bool comparable = scale > 0.0f && scale <= FLT_MAX;
  return comparable && dot >= word_as_float(record[kThreshold]) * scale;
}

// A step that the decision in force serves: one that is in time. `ring` is the slot's, null unless
// scheduled. Another thread may have changed the record since, so that the entry is looked up
// again.
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

// A step with a decision of its own. A fallback is not kept: the next step decides anew.
EAGLERL_HOST_DEVICE inline void cache_miss(int32_t* record, int32_t action, const int32_t* params,
                                           bool fallback) {
  record[kStep] = 1;
  record[kValid] = fallback ? 0 : 1;
  record[kAction] = action;
  for (int32_t word = 0; word < 3; ++word) record[kTotalTokens + word] = params[word];
  count_up(record[kMisses]);
  if (fallback) count_up(record[kFallbacks]);
}

// Sign of element n of [low | mid | high] in the sketch, whose bucket is n % kSketchSize: the count
// sketch of Charikar, Chen and Farach-Colton (2002) with the top bit of a multiplicative hash.
EAGLERL_HOST_DEVICE inline float sketch_sign(uint32_t n) {
  return (n * 2654435769u) >> 31 ? -1.0f : 1.0f;
}

}  // namespace eaglerl
