// Products of a block matrix with rows of 8-bit codes, as the instruction sets' builds provide
// them.
//
// A block of 32 inputs of a row has one scale and is held in one or three digits: value = scale *
// (65536 * first + 256 * second + third), or scale * first. With three digits the value is a number
// of 24 bits with its sign: rounding moves an input by at most 2^-23 of the block's largest one, as
// a rounding of float32 sums does. With one digit it is llama.cpp's 8-bit row.
//
// Sums of codes times digits within a block are integers, so any instruction may make them, in any
// order. What follows, floats over blocks, is the same expression everywhere. So the result of a
// row is the same, bit by bit, whether dot products or tiles compute it and whatever the other rows
// are.
#pragma once

#include <cstdint>

#include "target/block_matrix.h"
#include "target/row_source.h"

namespace eaglerl {

// Inputs of a sum or of a row's scale.
constexpr int kSumInputs = 32;
constexpr int kHalfSumInputs = 16;

// Where results go: row r's output o to out[r * stride + o].
struct ProductTarget {
  float* out;
  int64_t stride;
  const float* bias;  // (outputs); null: none
  bool accumulate;    // add to what is there
};

// A group of rows in codes.
struct CodeRows {
  int rows;
  int digits;  // 1 or 3
  int64_t inputs;
  int8_t* codes;       // (inputs / 32, digits, rows, 32), the most significant digit first
  float* scales;       // (inputs / 32, rows)
  float* sums;         // (inputs / 32, rows): scale * sum of the values in units of it
  int32_t* code_sums;  // (inputs / 16, digits, rows): sums of digits
};

// Most rows of a group, whose sums of every digit and results stay in registers.
constexpr int kMostDotRows = 8;
constexpr int kMostThreeDigitRows = 6;
constexpr int most_dot_rows(int digits) { return digits == 1 ? kMostDotRows : kMostThreeDigitRows; }

struct CodeKernels {
  // Whether dot products of bytes are instructions; where they are not, three digits take longer
  // than floats and are not provided.
  bool has_dot;

  // Computes inputs [32 * begin, 32 * end) of rows [first, first + rows.rows) of the source and
  // fills in rows. One digit: scale = the largest magnitude / 127, codes rounded to nearest, ties
  // to even. Three: the scale is the power of two that makes the largest one a number of 23 bits.
  void (*prepare_codes)(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                        const CodeRows& rows);
  // Panels [begin, end) times the rows. Formats without blocks (F32, F16, BF16) have no such
  // product.
  void (*multiply_codes)(const BlockMatrixView& matrix, const CodeRows& rows, int64_t begin,
                         int64_t end, const ProductTarget& target);
};

const CodeKernels& code_kernels();

inline bool has_code_product(BlockFormat format) { return block_layout(format)->has_scale; }

}  // namespace eaglerl
