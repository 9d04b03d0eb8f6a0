// Products of a block matrix with rows of floats, as every instruction set's build provides them.
//
// The result of a row does not depend, bit by bit, on how many rows are multiplied together: each
// row's sums are made in the order of the inputs, block by block, whatever the number of rows.
#pragma once

#include <cstdint>

#include "target/block_matrix.h"
#include "target/code_kernels.h"
#include "target/row_source.h"

namespace eaglerl {

// Rows that a pass over a panel serves. With 8 rows a weight that has been decoded, 2 instructions,
// is used by 8 multiply-adds, and the sums of a block and of the row take 16 of 32 registers.
constexpr int kGroupRows = 8;

// A group of rows, interleaved so that neighbouring rows' values for one input lie side by side:
// value i of row r stands at index i * rows + r.
struct PreparedRows {
  int rows;
  int64_t inputs;
  float* values;  // (inputs, rows)
  float* sums;    // (inputs / 32, rows): sums of values
};

// Rows of a product with many rows: 12 rows times 2 vectors of outputs are 24 sums, which leave
// registers for the weights and one value.
constexpr int kManyGroupRows = 12;

// From this number of rows on, weights are expanded to floats once for all rows. The sums are then
// made in another order.
constexpr int64_t kManyRows = 65;

// All rows of such a product: value i of row r stands at values[(r / 12 * inputs + i) * 12 + r %
// 12]. Rows that fill up the last group are 0.
struct ManyRows {
  int64_t rows;
  int64_t inputs;
  float* values;
};

struct BlockKernels {
  // out[r] = 1 / sqrt(mean square of row r + eps), for rows [0, count).
  void (*inverse_norms)(const float* x, int64_t stride, int64_t count, int64_t hidden, float eps,
                        float* out);
  // Computes inputs [32 * begin, 32 * end) of rows [first, first + rows.rows) of the source, and
  // interleaves them into values and sums.
  void (*prepare_float)(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                        const PreparedRows& rows);
  // Panels [begin, end) times the rows' values, accumulated in float32.
  void (*multiply_float)(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                         int64_t end, const ProductTarget& target);

  // Computes inputs [32 * begin, 32 * end) of group `group` of all rows of the source.
  void (*prepare_many)(const RowSource& source, int64_t group, int64_t begin, int64_t end,
                       const ManyRows& rows);
  // Panels [begin, end) times all rows. `buffer` has room for 32 * inputs floats.
  void (*multiply_many)(const BlockMatrixView& matrix, const ManyRows& rows, int64_t begin,
                        int64_t end, const ProductTarget& target, float* buffer);
};

const BlockKernels& block_kernels();

}  // namespace eaglerl
