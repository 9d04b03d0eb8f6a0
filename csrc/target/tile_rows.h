// Products of a matrix in BF16 with rows rounded to bfloat16, where the processor has tiles (AMX):
// matrices of 16 rows that one instruction multiplies.
#pragma once

#include <cstdint>

#include "target/block_matrix.h"
#include "target/code_kernels.h"
#include "target/row_source.h"

namespace eaglerl {

// Most rows of a group. Kernels may read as many past a group's last one.
constexpr int kMostTileRows = 16;

struct TileRows {
  int rows;
  int64_t inputs;
  uint16_t* values;  // (inputs / 32, rows, 32), bfloat16
};

struct TileKernels {
  // Computes inputs [32 * begin, 32 * end) of rows [first, first + rows.rows) of a source that is
  // rounded.
  void (*prepare)(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                  const TileRows& rows);
  // Panels [begin, end) times one group of rows or two, one after the other.
  void (*multiply)(const BlockMatrixView& matrix, const TileRows* groups, int count, int64_t begin,
                   int64_t end, const ProductTarget& target);
};

// Null where the processor has none.
const TileKernels* tile_kernels();

}  // namespace eaglerl
