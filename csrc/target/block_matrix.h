// A weight matrix in the blocks of its GGUF file, rearranged for products with a few rows.
//
// 16 outputs form a panel, since 16 floats fill the widest vector. Within a panel the codes of all
// 16 outputs for the same inputs lie side by side, so that a product reads the panel once, front to
// back, and keeps 16 results per row in registers. No bit is added or lost: a panel holds what the
// file's blocks hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

// The numbers are those of ggml's tensor types.
enum class BlockFormat : int32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

constexpr int kPanelOutputs = 16;

// Sizes of a format, in bytes where they are not counts.
struct BlockLayout {
  BlockFormat format;
  const char* name;
  int file_block;        // inputs of a block in the file
  int file_bytes;        // of such a block
  int block;             // inputs that share one scale; the unit of a product's inner loop
  int code_bytes;        // of a panel's codes for one `block`
  int scales_per_super;  // blocks that share a half-precision scale, with an 8-bit one each; or 1
  bool has_scale;
  bool has_minimum;
};

constexpr BlockLayout kBlockLayouts[] = {
    {BlockFormat::kF32, "F32", 1, 4, 32, 2048, 1, false, false},
    {BlockFormat::kF16, "F16", 1, 2, 32, 1024, 1, false, false},
    {BlockFormat::kBF16, "BF16", 1, 2, 32, 1024, 1, false, false},
    {BlockFormat::kQ4_0, "Q4_0", 32, 18, 32, 256, 1, true, false},
    {BlockFormat::kQ4_1, "Q4_1", 32, 20, 32, 256, 1, true, true},
    {BlockFormat::kQ8_0, "Q8_0", 32, 34, 32, 512, 1, true, false},
    {BlockFormat::kQ4_K, "Q4_K", 256, 144, 32, 256, 8, true, true},
    {BlockFormat::kQ5_K, "Q5_K", 256, 176, 32, 320, 8, true, true},
    {BlockFormat::kQ6_K, "Q6_K", 256, 210, 16, 192, 16, true, false},
};

// The layout of a supported type, where the type is known at compile time.
constexpr BlockLayout layout_of(BlockFormat format) {
  int index = 0;
  while (kBlockLayouts[index].format != format) ++index;
  return kBlockLayouts[index];
}

// Null for a type that is not supported.
const BlockLayout* block_layout(BlockFormat format);

// Where the parts of one panel begin, counted from the panel's first byte.
struct PanelLayout {
  int64_t blocks;     // of `block` inputs; the last one may be filled up with zeros
  int64_t scales;     // halves: 16 a block, or 16 a super-block
  int64_t minima;     // likewise
  int64_t subscales;  // bytes: 16 a block (K formats)
  int64_t subminima;
  int64_t bytes;  // of the panel, a multiple of 64
};

PanelLayout panel_layout(BlockFormat format, int64_t inputs);

// What kernels are given.
struct BlockMatrixView {
  const uint8_t* panels;
  PanelLayout layout;
  BlockFormat format;
  int64_t outputs;
  int64_t inputs;  // of products: whole blocks
  int64_t width;   // of the file's rows: only numbers without scales may fill no whole block
};

class BlockMatrix : public PythonObject {
 public:
  // Packs `outputs` rows of `inputs` weights. `rows` gives for each output the row of `file` that
  // holds it (null: its own number); every entry must lie in [0, outputs). Throws
  // std::invalid_argument for a type that is not supported, inputs that fill no whole block of a
  // format with scales, and scales or weights that are not finite.
  BlockMatrix(BlockFormat format, int64_t outputs, int64_t inputs, const uint8_t* file,
              const int64_t* rows, int threads);

  const BlockMatrixView& view() const { return view_; }
  int64_t panel_count() const { return (view_.outputs + kPanelOutputs - 1) / kPanelOutputs; }
  int64_t bytes() const { return panel_count() * view_.layout.bytes; }

  // Writes row `output` as floats. The embedding table is read so.
  void dequantise_row(int64_t output, float* out) const;

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };
  std::unique_ptr<uint8_t[], Free> memory_;
  BlockMatrixView view_;
};

// Bytes of one row of a matrix in its file. Throws as BlockMatrix does.
int64_t file_row_bytes(BlockFormat format, int64_t inputs);

}  // namespace eaglerl
