// Linear layers on few or many rows. Included only by policy_kernels.cpp.
#pragma once

#include <math.h>

#include "common/vector_math.h"
#include "policy/policy_convert.h"

namespace eaglerl::EAGLERL_ISA {

// Output columns computed at once. With four rows these are twelve sums, enough to hide the latency
// of a fused multiply-add (8 would do), and 4 of 16 registers (AVX2) are left for the operands.
constexpr int kTileColumns = 3;
constexpr int kTileRows = 4;
// A single row is bound by memory, and more columns are more streams for the hardware prefetcher.
// More than eight would evict each other from an 8-way first-level cache if the weights' rows are a
// multiple of 4 KiB apart.
constexpr int kSingleRowColumns = 8;
// With more than kTileRows rows, a layer is computed in pieces of this many inputs, so that a
// tile's operands stay in the first-level cache: 4 * 1,024 floats of x and 3 * 1,024 of weights
// take 28 KiB.
constexpr int64_t kInputBlock = 1024;

// tanh with a relative error of 2 * 2^-24. Near zero, where 1 - 2 / (exp(2x) + 1) would cancel, an
// odd minimax polynomial (relative error 5e-9) is used.
static inline VecF tanh_vector(VecF x) {
  const VecF magnitude = maximum(x, -x);
  const VecF square = x * x;
  VecF p = splat(-5.70499e-3f);
  p = p * square + 2.063909e-2f;
  p = p * square - 5.373971e-2f;
  p = p * square + 1.3331442e-1f;
  p = p * square - 3.3333282e-1f;
  const VecF near_zero = x + x * (square * p);
  // tanh(10) rounds to 1; the bound keeps the exponential in the range of exp2_vector.
  const VecF bounded = magnitude < splat(10.0f) ? magnitude : splat(10.0f);
  const VecF far = 1.0f - 2.0f / (exp2_vector(bounded * (2.0f * kLog2E)) + 1.0f);
  const VecF signed_far = x < VecF{} ? -far : far;
  const VecF result = magnitude < splat(0.625f) ? near_zero : signed_far;
  return x == x ? result : x;
}

static inline VecF activate(VecF x, Activation activation) {
  if (activation == kTanh) return tanh_vector(x);
  if (activation == kRelu) return x < VecF{} ? VecF{} : x;
  // x - x is NaN for an infinite x: x / (1 + exp(-x)) is NaN for negative infinity.
  if (activation == kSilu) return silu(x) + (x - x);
  return x;
}

static void activate_row(float* x, int64_t count, Activation activation) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, activate(load(x + i), activation));
  if (i < count) {
    store_some(x + i, activate(load_some(x + i, count - i), activation), count - i);
  }
}

template <typename Element>
struct Layer {
  const float* const* x;
  float* const* y;
  const Element* weight;
  const float* bias;
  int64_t in;
};

// Adds the products of inputs [begin, end) for Rows rows and Columns columns. The piece that begins
// at 0 starts from the bias, later ones from what is in y.
template <int Rows, int Columns, int Unroll, typename Element>
static inline void add_tile(const Layer<Element>& layer, int64_t row, int64_t column, int64_t begin,
                            int64_t end) {
  const float* x[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = layer.x[row + r];
  const Element* weight = layer.weight + column * layer.in;
  VecF sums[Unroll][Rows][Columns] = {};
  int64_t i = begin;
  for (; i + Unroll * kLanes <= end; i += Unroll * kLanes) {
    for (int u = 0; u < Unroll; ++u) {
      VecF values[Rows];
      for (int r = 0; r < Rows; ++r) values[r] = load(x[r] + i + u * kLanes);
      for (int c = 0; c < Columns; ++c) {
        const VecF factor = load(weight + c * layer.in + i + u * kLanes);
        for (int r = 0; r < Rows; ++r) sums[u][r][c] += values[r] * factor;
      }
    }
  }
  for (; i < end; i += kLanes) {
    const int64_t count = end - i < kLanes ? end - i : kLanes;
    VecF values[Rows];
    for (int r = 0; r < Rows; ++r) values[r] = load_some(x[r] + i, count);
    for (int c = 0; c < Columns; ++c) {
      const VecF factor = load_some(weight + c * layer.in + i, count);
      for (int r = 0; r < Rows; ++r) sums[0][r][c] += values[r] * factor;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) {
      VecF sum = sums[0][r][c];
      for (int u = 1; u < Unroll; ++u) sum += sums[u][r][c];
      const float start = begin        ? layer.y[row + r][column + c]
                          : layer.bias ? layer.bias[column + c]
                                       : 0.0f;
      layer.y[row + r][column + c] = start + horizontal_sum(sum);
    }
  }
}

template <int Columns, typename Element>
static inline void add_rows(const Layer<Element>& layer, int64_t row_begin, int64_t row_end,
                            int64_t column, int64_t begin, int64_t end) {
  int64_t row = row_begin;
  for (; row + kTileRows <= row_end; row += kTileRows) {
    add_tile<kTileRows, Columns, 1>(layer, row, column, begin, end);
  }
  if (row_end - row == 3) add_tile<3, Columns, 1>(layer, row, column, begin, end);
  if (row_end - row == 2) add_tile<2, Columns, 1>(layer, row, column, begin, end);
  if (row_end - row == 1) add_tile<1, Columns, 2>(layer, row, column, begin, end);
}

template <typename Element>
static void run_layer(const LayerCall& call, int64_t row_begin, int64_t row_end,
                      int64_t column_begin, int64_t column_end) {
  const Layer<Element> layer = {call.x, call.y, (const Element*)call.weight, call.bias, call.in};
  const int64_t rows = row_end - row_begin;
  const int64_t block = rows <= kTileRows ? call.in : kInputBlock;
  for (int64_t begin = 0; begin < call.in; begin += block) {
    const int64_t end = call.in - begin < block ? call.in : begin + block;
    int64_t column = column_begin;
    if (rows == 1) {
      for (; column + kSingleRowColumns <= column_end; column += kSingleRowColumns) {
        add_tile<1, kSingleRowColumns, 1>(layer, row_begin, column, begin, end);
      }
    }
    for (; column + kTileColumns <= column_end; column += kTileColumns) {
      add_rows<kTileColumns>(layer, row_begin, row_end, column, begin, end);
    }
    for (; column < column_end; ++column) {
      add_rows<1>(layer, row_begin, row_end, column, begin, end);
    }
  }
  if (call.activation == kIdentity) return;
  for (int64_t row = row_begin; row < row_end; ++row) {
    activate_row(call.y[row] + column_begin, column_end - column_begin, call.activation);
  }
}

static void layer(const LayerCall& call, int64_t row_begin, int64_t row_end, int64_t column_begin,
                  int64_t column_end) {
  if (call.type == kFloat32) {
    run_layer<float>(call, row_begin, row_end, column_begin, column_end);
  } else if (call.type == kBfloat16) {
    run_layer<Bfloat16>(call, row_begin, row_end, column_begin, column_end);
  } else {
    run_layer<Float16>(call, row_begin, row_end, column_begin, column_end);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
