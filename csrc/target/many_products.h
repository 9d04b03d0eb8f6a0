// Products with many rows: weights are expanded to floats in pieces that stay in the second-level
// cache, so that decoding them costs next to nothing. What is stored in floats is read in place.
// Included only by block_kernels.cpp.
#pragma once

#include "target/block_products.h"
#include "target/row_inputs.h"

namespace eaglerl::EAGLERL_ISA {

// Rows and vectors of outputs whose sums are kept in registers: 24 of 32 with AVX-512, 12 of 16
// with AVX2.
#if defined(__AVX512F__)
constexpr int kManyTileRows = 12;
#elif defined(__AVX2__)
constexpr int kManyTileRows = 6;
#else
constexpr int kManyTileRows = 4;
#endif
constexpr int kTileVectors = 2;
constexpr int kTileOutputs = kTileVectors * kLanes;
static_assert(kManyGroupRows % kManyTileRows == 0, "a group is a number of tiles");

template <int kInput, class Run>
static inline void expand_input(const Run& run, VecF scale, VecF minimum, float* out,
                                int64_t stride) {
  store(out + kInput * stride, run.template value<kInput>() * scale + minimum);
}

// Writes input i of the panel's 16 outputs to out + i * stride.
template <BlockFormat kFormat>
static void expand_panel(const uint8_t* panel, const PanelLayout& layout, float* out,
                         int64_t stride) {
  for (int half = 0; half < kPanelOutputs / kLanes; ++half) {
    const BlockScales<kFormat> scales(panel, layout, half);
    float* target = out + half * kLanes;
    for (int64_t block = 0; block < layout.blocks; ++block) {
      VecF scale = splat(1.0f), minimum = {};
      if constexpr (kLayout<kFormat>.has_scale) scale = scales.scale(block);
      if constexpr (kFormat == BlockFormat::kQ8_0) scale *= Decoder<kFormat>::kScale;
      if constexpr (kLayout<kFormat>.has_minimum) minimum = scales.minimum(block);
      for (int run = 0; run < kLayout<kFormat>.block / 8; ++run) {
        Decoder<kFormat> decoder;
        decoder.read(panel + block * kLayout<kFormat>.code_bytes, run, half);
        expand_input<0>(decoder, scale, minimum, target, stride);
        expand_input<1>(decoder, scale, minimum, target, stride);
        expand_input<2>(decoder, scale, minimum, target, stride);
        expand_input<3>(decoder, scale, minimum, target, stride);
        expand_input<4>(decoder, scale, minimum, target, stride);
        expand_input<5>(decoder, scale, minimum, target, stride);
        expand_input<6>(decoder, scale, minimum, target, stride);
        expand_input<7>(decoder, scale, minimum, target, stride);
        target += 8 * stride;
      }
    }
  }
}

// Sums of kManyTileRows rows for the kLanes outputs of each of two streams of weights.
static inline void multiply_tile(const float* first_weights, const float* second_weights,
                                 int64_t weight_stride, const float* values, int64_t inputs,
                                 VecF (&sums)[kTileVectors][kManyTileRows]) {
  for (int v = 0; v < kTileVectors; ++v) {
    for (int r = 0; r < kManyTileRows; ++r) sums[v][r] = VecF{};
  }
  for (int64_t i = 0; i < inputs; ++i) {
    const VecF first = load(first_weights + i * weight_stride);
    const VecF second = load(second_weights + i * weight_stride);
#pragma GCC unroll 12
    for (int r = 0; r < kManyTileRows; ++r) {
      const VecF value = splat(values[i * kManyGroupRows + r]);
      sums[0][r] += first * value;
      sums[1][r] += second * value;
    }
  }
}

static inline void write_tile(const VecF (&sums)[kTileVectors][kManyTileRows], int64_t row,
                              int64_t rows, int64_t output, int64_t outputs,
                              const ProductTarget& target) {
  for (int r = 0; r < kManyTileRows && row + r < rows; ++r) {
    ProductTarget place = target;
    place.out += (row + r) * target.stride;
    for (int v = 0; v < kTileVectors; ++v) {
      const VecF result[1] = {sums[v][r]};
      write_results<1>(result, output + v * kLanes, outputs, place);
    }
  }
}

static void prepare_many(const RowSource& source, int64_t group, int64_t begin, int64_t end,
                         const ManyRows& rows) {
  alignas(64) float inputs[kSumInputs];
  for (int64_t block = begin; block < end; ++block) {
    float* values = rows.values + (group * rows.inputs + block * kSumInputs) * kManyGroupRows;
    for (int r = 0; r < kManyGroupRows; ++r) {
      const int64_t row = group * kManyGroupRows + r;
      if (row < rows.rows) {
        compute_inputs(source, row, block * kSumInputs, inputs);
      } else {
        std::memset(inputs, 0, sizeof(inputs));
      }
      for (int i = 0; i < kSumInputs; ++i) values[i * kManyGroupRows + r] = inputs[i];
    }
  }
}

template <BlockFormat kFormat>
static void multiply_many_of(const BlockMatrixView& matrix, const ManyRows& rows, int64_t begin,
                             int64_t end, const ProductTarget& target, float* buffer) {
  constexpr int kPair = 2;
  constexpr bool kInPlace = kFormat == BlockFormat::kF32;
  constexpr int64_t kStride = kInPlace ? kPanelOutputs : kPair * kPanelOutputs;
  const int64_t groups = (rows.rows + kManyGroupRows - 1) / kManyGroupRows;
  for (int64_t panel = begin; panel < end; panel += kPair) {
    const int64_t count = end - panel < kPair ? end - panel : kPair;
    const float* streams[kPair];
    for (int64_t p = 0; p < count; ++p) {
      const uint8_t* codes = matrix.panels + (panel + p) * matrix.layout.bytes;
      if constexpr (kInPlace) {
        streams[p] = (const float*)codes;
      } else {
        expand_panel<kFormat>(codes, matrix.layout, buffer + p * kPanelOutputs, kStride);
        streams[p] = buffer + p * kPanelOutputs;
      }
    }
    // With one panel left, the second half of a tile as wide as two is computed from the first
    // panel again, and dropped.
    if (count < kPair) streams[1] = streams[0];
    for (int64_t group = 0; group < groups; ++group) {
      for (int part = 0; part < kManyGroupRows; part += kManyTileRows) {
        const float* values = rows.values + group * rows.inputs * kManyGroupRows + part;
        for (int64_t place = 0; place < count * kPanelOutputs; place += kTileOutputs) {
          VecF sums[kTileVectors][kManyTileRows];
          const int64_t second = place + kLanes;
          multiply_tile(streams[place / kPanelOutputs] + place % kPanelOutputs,
                        streams[second / kPanelOutputs] + second % kPanelOutputs, kStride, values,
                        rows.inputs, sums);
          const int64_t limit = (panel + count) * kPanelOutputs;
          write_tile(sums, group * kManyGroupRows + part, rows.rows, panel * kPanelOutputs + place,
                     limit < matrix.outputs ? limit : matrix.outputs, target);
        }
      }
    }
  }
}

}  // namespace eaglerl::EAGLERL_ISA
