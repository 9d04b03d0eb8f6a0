// The small nets that score candidates: two hidden layers with SiLU and a sigmoid.
// Included only by policy_kernels.cpp.
#pragma once

#include "common/vector_math.h"
#include "policy/policy_convert.h"

namespace eaglerl::EAGLERL_ISA {

// Beyond +-60 a sigmoid is within 1e-26 of 0 or 1; the bound keeps exp2_vector in its range.
static inline VecF sigmoid(VecF x) {
  VecF bounded = maximum(x, splat(-60.0f));
  bounded = bounded < splat(60.0f) ? bounded : splat(60.0f);
  const VecF result = 1.0f / (exp2_vector(bounded * -kLog2E) + 1.0f);
  return x == x ? result : x;
}

// Padded weights and biases leave zeros (silu(0) = 0) from `out` to the end of each row of y.
template <int Rows>
static inline void hidden_layer(const SmallNetLayer& layer, const float* x, int64_t x_stride,
                                float* y) {
  for (int64_t column = 0; column < layer.out; column += kLanes) {
    const VecF bias = load(layer.bias + column);
    VecF sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = bias;
    const float* weight = layer.weight + column;
    for (int64_t i = 0; i < layer.in; ++i, weight += layer.stride) {
      const VecF factor = load(weight);
      for (int r = 0; r < Rows; ++r) sums[r] += factor * x[r * x_stride + i];
    }
    for (int r = 0; r < Rows; ++r) store(y + r * layer.stride + column, silu(sums[r]));
  }
}

template <int Rows>
static void net_logits(const SmallNetCall& net, const float* x, float* logits) {
  const int64_t stride = net.hidden[1].stride;
  float* first = net.scratch;
  float* second = first + kSmallNetRows * net.hidden[0].stride;
  hidden_layer<Rows>(net.hidden[0], x, net.hidden[0].in, first);
  hidden_layer<Rows>(net.hidden[1], first, net.hidden[0].stride, second);
  for (int r = 0; r < Rows; ++r) {
    VecF sum = {};
    for (int64_t i = 0; i < net.hidden[1].out; i += kLanes) {
      sum += load(net.last_weight + i) * load(second + r * stride + i);
    }
    logits[r] = horizontal_sum(sum) + net.last_bias;
  }
}

static void small_net(const SmallNetCall& net, const float* x, int64_t rows, float* out) {
  const int64_t inputs = net.hidden[0].in;
  int64_t row = 0;
  for (; row + kSmallNetRows <= rows; row += kSmallNetRows) {
    net_logits<kSmallNetRows>(net, x + row * inputs, out + row);
  }
  for (; row + 4 <= rows; row += 4) net_logits<4>(net, x + row * inputs, out + row);
  for (; row < rows; ++row) net_logits<1>(net, x + row * inputs, out + row);
  for (row = 0; row + kLanes <= rows; row += kLanes) store(out + row, sigmoid(load(out + row)));
  if (row < rows) store_some(out + row, sigmoid(load_some(out + row, rows - row)), rows - row);
}

}  // namespace eaglerl::EAGLERL_ISA
