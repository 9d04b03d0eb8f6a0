// A decision in one launch, for an MLP that reads low, mid and high (or features that are reduced
// already). The first layer has the long sums, e.g. 3 * 4,096 terms, and is split over blocks of
// threads; the last block to finish adds the parts in a fixed order and computes the rest.
#pragma once

#include "policy/folded_tile.h"

namespace eaglerl {

EAGLERL_DEVICE float activated(float value, Activation activation) {
  if (activation == kTanh) return tanhf(value);
  if (activation == kRelu) return value < 0.0f ? 0.0f : value;  // keeps NaN, unlike fmaxf
  if (activation == kSilu) return value / (1.0f + expf(-value));
  return value;
}

// The work of a group's last block: from the tiles' sums to actions and records.
template <class Block, typename Weight, int kSequences>
struct FoldedEnd : FoldedBlock<Block, Weight, kSequences> {
  using Rows = FloatRows<Weight>;

  // `works`: whether the tiles were summed; they are not if every sequence keeps its action.
  EAGLERL_DEVICE void run(bool works) {
    if (works) {
      add_norm_sums();
      compare();
    }
    if (any_at_least(kDecides, shared.decision)) run_layers();
    write_missing_logits();
    const int64_t width = int64_t(call.rule.horizon) * call.rule.actions;
    const float* logits = call.logits + first * width;
    choose_actions(block,
                   Windows<kSequences>{call.rule, call.cache, logits, first, shared.decision});
    keep_reference(block, call.cache, shared.decision, [&](int s, int i) {
      return call.plan.compares_sketch ? shared.sketch[s][i] : this->input(s, 0, i);
    });
    conclude(block, call.rule, call.cache, call.action, call.params, first, count, shared.decision);
  }

 private:
  using Base = FoldedBlock<Block, Weight, kSequences>;
  using Base::block;
  using Base::call;
  using Base::count;
  using Base::first;
  using Base::memory;
  using Base::shared;

  // Steps in which the block's warps take one sequence each.
  static constexpr int kSequenceSteps = (kSequences + kBlockWarps - 1) / kBlockWarps;

  EAGLERL_DEVICE float partial_sum(int tile, int s, int number) const {
    return Block::fresh(this->partial_sums(tile, s) + number);
  }

  EAGLERL_DEVICE void add_norm_sums() {
    const int width = call.layers[0].out;
    const auto tile_terms = [&](int thread, int step, float (&sums)[4]) {
      const int s = step * kBlockWarps + thread / kWarpLanes;
      if (s >= kSequences) return;
      for (int tile = thread % kWarpLanes; tile < call.plan.column_tiles; tile += kWarpLanes) {
        const int piece = tile / call.plan.piece_tiles;
        const float squares = partial_sum(tile, s, width);
#pragma unroll
        for (int p = 0; p < kMaxPieces; ++p) sums[p] += p == piece ? squares : 0.0f;
        sums[3] += partial_sum(tile, s, width + 1);
      }
    };
    const auto keep_total = [&](int thread, int step, int number, float total) {
      const int s = step * kBlockWarps + thread / kWarpLanes;
      if (s < kSequences) shared.totals[s][number] = total;
    };
    block.template warp_sums<4>(kSequenceSteps, tile_terms, keep_total);
    block.each([&](int thread) {
      const int s = thread / kMaxPieces;
      const int piece = thread % kMaxPieces;
      if (s >= kSequences) return;
      const float* totals = shared.totals[s];
      const float all = (totals[0] + totals[1] + totals[2]) / float(kMaxPieces * call.width);
      const float own = totals[piece] / float(call.width);
      const float mean = call.norm_chunks == 1 ? all : own;
      shared.scales[s][piece] = call.norm_chunks ? 1.0f / sqrtf(mean + call.eps) : 1.0f;
      shared.sketch_scales[s][piece] = 1.0f / sqrtf(own + call.eps);
    });
  }

  // Adaptive cache: turns kCompares into kHolds or kDecides. The whole features are known only
  // here, after the first layer: a sequence that keeps its action has paid for that layer, not for
  // the rest.
  EAGLERL_DEVICE void compare() {
    if (call.plan.compares_sketch) add_sketch();
    if (!call.plan.compares_sketch && !call.plan.compares_features) return;
    block.each([&](int s) {
      if (s >= kSequences) return;
      const bool sketched = call.plan.compares_sketch;
      const float dot = sketched ? shared.dots[s][0] : shared.totals[s][3];
      const float norm = sqrtf(sketched ? shared.dots[s][1] : shared.totals[s][0]);
      shared.decision.norms[s] = norm;
      if (shared.decision.states[s] != kCompares) return;
      const bool resembles = cache_resembles(shared.decision.records[s], dot, norm);
      shared.decision.states[s] = resembles ? kHolds : kDecides;
    });
  }

  EAGLERL_DEVICE void add_sketch() {
    block.each([&](int thread) {
      for (int pair = thread; pair < kSequences * kSketchSize; pair += kBlockThreads) {
        const int s = pair / kSketchSize;
        const int number = call.layers[0].out + kNormSums + pair % kSketchSize;
        shared.sketch[s][pair % kSketchSize] = add_tiles(s, number, shared.sketch_scales[s]);
      }
    });
    const auto sketch_terms = [&](int thread, int step, float (&sums)[2]) {
      const int s = step * kBlockWarps + thread / kWarpLanes;
      if (s >= kSequences) return;
      for (int i = thread % kWarpLanes; i < kSketchSize; i += kWarpLanes) {
        sums[0] += shared.sketch[s][i] * this->reference(s, i);
        sums[1] += shared.sketch[s][i] * shared.sketch[s][i];
      }
    };
    const auto keep_total = [&](int thread, int step, int number, float total) {
      const int s = step * kBlockWarps + thread / kWarpLanes;
      if (s < kSequences) shared.dots[s][number] = total;
    };
    block.template warp_sums<2>(kSequenceSteps, sketch_terms, keep_total);
  }

  // Adds one of the tiles' sums over all tiles, scaled by piece, in the order of the tiles. Float
  // atomics would add in any order, and the same inputs could then give different actions.
  EAGLERL_DEVICE float add_tiles(int s, int number, const float* scales) const {
    float total = 0.0f;
    for (int piece = 0; piece < call.piece_count; ++piece) {
      float sum = 0.0f;
      const int begin = piece * call.plan.piece_tiles;
#pragma unroll 16
      for (int i = 0; i < call.plan.piece_tiles; ++i) sum += partial_sum(begin + i, s, number);
      total += sum * scales[piece];
    }
    return total;
  }

  EAGLERL_DEVICE void run_layers() {
    const int stride = call.plan.activation_stride;
    float* place = memory;
    if (!call.plan.activations_in_shared) {
      place = call.activations + int64_t(block.group()) * 2 * kSequences * stride;
    }
    Rows x = {place, stride};
    Rows y = {place + kSequences * stride, stride};
    block.each([&](int thread) {
      const int width = call.layers[0].out;
      for (int pair = thread; pair < kSequences * width; pair += kBlockThreads) {
        const int s = pair / width;
        const int row = pair % width;
        const float sum = add_tiles(s, row, shared.scales[s]) + call.layers[0].bias[row];
        x.at(s, row) = activated(sum, call.activation);
      }
    });
    for (int layer = 1; layer < call.layer_count; ++layer) {
      const bool is_output = layer == call.layer_count - 1;
      multiply(call.layers[layer], x, [&](int s, int row, float value) {
        if (!is_output) {
          y.at(s, row) = activated(value, call.activation);
        } else if (shared.decision.states[s] == kDecides) {
          call.logits[(first + s) * call.layers[layer].out + row] = value;
        }
      });
      const Rows read = x;
      x = y;
      y = read;
    }
  }

  template <class Use>
  EAGLERL_DEVICE void multiply(const DenseLayer& layer, const Rows& x, Use use) {
    constexpr int kStepRows = kBlockWarps * kWarpRows;
    const auto row_of = [&](int thread, int step) {
      return (step * kBlockWarps + thread / kWarpLanes) * kWarpRows;
    };
    block.template warp_sums<kWarpRows * kSequences>(
        (layer.out + kStepRows - 1) / kStepRows,
        [&](int thread, int step, float (&sums)[kWarpRows * kSequences]) {
          add_products<Block, Weight, kSequences>(static_cast<const Weight*>(layer.weights),
                                                  layer.in, row_of(thread, step), layer.out, x,
                                                  layer.in, thread % kWarpLanes, sums);
        },
        [&](int thread, int step, int number, float total) {
          const int row = row_of(thread, step) + number / kSequences;
          if (row < layer.out) use(number % kSequences, row, total + layer.bias[row]);
        });
  }

  EAGLERL_DEVICE void write_missing_logits() {
    const int64_t width = int64_t(call.rule.horizon) * call.rule.actions;
    block.each([&](int thread) {
      for (int s = 0; s < count; ++s) {
        if (shared.decision.states[s] == kDecides) continue;
        for (int64_t i = thread; i < width; i += kBlockThreads) {
          call.logits[(first + s) * width + i] = NAN;
        }
      }
    });
  }
};

template <class Block, typename Weight, int kSequences>
EAGLERL_DEVICE void folded_decision(Block& block, const FoldedCall& call,
                                    FoldedShared<kSequences>& shared, float* memory) {
  const int64_t first = int64_t(block.group()) * kSequences;
  const int count = int(call.sequences - first < kSequences ? call.sequences - first : kSequences);
  read_records(block, call.cache, call.rule.horizon, first, count, shared.decision);
  // All blocks of a group get the same `works`: each reads the records before it takes its ticket,
  // and only the last one, which has seen all tickets, changes them.
  const bool works = any_at_least(kCompares, shared.decision);
  if (works) {
    FoldedTile<Block, Weight, kSequences>{{block, call, shared, memory, first, count}}.run();
  }
  if (block.is_last(call.tickets + block.group(), uint32_t(block.tiles()),
                    shared.decision.last_block)) {
    FoldedEnd<Block, Weight, kSequences>{{block, call, shared, memory, first, count}}.run(works);
  }
}

}  // namespace eaglerl
