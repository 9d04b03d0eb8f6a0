// One step of the action cache with given logits: one block of threads for each sequence.
#pragma once

#include "policy/decision.h"

namespace eaglerl {

struct ActionCacheStepCall {
  const float* logits;    // (sequences, horizon * actions)
  const float* features;  // (sequences, reference_size); null unless adaptive
  int32_t sequences;
  CacheArguments cache;
  DecisionRule rule;
  int32_t* action;
  int32_t* params;  // (sequences, columns)
};

struct ActionCacheStepShared {
  DecisionShared<1> decision;
  float warp_sums[kBlockWarps][2];
};

// Adaptive cache: turns kCompares into kHolds or kDecides.
template <class Block>
EAGLERL_DEVICE void compare_features(Block& block, const ActionCacheStepCall& call,
                                     const float* features, ActionCacheStepShared& shared) {
  DecisionShared<1>& decision = shared.decision;
  const int32_t size = call.cache.reference_size;
  block.template warp_sums<2>(
      1,
      [&](int thread, int, float (&sums)[2]) {
        const bool compares = decision.states[0] == kCompares;
        for (int32_t i = thread; i < size; i += kBlockThreads) {
          const float value = features[i];
          if (compares) sums[0] += value * call.cache.reference[decision.slots[0] * size + i];
          sums[1] += value * value;
        }
      },
      [&](int thread, int, int number, float total) {
        shared.warp_sums[thread / kWarpLanes][number] = total;
      });
  block.each([&](int thread) {
    if (thread != 0) return;
    float sums[2] = {};
    for (int warp = 0; warp < kBlockWarps; ++warp) {
      for (int i = 0; i < 2; ++i) sums[i] += shared.warp_sums[warp][i];
    }
    decision.norms[0] = sqrtf(sums[1]);
    if (decision.states[0] != kCompares) return;
    const bool resembles = cache_resembles(decision.records[0], sums[0], decision.norms[0]);
    decision.states[0] = resembles ? kHolds : kDecides;
  });
}

template <class Block>
EAGLERL_DEVICE void step_action_cache(Block& block, const ActionCacheStepCall& call,
                                      ActionCacheStepShared& shared) {
  const int64_t s = block.tile();
  const float* features = call.features + s * call.cache.reference_size;
  read_records(block, call.cache, call.rule.horizon, s, 1, shared.decision);
  if (call.cache.mode == kCacheAdaptive) compare_features(block, call, features, shared);
  const float* logits = call.logits + s * call.rule.horizon * call.rule.actions;
  choose_actions(block, Windows<1>{call.rule, call.cache, logits, s, shared.decision});
  keep_reference(block, call.cache, shared.decision, [&](int, int i) { return features[i]; });
  conclude(block, call.rule, call.cache, call.action, call.params, s, 1, shared.decision);
}

}  // namespace eaglerl
