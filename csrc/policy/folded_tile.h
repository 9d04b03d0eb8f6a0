// The part of a folded decision's first layer that one block computes: a tile of its matrix.
#pragma once

#include "common/matrix_rows.h"
#include "policy/decision.h"
#include "policy/folded_decision_plan.h"

namespace eaglerl {

template <int kSequences>
struct FoldedShared {
  DecisionShared<kSequences> decision;
  int64_t sources[kSequences];  // input row of each sequence, -1 for an index out of range
  float warp_sums[kBlockWarps][2 * kSequences];
  float totals[kSequences][4];  // the pieces' sums of squares, the dot product with the reference
  float scales[kSequences][kMaxPieces];
  float sketch_scales[kSequences][kMaxPieces];
  float sketch[kSequences][kSketchSize];
  float dots[kSequences][2];  // the sketch's dot products with the reference and itself
};

// The state of one block, which serves one group of sequences.
template <class Block, typename Weight, int kSequences>
struct FoldedBlock {
  Block& block;
  const FoldedCall& call;
  FoldedShared<kSequences>& shared;
  float* memory;  // shared memory, call.plan.shared_floats floats
  int64_t first;  // first sequence of the group
  int count;      // sequences of the group

  // An index out of range reads as NaN, which leads to the fallback action.
  EAGLERL_DEVICE float input(int s, int piece, int column) const {
    if (shared.decision.states[s] < kCompares) return 0.0f;
    const int64_t row = shared.sources[s];
    if (row < 0) return NAN;
    const void* data = piece == 0 ? call.pieces[0] : piece == 1 ? call.pieces[1] : call.pieces[2];
    const int64_t stride = piece == 0   ? call.row_strides[0]
                           : piece == 1 ? call.row_strides[1]
                                        : call.row_strides[2];
    return element_as_float(data, row * stride + column, call.input_type);
  }

  EAGLERL_DEVICE float reference(int s, int column) const {
    const int64_t slot = shared.decision.slots[s];
    if (shared.decision.states[s] != kCompares) return 0.0f;
    return call.cache.reference[slot * call.cache.reference_size + column];
  }

  // Returns the place of a tile's unscaled sums for one sequence; the sums for the norms follow.
  EAGLERL_DEVICE float* partial_sums(int tile, int s) const {
    const int64_t row = (int64_t(block.group()) * call.plan.column_tiles + tile) * kSequences + s;
    return call.partial_sums + row * call.plan.partial_width;
  }
};

// The work of every block of a group: its tile of columns and rows.
template <class Block, typename Weight, int kSequences>
struct FoldedTile : FoldedBlock<Block, Weight, kSequences> {
  using Rows = FloatRows<Weight>;

  EAGLERL_DEVICE void run() {
    find_sources();
    sum_tile();
  }

 private:
  using Base = FoldedBlock<Block, Weight, kSequences>;
  using Base::block;
  using Base::call;
  using Base::first;
  using Base::memory;
  using Base::partial_sums;
  using Base::shared;

  EAGLERL_DEVICE void find_sources() {
    block.each([&](int s) {
      if (s >= kSequences) return;
      int64_t row = -1;
      if (shared.decision.states[s] >= kCompares) {
        row = call.last ? call.last[first + s] : first + s;
        if (row >= call.row_count) row = -1;
        if (call.rows && row >= 0) row = call.rows[row];
        if (row >= call.input_rows) row = -1;
      }
      shared.sources[s] = row;
    });
  }

  EAGLERL_DEVICE void sum_tile() {
    const ColumnTile tile = column_tile(call, block.tile() % call.plan.column_tiles);
    const int row_tile = block.tile() / call.plan.column_tiles;
    const int row_begin = row_tile * call.plan.tile_rows;
    const int row_end = smaller(row_begin + call.plan.tile_rows, call.layers[0].out);
    const Rows x = {memory, call.plan.tile_columns};
    load_tile(tile, x);
    if (row_tile == 0) write_norm_sums(tile);
    const Weight* weights = static_cast<const Weight*>(call.layers[0].weights) +
                            int64_t(tile.piece) * call.width + tile.begin;
    constexpr int kStepRows = kBlockWarps * kWarpRows;
    const int steps = (row_end - row_begin + kStepRows - 1) / kStepRows;
    const auto row_of = [&](int thread, int step) {
      return row_begin + (step * kBlockWarps + thread / kWarpLanes) * kWarpRows;
    };
    block.template warp_sums<kWarpRows * kSequences>(
        steps,
        [&](int thread, int step, float (&sums)[kWarpRows * kSequences]) {
          add_products<Block, Weight, kSequences>(weights, call.layers[0].in, row_of(thread, step),
                                                  row_end, x, tile.columns, thread % kWarpLanes,
                                                  sums);
        },
        [&](int thread, int step, int number, float total) {
          const int row = row_of(thread, step) + number / kSequences;
          if (row < row_end) partial_sums(tile.number, number % kSequences)[row] = total;
        });
  }

  // Loads the tile's floats into shared memory, and leaves each warp's sums of squares and of
  // products with the reference.
  EAGLERL_DEVICE void load_tile(const ColumnTile& tile, const Rows& x) {
    const bool compares = call.plan.compares_features;
    block.template warp_sums<2 * kSequences>(
        1,
        [&](int thread, int, float (&sums)[2 * kSequences]) {
          for (int column = thread; column < tile.columns; column += kBlockThreads) {
            const int n = tile.piece * call.width + tile.begin + column;
            const float norm_weight = call.norm_weight ? call.norm_weight[n] : 1.0f;
#pragma unroll
            for (int s = 0; s < kSequences; ++s) {
              const float value = this->input(s, tile.piece, tile.begin + column);
              x.at(s, column) = value * norm_weight;
              sums[s] += value * value;
              if (compares) sums[kSequences + s] += value * this->reference(s, n);
            }
          }
        },
        [&](int thread, int, int number, float total) {
          shared.warp_sums[thread / kWarpLanes][number] = total;
        });
  }

  EAGLERL_DEVICE void write_norm_sums(const ColumnTile& tile) {
    block.each([&](int number) {
      if (number >= 2 * kSequences) return;
      float total = 0.0f;
      for (int warp = 0; warp < kBlockWarps; ++warp) total += shared.warp_sums[warp][number];
      float* sums = partial_sums(tile.number, number % kSequences) + call.layers[0].out;
      sums[number / kSequences] = total;
    });
    if (!call.plan.compares_sketch) return;
    block.each([&](int thread) {
      const int begin = tile.piece * call.width + tile.begin;
      for (int pair = thread; pair < kSequences * kSketchSize; pair += kBlockThreads) {
        const int s = pair / kSketchSize;
        const int bucket = pair % kSketchSize;
        float sum = 0.0f;
        // The first column of the tile that falls into this bucket.
        const int column = (bucket - begin % kSketchSize + kSketchSize) % kSketchSize;
        for (int c = column; c < tile.columns; c += kSketchSize) {
          sum += sketch_sign(uint32_t(begin + c)) * this->input(s, tile.piece, tile.begin + c);
        }
        partial_sums(tile.number, s)[call.layers[0].out + kNormSums + bucket] = sum;
      }
    });
  }
};

}  // namespace eaglerl
