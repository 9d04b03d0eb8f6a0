// The kernels that policy_kernels.cpp provides for every instruction set. Tensors have one of three
// element types; sums are float.
#pragma once

#include <cstdint>

#include "policy/policy_types.h"

namespace eaglerl {

constexpr int kFeatureLayers = 3;  // low, mid, high

// One token's features before normalisation: low, mid and high, of the same width.
struct FeatureRow {
  const void* chunk[kFeatureLayers];
  int64_t width;
  ElementType type;
};

struct FeatureNorm {
  int32_t chunks;  // number of chunks with a norm each: 0, 1 or 3
  float eps;
  const float* weight;  // over all chunks; null: ones
};

// y[row] = activation(x[row] weight^T + bias) for a matrix of (out, in).
struct LayerCall {
  const float* const* x;
  float* const* y;
  const void* weight;
  const float* bias;  // null: none
  int64_t in;
  int64_t out;
  ElementType type;
  Activation activation;
};

struct PolicyKernels {
  // Normalises and concatenates low, mid and high: writes 3 * width floats.
  void (*prepare_features)(const FeatureRow&, const FeatureNorm&, float* out);
  // Writes kSketchSize floats, see sketch_sign in action_cache.h.
  void (*sketch)(const FeatureRow&, float eps, float* out);
  void (*layer)(const LayerCall&, int64_t row_begin, int64_t row_end, int64_t column_begin,
                int64_t column_end);
  void (*to_float)(const void* x, ElementType, int64_t count, float* out);
  void (*from_float)(const float* x, ElementType, int64_t count, void* out);  // ties to even
  float (*dot)(const float* x, const float* y, int64_t count);
  bool (*all_finite)(const float* x, int64_t count);
  int32_t (*argmax)(const float* logits, int64_t count);  // ties: the lowest index
  // The first index at which the cumulative softmax(logits / temperature) exceeds `uniform`.
  int32_t (*draw)(const float* logits, int64_t count, float temperature, float uniform,
                  float* scratch);
  // Reads memory with plain vector loads, for measuring bandwidth. The result only keeps the
  // compiler from removing the loop.
  float (*read)(const void* memory, int64_t bytes);
};

// The kernels of the instruction set that cpu_kernels() uses.
const PolicyKernels& policy_kernels();

}  // namespace eaglerl
