// A policy's decision on the CPU: FC, MLP, action and action cache. Arguments are checked already.
#pragma once

#include <cstdint>
#include <vector>

#include "policy/action_cache.h"
#include "policy/policy_kernels.h"

namespace eaglerl {

struct PolicyLayer {
  const void* weight;
  const float* bias;
  int64_t in;
  int64_t out;
};

// The addresses of the policy's weights, which are not copied.
struct Policy {
  std::vector<PolicyLayer> mlp;  // hidden layers, then the logits
  PolicyLayer fc;                // weight null: no FC
  ElementType type;              // of all matrices
  Activation activation;
  FeatureNorm norm;
  const int32_t* action_params;  // (actions, columns)
  int64_t actions;
  int32_t columns;
  int64_t horizon;
  int32_t fallback_action;
  bool reads_layers;  // the input is [low | mid | high], not reduced features

  int64_t input_width() const { return fc.weight ? fc.in : mlp.front().in; }
  int64_t logits_width() const { return mlp.back().out; }
};

struct ActionCacheView {
  CacheMode mode;
  int32_t* state;  // (slots, kRecordWords); null: no cache
  int64_t slots;
  float* reference;  // (slots, reference_size), null unless adaptive
  int64_t reference_size;
  int32_t* ring;  // (slots, horizon, kRingWords), null unless scheduled
};

struct EncodeInputs {
  const void* part[kFeatureLayers];  // low, mid, high; mid null: one matrix holds all columns
  int64_t stride[kFeatureLayers];    // of rows, in elements
  ElementType type;
  int64_t available;    // rows of the inputs
  const int64_t* rows;  // null: all rows in order
  int64_t row_count;
  const int64_t* last;  // last row of each sequence; null: every row is a sequence
  int64_t sequences;
  const int64_t* slots;  // null: sequence s has slot s
};

struct EncodeOutputs {
  void* features;  // (row_count, h) of the inputs' type; null: not wanted
  float* logits;   // (sequences, horizon * actions)
  int32_t* action;
  int32_t* params;  // (sequences, columns)
};

struct Draw {
  float temperature;
  uint64_t seed;
  uint64_t offset;
};

// Throws std::invalid_argument unless all of index[0, count) are in [0, end). `index` may be null.
void check_range(const char* name, const int64_t* index, int64_t count, int64_t end);

// Decides for all sequences. Throws std::invalid_argument, before anything changes, if an index is
// out of range or a slot occurs twice. Returns the seconds spent on the features, 0 if none are
// wanted.
double encode(const Policy& policy, const EncodeInputs& inputs, const ActionCacheView& cache,
              const Draw& draw, const EncodeOutputs& outputs, int threads);

// Runs the cache step alone, with given logits. `features` are (sequences, reference_size); only an
// adaptive cache uses them.
void action_cache_step(const Policy& policy, const float* logits, const float* features,
                       int64_t sequences, const int64_t* slots, const ActionCacheView& cache,
                       const Draw& draw, const EncodeOutputs& outputs);

}  // namespace eaglerl
