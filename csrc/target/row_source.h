// What a product's input rows are made of, so that norms and activations need no pass of their own.
#pragma once

#include <cstdint>

namespace eaglerl {

struct RowSource {
  enum Kind { kPlain, kNorm, kSiluMul };

  Kind kind;
  int64_t inputs;  // of the product; up to whole blocks, zeros follow
  const float* x;  // row r begins at x + r * stride
  int64_t stride;
  const float* inverse;  // kNorm: 1 / sqrt(mean square + eps) of every row
  const float* weight;   // kNorm: (inputs)
  int64_t up;            // kSiluMul: distance from a gate to its up
  bool rounded = false;  // to bfloat16
};

}  // namespace eaglerl
