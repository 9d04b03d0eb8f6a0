// A dense Llama-family decoder over block matrices: one call runs a whole pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/cached_attention.h"
#include "common/checks.h"
#include "target/projection.h"

namespace eaglerl {

struct DecoderLayer {
  std::vector<float> input_norm, post_norm;
  std::vector<float> query_norm, key_norm;  // empty: none
  Projection qkv, out, gate_up, down;
};

struct DecoderSizes {
  int64_t hidden;
  int64_t intermediate;
  int32_t query_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int64_t vocabulary;
  float eps;
  float scale;   // of the scores
  RowKind rows;  // of products
};

// What one pass reads and writes besides the cache.
struct DecoderPass {
  const int64_t* token_ids;  // (rows)
  int64_t rows;
  AttentionCall attention;  // its cache is that of layer 0; qkv, out and norms are filled in here
  int64_t layer_stride;     // elements from a layer's cache to the next one's
  const int32_t* feature_layers;
  int64_t feature_count;
  float* features;  // (rows, feature_count * hidden)
  float* last;      // (rows, hidden), after the final norm
  float* logits;    // (logits_rows, vocabulary): of the last rows of the pass
  int64_t logits_rows;
};

class BlockDecoder : public PythonObject {
 public:
  BlockDecoder(const DecoderSizes& sizes, std::shared_ptr<const BlockMatrix> embedding,
               std::vector<DecoderLayer> layers, std::vector<float> norm, Projection head);

  const DecoderSizes& sizes() const { return sizes_; }
  int64_t layer_count() const { return int64_t(layers_.size()); }

  // Runs one pass. Throws std::invalid_argument, before anything is written, where an index leaves
  // its table. Passes may run side by side, each over a cache of its own.
  void run(const DecoderPass& pass, const AttentionLimits& limits, int threads) const;

 private:
  DecoderSizes sizes_;
  std::shared_ptr<const BlockMatrix> embedding_;
  std::vector<DecoderLayer> layers_;
  std::vector<float> norm_;
  Projection head_;
};

}  // namespace eaglerl
