// Products with float32 rows. Compiled once per instruction set, like common/cpu_kernels.cpp and
// under the same rule: no inline function of the standard library may be emitted here.
#include "target/block_kernels.h"

#include <math.h>

#include "common/vector_math.h"
#include "target/block_products.h"
#include "target/many_products.h"
#include "target/row_inputs.h"

namespace eaglerl::EAGLERL_ISA {
namespace {

void inverse_norms(const float* x, int64_t stride, int64_t count, int64_t hidden, float eps,
                   float* out) {
  for (int64_t r = 0; r < count; ++r) {
    out[r] = 1.0f / sqrtf(sum_of_squares(x + r * stride, hidden) / float(hidden) + eps);
  }
}

void prepare_float(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                   const PreparedRows& rows) {
  const int count = rows.rows;
  alignas(64) float inputs[kSumInputs];
  for (int64_t block = begin; block < end; ++block) {
    float* values = rows.values + block * kSumInputs * count;
    for (int r = 0; r < count; ++r) {
      compute_inputs(source, first + r, block * kSumInputs, inputs);
      VecF sum = {};
      for (int i = 0; i < kSumInputs; i += kLanes) sum += load(inputs + i);
      rows.sums[block * count + r] = horizontal_sum(sum);
      for (int i = 0; i < kSumInputs; ++i) values[i * count + r] = inputs[i];
    }
  }
}

// Calls body with the tag of a format.
template <class Body>
void with_format(BlockFormat format, const Body& body) {
  switch (format) {
    case BlockFormat::kF32: return body(FormatTag<BlockFormat::kF32>());
    case BlockFormat::kF16: return body(FormatTag<BlockFormat::kF16>());
    case BlockFormat::kBF16: return body(FormatTag<BlockFormat::kBF16>());
    default: return with_blocks(format, body);
  }
}

void multiply_float(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                    int64_t end, const ProductTarget& target) {
  with_format(matrix.format, [&](auto format) {
    multiply_panels<format.value>(matrix, rows, begin, end, target);
  });
}

void multiply_many(const BlockMatrixView& matrix, const ManyRows& rows, int64_t begin, int64_t end,
                   const ProductTarget& target, float* buffer) {
  with_format(matrix.format, [&](auto format) {
    multiply_many_of<format.value>(matrix, rows, begin, end, target, buffer);
  });
}

}  // namespace

extern const BlockKernels block;

const BlockKernels block = {inverse_norms, prepare_float, multiply_float, prepare_many,
                            multiply_many};

}  // namespace eaglerl::EAGLERL_ISA
