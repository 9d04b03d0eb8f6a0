// The input rows of a product, in the forms and groups that kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "common/team.h"
#include "target/block_kernels.h"
#include "target/code_kernels.h"
#include "target/row_kind.h"
#include "target/tile_rows.h"

namespace eaglerl {

// A form that a matrix's kernel takes rows in.
enum class RowForm {
  kFloat,      // groups of up to 8
  kManyFloat,  // groups of 12, for expanded weights
  kCodes,
  kTile,
};

// Rows in groups that share them evenly.
struct RowGroups {
  int64_t rows;
  int64_t most;  // rows of a group

  int64_t count() const { return (rows + most - 1) / most; }
  int64_t begin(int64_t group) const { return rows * group / count(); }
};

// Makes a buffer at least so long; what it held is of no use afterwards.
template <typename T>
void grow_buffer(std::vector<T>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.resize(size_t(size));
}

// A buffer that grows likewise, from the beginning of a cache line on.
template <typename T>
class AlignedBuffer {
 public:
  void grow(int64_t size) {
    constexpr size_t kCacheLine = 64;
    grow_buffer(memory_, size + int64_t(kCacheLine / sizeof(T)));
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    first_ = memory_.data() + (kCacheLine - address % kCacheLine) % kCacheLine / sizeof(T);
  }
  T* data() { return first_; }

 private:
  std::vector<T> memory_;
  T* first_ = nullptr;
};

class PreparedStore {
 public:
  // Makes room for up to `rows` rows of up to `inputs` inputs, filled up to whole blocks, and
  // chooses the kernels of the products until the next call: another thread may choose another
  // instruction set in the meantime.
  void reserve(RowKind kind, int64_t rows, int64_t inputs, int threads);

  RowForm form_of(BlockFormat format, int64_t rows) const;

  // Computes `rows` rows of the source in the given forms (bit f: RowForm f), together with the
  // other members; returns when they are there. One row alone is computed by every member for
  // itself, which takes less than waiting.
  void prepare(const RowSource& source, int64_t rows, int64_t inputs, unsigned forms,
               const TeamMember& member);

  // Panels [begin, end) of a matrix times all rows.
  void multiply(const BlockMatrixView& matrix, int64_t rows, int64_t begin, int64_t end,
                const ProductTarget& target, const TeamMember& member);

 private:
  PreparedRows floats(const RowGroups& groups, int64_t group, int64_t inputs,
                      const TeamMember& member);
  CodeRows codes(const RowGroups& groups, int64_t group, int64_t inputs, const TeamMember& member);
  TileRows tile_rows(const RowGroups& groups, int64_t group, int64_t inputs,
                     const TeamMember& member);

  const BlockKernels* block_ = nullptr;
  const CodeKernels* code_ = nullptr;
  const TileKernels* tiles_ = nullptr;
  RowKind kind_ = RowKind::kFloat32;
  int digits_ = 0;  // of codes; 0: rows are held in another form
  int64_t widest_ = 0;

  // The numbers of all rows or, of a row alone, of every member's own copy.
  std::vector<float> values_, sums_, code_products_, scales_, expanded_;
  std::vector<int8_t> codes_;
  std::vector<int32_t> code_sums_;
  // Tiles are loaded by cache lines.
  AlignedBuffer<uint16_t> tile_values_;
};

}  // namespace eaglerl
