// What the rows of a product are rounded to.
#pragma once

namespace eaglerl {

enum class RowKind {
  kFloat32,  // not at all
  kInt8,     // 8-bit codes with a scale for every 32 inputs; floats where the matrix has no blocks
  kBfloat16,
};

}  // namespace eaglerl
