// The products of a panel with a group of rows. Included only by block_kernels.cpp.
#pragma once

#include "target/block_kernels.h"
#include "target/block_scales.h"

namespace eaglerl::EAGLERL_ISA {

// Writes kRows results of kLanes outputs from `first` on, of which the matrix may have fewer.
template <int kRows>
static inline void write_results(const VecF (&results)[kRows], int64_t first, int64_t outputs,
                                 const ProductTarget& target) {
  if (first >= outputs) return;
  const int64_t count = outputs - first;
  if (count >= kLanes) {
    for (int r = 0; r < kRows; ++r) {
      float* place = target.out + r * target.stride + first;
      VecF value = results[r];
      if (target.bias) value += load(target.bias + first);
      store(place, target.accumulate ? load(place) + value : value);
    }
    return;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int64_t lane = 0; lane < count; ++lane) {
      float* place = target.out + r * target.stride + first + lane;
      float value = results[r][lane];
      if (target.bias) value += target.bias[first + lane];
      *place = target.accumulate ? *place + value : value;
    }
  }
}

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

template <BlockFormat kFormat>
struct FloatProduct {
  template <int kRows>
  static void compute(const uint8_t* panel, const PanelLayout& layout, int half,
                      const PreparedRows& rows, VecF (&results)[kRows]) {
    float_results<kFormat, kRows>(panel, layout, half, rows, results);
  }
};

template <class Product, int kRows>
static void multiply_group(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                           int64_t end, const ProductTarget& target) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* codes = matrix.panels + panel * matrix.layout.bytes;
    for (int half = 0; half < kPanelOutputs / kLanes; ++half) {
      VecF results[kRows];
      Product::template compute<kRows>(codes, matrix.layout, half, rows, results);
      write_results<kRows>(results, panel * kPanelOutputs + half * kLanes, matrix.outputs, target);
    }
  }
}

template <class Product>
static void multiply_panels(const BlockMatrixView& matrix, const PreparedRows& rows, int64_t begin,
                            int64_t end, const ProductTarget& target) {
  switch (rows.rows) {
    case 1: return multiply_group<Product, 1>(matrix, rows, begin, end, target);
    case 2: return multiply_group<Product, 2>(matrix, rows, begin, end, target);
    case 3: return multiply_group<Product, 3>(matrix, rows, begin, end, target);
    case 4: return multiply_group<Product, 4>(matrix, rows, begin, end, target);
    case 5: return multiply_group<Product, 5>(matrix, rows, begin, end, target);
    case 6: return multiply_group<Product, 6>(matrix, rows, begin, end, target);
    case 7: return multiply_group<Product, 7>(matrix, rows, begin, end, target);
    default: return multiply_group<Product, 8>(matrix, rows, begin, end, target);
  }
}

template <BlockFormat kFormat>
struct FormatTag {
  static constexpr BlockFormat value = kFormat;
};

// Calls body with the tag of a format that has blocks.
template <class Body>
static inline void with_blocks(BlockFormat format, const Body& body) {
  switch (format) {
    case BlockFormat::kQ4_0: return body(FormatTag<BlockFormat::kQ4_0>());
    case BlockFormat::kQ4_1: return body(FormatTag<BlockFormat::kQ4_1>());
    case BlockFormat::kQ8_0: return body(FormatTag<BlockFormat::kQ8_0>());
    case BlockFormat::kQ4_K: return body(FormatTag<BlockFormat::kQ4_K>());
    case BlockFormat::kQ5_K: return body(FormatTag<BlockFormat::kQ5_K>());
    case BlockFormat::kQ6_K: return body(FormatTag<BlockFormat::kQ6_K>());
    default: return;
  }
}

}  // namespace eaglerl::EAGLERL_ISA
