#include "policy/policy_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "policy/philox.h"
#include "policy/policy_checks.h"

namespace eaglerl {
namespace {

constexpr int64_t kFewSequences = 16;

[[noreturn]] void refuse_twice(int64_t slot) {
  throw std::invalid_argument("slots must be distinct, got " + std::to_string(slot) + " twice");
}

// Marks one bit a slot. For hundreds of sequences, comparing all pairs would take longer than the
// decision.
void check_distinct(const int64_t* slots, int64_t sequences, int64_t count,
                    std::vector<uint64_t>& seen) {
  seen.assign(size_t((count + 63) / 64), 0);
  for (int64_t s = 0; s < sequences; ++s) {
    uint64_t& word = seen[size_t(slots[s] / 64)];
    const uint64_t bit = uint64_t(1) << (slots[s] % 64);
    if (word & bit) refuse_twice(slots[s]);
    word |= bit;
  }
}

int32_t choose(const Policy& policy, const float* logits, const Draw& draw, int64_t sequence,
               int64_t window) {
  const PolicyKernels& kernels = policy_kernels();
  const float* of_window = logits + window * policy.actions;
  if (draw.temperature == 0.0f) return kernels.argmax(of_window, policy.actions);
  alignas(64) float weights[kMaxActions];
  const float uniform =
      philox_uniform(draw.seed, draw.offset, uint32_t(sequence), uint32_t(window));
  return kernels.draw(of_window, policy.actions, draw.temperature, uniform, weights);
}

}  // namespace

void check_slots(const int64_t* slots, int64_t sequences, const ActionCacheView& cache,
                 std::vector<uint64_t>& seen) {
  if (slots == nullptr) {
    if (sequences <= cache.slots) return;
    throw std::invalid_argument("cache must have a slot for each of " + std::to_string(sequences) +
                                " sequences, has " + std::to_string(cache.slots));
  }
  for (int64_t s = 0; s < sequences; ++s) {
    if (slots[s] >= 0 && slots[s] < cache.slots) continue;
    throw std::invalid_argument("slots[" + std::to_string(s) + "] = " + std::to_string(slots[s]) +
                                " is outside [0, " + std::to_string(cache.slots) + ")");
  }
  if (sequences > kFewSequences) {
    check_distinct(slots, sequences, cache.slots, seen);
    return;
  }
  for (int64_t s = 1; s < sequences; ++s) {
    if (std::find(slots, slots + s, slots[s]) != slots + s) refuse_twice(slots[s]);
  }
}

bool cache_holds(const ActionCacheView& cache, int64_t slot, int64_t horizon, const float* features,
                 float* norm) {
  const int32_t* record = cache.state + slot * kRecordWords;
  const bool in_time = cache_in_time(record, cache.mode, horizon);
  if (cache.mode != kCacheAdaptive) return in_time;
  const PolicyKernels& kernels = policy_kernels();
  *norm = std::sqrt(kernels.dot(features, features, cache.reference_size));
  if (!in_time) return false;
  const float* reference = cache.reference + slot * cache.reference_size;
  return cache_resembles(record, kernels.dot(reference, features, cache.reference_size), *norm);
}

void take_hit(const Policy& policy, const ActionCacheView& cache, int64_t slot, int32_t* action,
              int32_t* params) {
  int32_t* record = cache.state + slot * kRecordWords;
  const bool scheduled = cache.mode == kCacheScheduled;
  const int64_t entry = slot * policy.horizon * kRingWords;
  cache_hit(record, scheduled ? cache.ring + entry : nullptr, policy.horizon);
  *action = record[kAction];
  copy_params(record + kAction, policy.columns, params);
}

void take_miss(const Policy& policy, const float* logits, const Draw& draw, int64_t sequence,
               const ActionCacheView& cache, int64_t slot, const float* features, float norm,
               int32_t* action, int32_t* params) {
  const bool fallback = !policy_kernels().all_finite(logits, policy.actions * policy.horizon);
  const bool scheduled = cache.state != nullptr && cache.mode == kCacheScheduled;
  int32_t taken[kRingWords];
  for (int64_t window = 0; window < (scheduled ? policy.horizon : 1); ++window) {
    const int32_t chosen =
        fallback ? policy.fallback_action : choose(policy, logits, draw, sequence, window);
    if (window == 0) write_action(taken, chosen, policy.action_params, policy.columns);
    if (!scheduled) continue;
    int32_t* entry = cache.ring + (slot * policy.horizon + window) * kRingWords;
    write_action(entry, chosen, policy.action_params, policy.columns);
  }
  *action = taken[0];
  copy_params(taken, policy.columns, params);
  if (cache.state == nullptr) return;
  int32_t* record = cache.state + slot * kRecordWords;
  cache_miss(record, taken, fallback);
  if (cache.mode != kCacheAdaptive || fallback) return;
  std::memcpy(cache.reference + slot * cache.reference_size, features,
              size_t(cache.reference_size) * sizeof(float));
  record[kReferenceNorm] = float_as_word(norm);
}

void action_cache_step(const Policy& policy, const float* logits, const float* features,
                       int64_t sequences, const int64_t* slots, const ActionCacheView& cache,
                       const Draw& draw, const EncodeOutputs& outputs) {
  std::vector<uint64_t> seen;
  check_slots(slots, sequences, cache, seen);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t slot = slots ? slots[s] : s;
    const float* compared = features ? features + s * cache.reference_size : nullptr;
    int32_t *action = outputs.action + s, *params = outputs.params + policy.columns * s;
    float norm = 0.0f;
    if (cache_holds(cache, slot, policy.horizon, compared, &norm)) {
      take_hit(policy, cache, slot, action, params);
    } else {
      take_miss(policy, logits + s * policy.actions * policy.horizon, draw, s, cache, slot,
                compared, norm, action, params);
    }
  }
}

}  // namespace eaglerl
