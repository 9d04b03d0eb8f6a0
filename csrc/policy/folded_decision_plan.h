// The arguments of a folded decision, and how its work is split into blocks of threads.
#pragma once

#include "policy/decision.h"

namespace eaglerl {

constexpr int kMaxPieces = 3;   // low, mid, high
constexpr int kMaxLayers = 32;  // the arguments of a launch have a fixed size, at most 4 KiB
constexpr int kNormSums = 2;    // behind a tile's sums: squares, products with the reference
constexpr int kMaxSequences = 1024;

struct DenseLayer {
  const void* weights;  // (out, in)
  const float* bias;
  int32_t out;
  int32_t in;
};

struct FoldedPlan {
  int32_t block_sequences;  // sequences of a block
  int32_t groups;           // of block_sequences sequences each
  int32_t tile_columns;     // columns, and rows, of the first layer's matrix for one block
  int32_t tile_rows;
  int32_t piece_tiles;  // tiles along each of low, mid and high; no tile spans two of them
  int32_t column_tiles;
  int32_t row_tiles;
  int32_t partial_width;      // floats of a tile's sums for one sequence
  int32_t activation_stride;  // floats between two sequences' activations
  int32_t shared_floats;
  bool activations_in_shared;
  bool compares_features;  // an adaptive cache compares the features, or their sketch
  bool compares_sketch;
  int64_t ticket_count;
  int64_t partial_floats;
  int64_t scratch_floats;  // includes the activations unless they are in shared memory
};

struct FoldedCall {
  const void* pieces[kMaxPieces];
  int64_t row_strides[kMaxPieces];
  int32_t piece_count;
  int32_t width;  // of a piece
  ElementType input_type;
  int64_t input_rows;
  const int64_t* rows;  // (row_count) rows of the input; null: all
  int64_t row_count;
  const int64_t* last;  // (sequences) index into these rows; null: row s for sequence s
  int32_t sequences;

  DenseLayer layers[kMaxLayers];
  int32_t layer_count;
  ElementType weight_type;
  Activation activation;
  const float* norm_weight;  // null: ones
  int32_t norm_chunks;       // 0, 1 or 3
  float eps;

  CacheArguments cache;
  DecisionRule rule;
  float* logits;    // (sequences, horizon * actions)
  int32_t* action;  // (sequences)
  int32_t* params;  // (sequences, columns)

  uint32_t* tickets;  // (plan.ticket_count) zeros; left as zeros
  float* partial_sums;
  float* activations;  // used if they do not fit into shared memory
  FoldedPlan plan;
};

struct ColumnTile {
  int number;
  int piece;
  int begin;  // first column, within the piece
  int columns;
};

EAGLERL_HOST_DEVICE inline int smaller(int a, int b) { return a < b ? a : b; }

EAGLERL_HOST_DEVICE inline ColumnTile column_tile(const FoldedCall& call, int number) {
  const int piece = number / call.plan.piece_tiles;
  const int begin = number % call.plan.piece_tiles * call.plan.tile_columns;
  return {number, piece, begin, smaller(call.plan.tile_columns, call.width - begin)};
}

// Plans a call of which all but the tickets and the scratch memory is set. The plan does not depend
// on the device, so neither do the results.
//
// Example: low, mid and high of 4,096, 128 hidden units, bfloat16, one sequence. A warp's load
// spans 256 columns. Tiles of 4 loads would give 12 * 4 = 48 blocks; tiles of 2 loads give 24 * 4 =
// 96 and are chosen. The last block then adds 24 * 130 floats, 12 KiB.
inline FoldedPlan plan_folded_decision(const FoldedCall& call) {
  constexpr int32_t kSharedFloats =
      10'240;                            // 40 KiB; with FoldedShared below the 48 KiB of every GPU
  constexpr int64_t kWantedBlocks = 96;  // enough for most multiprocessors of a large GPU
  constexpr int32_t kRowStep = 32;       // rows that a block multiplies in one step: 8 warps * 4
  const auto parts = [](int64_t whole, int64_t part) { return int32_t((whole + part - 1) / part); };
  const int32_t out = call.layers[0].out;
  FoldedPlan plan = {};
  plan.block_sequences = call.sequences == 1 ? 1 : 8;
  plan.groups = parts(call.sequences, plan.block_sequences);
  const int32_t warp_columns = int32_t(32 * 16 / element_size(call.weight_type));
  // Takes the longest tiles that still fill the GPU, so that the last block adds fewer sums. Then,
  // if there are blocks to spare, more rows, which share the features that a block has read.
  const auto blocks = [&] { return int64_t(plan.column_tiles) * plan.row_tiles * plan.groups; };
  plan.tile_rows = kRowStep;
  plan.row_tiles = parts(out, kRowStep);
  for (int32_t loads = 4; loads >= 1; loads /= 2) {
    plan.tile_columns = loads * warp_columns;
    plan.piece_tiles = parts(call.width, plan.tile_columns);
    plan.column_tiles = call.piece_count * plan.piece_tiles;
    if (blocks() >= kWantedBlocks) break;
  }
  while (plan.row_tiles > 1 && blocks() >= 8 * kWantedBlocks) {
    plan.tile_rows *= 2;
    plan.row_tiles = parts(out, plan.tile_rows);
  }
  const bool adaptive = call.cache.state && call.cache.mode == kCacheAdaptive;
  plan.compares_features = adaptive && call.piece_count == 1;
  plan.compares_sketch = adaptive && call.piece_count > 1;
  plan.partial_width = out + kNormSums + (plan.compares_sketch ? kSketchSize : 0);
  int32_t widest = 0;
  for (int i = 0; i + 1 < call.layer_count; ++i) {
    widest = call.layers[i].out > widest ? call.layers[i].out : widest;
  }
  plan.activation_stride = parts(widest, 8) * 8;
  const int64_t tile_floats = int64_t(plan.block_sequences) * plan.tile_columns;
  const int64_t activations = 2 * int64_t(plan.block_sequences) * plan.activation_stride;
  plan.activations_in_shared = activations <= kSharedFloats;
  plan.shared_floats = int32_t(tile_floats);
  if (plan.activations_in_shared && activations > tile_floats) {
    plan.shared_floats = int32_t(activations);
  }
  plan.ticket_count = plan.groups;
  const int64_t partial_rows = int64_t(plan.groups) * plan.column_tiles * plan.block_sequences;
  // Rounded up, because the activations behind are read in vectors of 4.
  plan.partial_floats = (partial_rows * plan.partial_width + 3) / 4 * 4;
  plan.scratch_floats =
      plan.partial_floats + (plan.activations_in_shared ? 0 : plan.groups * activations);
  return plan;
}

}  // namespace eaglerl
