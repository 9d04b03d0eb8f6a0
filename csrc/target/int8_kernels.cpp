// Products with 8-bit rows. Compiled once per instruction set, see block_kernels.cpp.
#include "target/block_products.h"
#include "target/int8_products.h"
#include "target/row_inputs.h"

namespace eaglerl::EAGLERL_ISA {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even

float largest_magnitude(const float* x) {
  VecI largest = {};
  for (int i = 0; i < kSumInputs; i += kLanes) {
    // Not a maximum of floats, which would lose a NaN: as integers, magnitudes order like floats.
    const VecI bits = (VecI)load(x + i) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  int32_t best = 0;
  for (int lane = 0; lane < kLanes; ++lane) best = largest[lane] > best ? largest[lane] : best;
  float magnitude;
  std::memcpy(&magnitude, &best, sizeof(magnitude));
  return magnitude;
}

// Codes of 32 inputs; returns their scale.
float quantise(const float* inputs, int32_t* codes) {
  const float scale = largest_magnitude(inputs) * (1.0f / 127.0f);
  // Below the smallest normal number the reciprocal would be infinite: such a block counts as 0. A
  // NaN or an infinity stays in the scale, and so reaches the result.
  const bool tiny = scale < 1.17549435e-38f;
  const VecF inverse = splat(tiny ? 0.0f : 1.0f / scale);
  for (int i = 0; i < kSumInputs; i += kLanes) {
    const VecF scaled = load(inputs + i) * inverse;
    const VecF bounded = scaled == scaled ? scaled : VecF{};
    const VecI code = (VecI)(bounded + splat(kRound)) - (VecI)splat(kRound);
    std::memcpy(codes + i, &code, sizeof(code));
  }
  return tiny ? 0.0f : scale;
}

void prepare_int8(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                  const PreparedRows& rows) {
  const int count = rows.rows;
  alignas(64) float inputs[kSumInputs];
  alignas(64) int32_t codes[kSumInputs];
  for (int64_t block = begin; block < end; ++block) {
    for (int r = 0; r < count; ++r) {
      compute_inputs(source, first + r, block * kSumInputs, inputs);
      const float scale = quantise(inputs, codes);
      int32_t sums[2] = {};
      for (int i = 0; i < kSumInputs; ++i) sums[i / kHalfSumInputs] += codes[i];
      int32_t* words = rows.words + block * (kSumInputs / 4) * count + r;
      for (int i = 0; i < kSumInputs; i += 4) {
        words[i / 4 * count] =
            int32_t(uint32_t(codes[i] & 255) | uint32_t(codes[i + 1] & 255) << 8 |
                    uint32_t(codes[i + 2] & 255) << 16 | uint32_t(codes[i + 3] & 255) << 24);
      }
      rows.code_sums[2 * block * count + r] = sums[0];
      rows.code_sums[(2 * block + 1) * count + r] = sums[1];
      rows.scales[block * count + r] = scale;
      rows.sums[block * count + r] = scale * float(sums[0] + sums[1]);
    }
  }
}

void multiply_int8(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                   int64_t end, const ProductTarget& target) {
  with_blocks(matrix.format, [&](auto format) {
    multiply_panels<Int8Product<format.value>>(matrix, rows, begin, end, target);
  });
}

}  // namespace

extern const Int8Kernels int8;

const Int8Kernels int8 = {prepare_int8, multiply_int8};

}  // namespace eaglerl::EAGLERL_ISA
