// The products of a panel with a group of rows. Included only by block_kernels.cpp.
#pragma once

#include "target/block_kernels.h"
#include "target/block_scales.h"
#include "target/formats.h"
#include "target/write_results.h"

namespace eaglerl::EAGLERL_ISA {

template <int kInput, int kRows, class Run>
static inline void add_input(const Run& run, const float* values, VecF (&sums)[kRows]) {
  const VecF weight = run.template value<kInput>();
  for (int r = 0; r < kRows; ++r) sums[r] += weight * splat(values[kInput * kRows + r]);
}

template <int kRows, class Run>
static inline void add_run(const Run& run, const float* values, VecF (&sums)[kRows]) {
  add_input<0, kRows>(run, values, sums);
  add_input<1, kRows>(run, values, sums);
  add_input<2, kRows>(run, values, sums);
  add_input<3, kRows>(run, values, sums);
  add_input<4, kRows>(run, values, sums);
  add_input<5, kRows>(run, values, sums);
  add_input<6, kRows>(run, values, sums);
  add_input<7, kRows>(run, values, sums);
}

// kLanes outputs of a panel. Of each block, codes times values are summed first; then scale times
// that sum, and minimum times the block's sum of values, are added to the result.
template <BlockFormat kFormat, int kRows>
static inline void float_results(const uint8_t* panel, const PanelLayout& layout, int half,
                                 const PreparedRows& rows, VecF (&results)[kRows]) {
  constexpr int kInputs = kLayout<kFormat>.block;
  const BlockScales<kFormat> scales(panel, layout, half);
  const float* values = rows.values;
  const float* block_sums = rows.sums;
  for (int r = 0; r < kRows; ++r) results[r] = VecF{};
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const uint8_t* codes = panel + block * kLayout<kFormat>.code_bytes;
    if (half == 0) prefetch_ahead<kFormat>(panel, layout, block);
    VecF sums[kRows] = {};
    for (int run = 0; run < kInputs / 8; ++run) {
      Decoder<kFormat> decoder;
      decoder.read(codes, run, half);
      add_run<kRows>(decoder, values, sums);
      values += 8 * kRows;
    }
    if constexpr (!kLayout<kFormat>.has_scale) {
      for (int r = 0; r < kRows; ++r) results[r] += sums[r];
    } else {
      VecF scale = scales.scale(block);
      if constexpr (kFormat == BlockFormat::kQ8_0) scale *= Decoder<kFormat>::kScale;
      for (int r = 0; r < kRows; ++r) results[r] += scale * sums[r];
      if constexpr (kLayout<kFormat>.has_minimum) {
        const VecF minimum = scales.minimum(block);
        for (int r = 0; r < kRows; ++r) results[r] += minimum * splat(block_sums[r]);
        block_sums += kRows;
      }
    }
  }
}

template <BlockFormat kFormat, int kRows>
static void multiply_group(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                           int64_t end, const ProductTarget& target) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* codes = matrix.panels + panel * matrix.layout.bytes;
    for (int half = 0; half < kPanelOutputs / kLanes; ++half) {
      VecF results[kRows];
      float_results<kFormat, kRows>(codes, matrix.layout, half, rows, results);
      write_results<kRows>(results, panel * kPanelOutputs + half * kLanes, matrix.outputs, target);
    }
  }
}

template <BlockFormat kFormat, int kRows = 1>
static void multiply_panels(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                            int64_t end, const ProductTarget& target) {
  if constexpr (kRows < kGroupRows) {
    if (rows.rows > kRows) {
      return multiply_panels<kFormat, kRows + 1>(matrix, rows, begin, end, target);
    }
  }
  multiply_group<kFormat, kRows>(matrix, rows, begin, end, target);
}

}  // namespace eaglerl::EAGLERL_ISA
