// Turns logits into actions and updates the action cache's records: one block of threads for a few
// sequences. `Block` is CudaBlock, or a test's imitation of it.
#pragma once

#include <math.h>

#include "cuda/device_common.h"
#include "policy/action_cache.h"
#include "policy/philox.h"

namespace eaglerl {

// How logits become actions.
struct DecisionRule {
  const int32_t* action_params;  // (actions, columns)
  int32_t actions;
  int32_t columns;
  int32_t horizon;  // horizon * actions logits for each sequence
  int32_t fallback_action;
  float temperature;  // 0: the largest logit, ties by the lowest index
  uint64_t seed;
  uint64_t offset;
};

struct CacheArguments {
  int32_t* state;  // null: no cache
  float* reference;
  int32_t* ring;
  const int64_t* slots;  // null: sequence s has slot s
  int64_t slot_count;
  CacheMode mode;
  int32_t reference_size;
};

enum SequenceState : int32_t {
  kSkips = 0,     // past the last sequence, or with a slot out of range: no record is touched
  kHolds = 1,     // keeps its action
  kCompares = 2,  // keeps its action if the features resemble those of its decision
  kDecides = 3,   // takes a new action
};

template <int kSequences>
struct DecisionShared {
  int32_t records[kSequences][kRecordWords];
  int64_t slots[kSequences];
  int32_t states[kSequences];
  float norms[kSequences];  // of the features, in an adaptive cache
  int32_t finite[kSequences];
  int32_t actions[kSequences];
  float values[kBlockThreads];
  int32_t indices[kBlockThreads];
  float part_sums[kBlockThreads];
  int32_t last_block;
};

EAGLERL_DEVICE bool is_finite(float value) {
  return (float_as_word(value) & 0x7f800000) != 0x7f800000;
}

template <int kSequences>
EAGLERL_DEVICE bool any_at_least(SequenceState state, const DecisionShared<kSequences>& shared) {
  bool any = false;
#pragma unroll
  for (int s = 0; s < kSequences; ++s) any = any || shared.states[s] >= state;
  return any;
}

// Reads the records of sequences [first, first + count) and derives the states that can be told
// without features.
template <class Block, int kSequences>
EAGLERL_DEVICE void read_records(Block& block, const CacheArguments& cache, int64_t horizon,
                                 int64_t first, int count, DecisionShared<kSequences>& shared) {
  block.each([&](int thread) {
    const int s = thread / kRecordWords;
    const int word = thread % kRecordWords;
    if (s >= kSequences) return;
    int64_t slot = -1;
    if (cache.state && s < count) {
      slot = cache.slots ? cache.slots[first + s] : first + s;
      if (slot >= cache.slot_count) slot = -1;
    }
    if (slot >= 0) shared.records[s][word] = cache.state[slot * kRecordWords + word];
    if (word == 0) shared.slots[s] = slot;
  });
  block.each([&](int s) {
    if (s >= kSequences) return;
    SequenceState state = kSkips;
    if (s < count && !cache.state) state = kDecides;
    if (s < count && shared.slots[s] >= 0) {
      const bool in_time = cache_in_time(shared.records[s], cache.mode, horizon);
      state = !in_time ? kDecides : cache.mode == kCacheAdaptive ? kCompares : kHolds;
    }
    shared.states[s] = state;
    shared.finite[s] = 1;
    shared.norms[s] = 0.0f;
  });
}

EAGLERL_DEVICE float probability(float logit, float largest, float temperature) {
  return expf((logit - largest) / temperature);
}

// Returns the smallest index at which the running sum of probabilities exceeds `uniform` times
// their total. Lane l summed the l-th part of the row; part_sums are in the order of the lanes.
EAGLERL_DEVICE int32_t draw_action(const float* logits, int32_t actions, const float* part_sums,
                                   float largest, float temperature, float uniform) {
  const int32_t part = (actions + kWarpLanes - 1) / kWarpLanes;
  float total = 0.0f;
  for (int lane = 0; lane < kWarpLanes; ++lane) total += part_sums[lane];
  const float share = uniform * total;
  float sum = 0.0f;
  int lane = 0;
  while (lane < kWarpLanes - 1 && !(sum + part_sums[lane] > share)) sum += part_sums[lane++];
  // Summed one by one, the terms may round below the part's sum, so that none exceeds the share:
  // then the last index with a probability above 0 is chosen.
  int32_t chosen = actions - 1;
  for (int32_t i = lane * part; i < actions && i < (lane + 1) * part; ++i) {
    const float term = probability(logits[i], largest, temperature);
    sum += term;
    if (term > 0.0f) chosen = i;
    if (sum > share) break;
  }
  return chosen;
}

// Assigns the windows of the sequences' logits to warps, in rounds of one window a warp.
template <int kSequences>
struct Windows {
  const DecisionRule& rule;
  const CacheArguments& cache;
  const float* logits;  // of the block's first sequence
  int64_t first;
  DecisionShared<kSequences>& shared;

  EAGLERL_DEVICE int count() const { return kSequences * (cache.ring ? rule.horizon : 1); }

  // Returns null if the thread's warp has nothing to choose in this round.
  EAGLERL_DEVICE const float* row(int round, int thread) const {
    const int number = round * kBlockWarps + thread / kWarpLanes;
    const int s = number % kSequences;
    if (number >= count() || shared.states[s] != kDecides) return nullptr;
    return logits + (int64_t(s) * rule.horizon + number / kSequences) * rule.actions;
  }

  EAGLERL_DEVICE float uniform(int round, int thread) const {
    const int number = round * kBlockWarps + thread / kWarpLanes;
    return philox_uniform(rule.seed, rule.offset, uint32_t(first + number % kSequences),
                          uint32_t(number / kSequences));
  }

  EAGLERL_DEVICE void keep(int round, int thread, int32_t index) const {
    const int number = round * kBlockWarps + thread / kWarpLanes;
    const int s = number % kSequences;
    const int window = number / kSequences;
    const int32_t action = shared.finite[s] ? index : rule.fallback_action;
    if (window == 0) shared.actions[s] = action;
    if (!cache.ring) return;
    int32_t* entry = cache.ring + (shared.slots[s] * rule.horizon + window) * kRingWords;
    write_action(entry, action, rule.action_params, rule.columns);
  }
};

// Leaves the largest logit of each warp's window, and the first index that has it, with lane 0.
template <class Block, int kSequences>
EAGLERL_DEVICE void find_largest(Block& block, const Windows<kSequences>& windows, int round) {
  DecisionShared<kSequences>& shared = windows.shared;
  block.each([&](int thread) {
    const float* row = windows.row(round, thread);
    if (!row) return;
    float best = -INFINITY;
    int32_t index = windows.rule.actions - 1;
    for (int32_t i = thread % kWarpLanes; i < windows.rule.actions; i += kWarpLanes) {
      const float value = row[i];
      index = value > best ? i : index;
      best = value > best ? value : best;
    }
    shared.values[thread] = best;
    shared.indices[thread] = index;
  });
  block.each([&](int thread) {
    if (thread % kWarpLanes != 0 || !windows.row(round, thread)) return;
    float best = shared.values[thread];
    int32_t index = shared.indices[thread];
    for (int other = thread + 1; other < thread + kWarpLanes; ++other) {
      const float value = shared.values[other];
      if (value > best || (value == best && shared.indices[other] < index)) {
        best = value;
        index = shared.indices[other];
      }
    }
    shared.values[thread] = best;
    shared.indices[thread] = index;
    if (windows.rule.temperature == 0.0f) windows.keep(round, thread, index);
  });
}

template <class Block, int kSequences>
EAGLERL_DEVICE void draw(Block& block, const Windows<kSequences>& windows, int round) {
  DecisionShared<kSequences>& shared = windows.shared;
  const DecisionRule& rule = windows.rule;
  const int32_t part = (rule.actions + kWarpLanes - 1) / kWarpLanes;
  block.each([&](int thread) {
    const float* row = windows.row(round, thread);
    if (!row) return;
    const int lane = thread % kWarpLanes;
    const float largest = shared.values[thread - lane];
    float sum = 0.0f;
    for (int32_t i = lane * part; i < rule.actions && i < (lane + 1) * part; ++i) {
      sum += probability(row[i], largest, rule.temperature);
    }
    shared.part_sums[thread] = sum;
  });
  block.each([&](int thread) {
    const float* row = windows.row(round, thread);
    if (thread % kWarpLanes != 0 || !row) return;
    const int32_t index =
        draw_action(row, rule.actions, shared.part_sums + thread, shared.values[thread],
                    rule.temperature, windows.uniform(round, thread));
    windows.keep(round, thread, index);
  });
}

// Leaves the actions of window 0 in `shared`, and of all windows in the ring, if there is one.
template <class Block, int kSequences>
EAGLERL_DEVICE void choose_actions(Block& block, const Windows<kSequences>& windows) {
  DecisionShared<kSequences>& shared = windows.shared;
  const int64_t width = int64_t(windows.rule.horizon) * windows.rule.actions;
  block.each([&](int thread) {
    for (int s = 0; s < kSequences; ++s) {
      if (shared.states[s] != kDecides) continue;
      for (int64_t i = thread; i < width; i += kBlockThreads) {
        // A benign race: all threads that store here store 0.
        if (!is_finite(windows.logits[s * width + i])) shared.finite[s] = 0;
      }
    }
  });
  const int rounds = (windows.count() + kBlockWarps - 1) / kBlockWarps;
  for (int round = 0; round < rounds; ++round) {
    find_largest(block, windows, round);
    if (windows.rule.temperature > 0.0f) draw(block, windows, round);
  }
}

// Writes actions and parameters, and the records of sequences that have a slot.
template <class Block, int kSequences>
EAGLERL_DEVICE void conclude(Block& block, const DecisionRule& rule, const CacheArguments& cache,
                             int32_t* out_action, int32_t* out_params, int64_t first, int count,
                             DecisionShared<kSequences>& shared) {
  block.each([&](int s) {
    if (s >= count) return;
    int32_t* record = shared.records[s];
    const bool decides = shared.states[s] == kDecides;
    const int32_t action = decides ? shared.actions[s] : rule.fallback_action;
    int32_t result[kRingWords];
    write_action(result, action, rule.action_params, rule.columns);
    if (shared.states[s] == kHolds) {
      const int64_t entry = shared.slots[s] * rule.horizon * kRingWords;
      cache_hit(record, cache.ring ? cache.ring + entry : nullptr, rule.horizon);
      for (int i = 0; i < kRingWords; ++i) result[i] = record[kAction + i];
    } else if (decides && cache.state) {
      cache_miss(record, result, !shared.finite[s]);
      const bool compares = cache.mode == kCacheAdaptive && shared.finite[s];
      if (compares) record[kReferenceNorm] = float_as_word(shared.norms[s]);
    }
    out_action[first + s] = result[0];
    copy_params(result, rule.columns, out_params + (first + s) * rule.columns);
  });
  block.each([&](int thread) {
    const int s = thread / kRecordWords;
    const int word = thread % kRecordWords;
    if (s >= count || shared.slots[s] < 0) return;
    cache.state[shared.slots[s] * kRecordWords + word] = shared.records[s][word];
  });
}

// Stores the features of new decisions as the reference for later steps. `feature(s, i)` is the
// i-th of sequence s.
template <class Block, int kSequences, class Feature>
EAGLERL_DEVICE void keep_reference(Block& block, const CacheArguments& cache,
                                   const DecisionShared<kSequences>& shared, Feature feature) {
  if (cache.mode != kCacheAdaptive || !cache.state) return;
  block.each([&](int thread) {
    for (int s = 0; s < kSequences; ++s) {
      if (shared.states[s] != kDecides || !shared.finite[s]) continue;
      float* reference = cache.reference + shared.slots[s] * cache.reference_size;
      for (int i = thread; i < cache.reference_size; i += kBlockThreads) {
        reference[i] = feature(s, i);
      }
    }
  });
}

}  // namespace eaglerl
