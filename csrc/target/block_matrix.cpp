#include "target/block_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "target/block_codes.h"

namespace eaglerl {
namespace {

// Rows whose pages the processor maps in one piece: 2 MB pages save most misses of its table of
// addresses, of which a pass over 97 MB in pages of 4 kB would have 24,000.
constexpr size_t kHugePage = size_t(2) << 20;
constexpr int64_t kCacheLine = 64;

int64_t up_to(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

const BlockLayout& checked_layout(BlockFormat format, int64_t inputs) {
  const BlockLayout* layout = block_layout(format);
  if (layout == nullptr) {
    std::string names;
    for (const BlockLayout& known : kBlockLayouts) {
      names += std::string(names.empty() ? "" : ", ") + known.name;
    }
    throw std::invalid_argument("format must be one of " + names + ", got ggml's type " +
                                std::to_string(int32_t(format)));
  }
  check_between("inputs", inputs, 1, kLargestCount);
  const int64_t unit = std::max(layout->file_block, layout->block);
  if (layout->has_scale && inputs % unit != 0) {
    throw std::invalid_argument("inputs must be a multiple of " + std::to_string(unit) +
                                " in format " + layout->name + ", got " + std::to_string(inputs));
  }
  return *layout;
}

// Whether none of `count` numbers has all bits of `exponent`, as infinity and NaN do.
template <typename Bits>
bool are_finite(const uint8_t* numbers, int64_t count, Bits exponent) {
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, numbers + i * int64_t(sizeof(bits)), sizeof(bits));
    if ((bits & exponent) == exponent) return false;
  }
  return true;
}

bool panel_is_finite(const BlockMatrixView& view, const uint8_t* panel) {
  const BlockLayout& kind = *block_layout(view.format);
  const PanelLayout& layout = view.layout;
  if (!kind.has_scale) {
    const int64_t count = view.inputs * kPanelOutputs;
    if (view.format == BlockFormat::kF32) return are_finite(panel, count, 0x7f800000u);
    const bool is_half = view.format == BlockFormat::kF16;
    return are_finite(panel, count, uint16_t(is_half ? 0x7c00 : 0x7f80));
  }
  const int64_t count = layout.blocks / kind.scales_per_super * kPanelOutputs;
  const uint16_t exponent = 0x7c00;
  return are_finite(panel + layout.scales, count, exponent) &&
         (!kind.has_minimum || are_finite(panel + layout.minima, count, exponent));
}

}  // namespace

const BlockLayout* block_layout(BlockFormat format) {
  for (const BlockLayout& layout : kBlockLayouts) {
    if (layout.format == format) return &layout;
  }
  return nullptr;
}

PanelLayout panel_layout(BlockFormat format, int64_t inputs) {
  const BlockLayout& kind = checked_layout(format, inputs);
  PanelLayout layout = {};
  layout.blocks = (inputs + kind.block - 1) / kind.block;
  int64_t place = layout.blocks * kind.code_bytes;
  const int64_t halves = layout.blocks / kind.scales_per_super * kPanelOutputs * 2;
  const int64_t bytes = layout.blocks * kPanelOutputs;
  if (kind.has_scale) {
    layout.scales = place;
    place = up_to(place + halves, kCacheLine);
  }
  if (kind.has_minimum) {
    layout.minima = place;
    place = up_to(place + halves, kCacheLine);
  }
  if (kind.scales_per_super > 1) {
    layout.subscales = place;
    place = up_to(place + bytes, kCacheLine);
    if (kind.has_minimum) {
      layout.subminima = place;
      place = up_to(place + bytes, kCacheLine);
    }
  }
  layout.bytes = up_to(place, kCacheLine);
  return layout;
}

int64_t file_row_bytes(BlockFormat format, int64_t inputs) {
  const BlockLayout& kind = checked_layout(format, inputs);
  return inputs / kind.file_block * kind.file_bytes;
}

void BlockMatrix::Free::operator()(uint8_t* memory) const { std::free(memory); }

BlockMatrix::BlockMatrix(BlockFormat format, int64_t outputs, int64_t inputs, const uint8_t* file,
                         const int64_t* rows, int threads) {
  const int64_t row_bytes = file_row_bytes(format, inputs);
  check_between("outputs", outputs, 1, kLargestCount);
  view_.format = format;
  view_.outputs = outputs;
  view_.width = inputs;
  view_.layout = panel_layout(format, inputs);
  view_.inputs = view_.layout.blocks * block_layout(format)->block;
  check_product("the packed matrix", {panel_count(), view_.layout.bytes});
  if (rows != nullptr) {
    for (int64_t i = 0; i < outputs; ++i) check_between("rows", rows[i], 0, outputs - 1);
  }
  const size_t size = size_t(bytes());
  const size_t alignment = size >= kHugePage ? kHugePage : size_t(kCacheLine);
  void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  if (size >= kHugePage) madvise(memory, size, MADV_HUGEPAGE);
  memory_.reset(static_cast<uint8_t*>(memory));
  view_.panels = memory_.get();
  const bool whole = view_.inputs == view_.width;
  std::atomic<bool> finite = true;
  parallel_for(panel_count(), 4, threads, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> filled(whole ? 0 : size_t(file_row_bytes(format, view_.inputs)));
    for (int64_t panel = begin; panel < end; ++panel) {
      uint8_t* target = memory_.get() + panel * view_.layout.bytes;
      std::memset(target, 0, size_t(view_.layout.bytes));
      for (int lane = 0; lane < kPanelOutputs; ++lane) {
        const int64_t output = panel * kPanelOutputs + lane;
        if (output >= outputs) break;
        const int64_t row = rows == nullptr ? output : rows[output];
        const uint8_t* source = file + row * row_bytes;
        if (!whole) {
          std::memcpy(filled.data(), source, size_t(row_bytes));
          source = filled.data();
        }
        pack_lane(format, view_.layout, source, lane, target);
      }
      if (!panel_is_finite(view_, target)) finite = false;
    }
  });
  if (!finite) throw std::invalid_argument("file holds numbers that are not finite");
}

void BlockMatrix::dequantise_row(int64_t output, float* out) const {
  const uint8_t* panel = view_.panels + output / kPanelOutputs * view_.layout.bytes;
  const int lane = int(output % kPanelOutputs);
  if (view_.inputs == view_.width) return unpack_lane(view_.format, view_.layout, panel, lane, out);
  std::vector<float> filled(size_t(view_.inputs));
  unpack_lane(view_.format, view_.layout, panel, lane, filled.data());
  std::copy_n(filled.begin(), view_.width, out);
}

}  // namespace eaglerl
