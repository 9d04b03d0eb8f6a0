// The input rows of a product, in groups of up to 8, as kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "common/team.h"
#include "target/block_kernels.h"

namespace eaglerl {

inline int64_t group_count(int64_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }

// The first row of a group; the groups of a pass share its rows evenly.
inline int64_t group_begin(int64_t rows, int64_t group) { return rows * group / group_count(rows); }

// Makes a buffer at least so long; what it held is of no use afterwards.
template <typename T>
void grow_buffer(std::vector<T>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.resize(size_t(size));
}

class PreparedStore {
 public:
  // Makes room for `rows` rows of up to `inputs` inputs.
  void reserve(int64_t rows, int64_t inputs, int threads);

  // Computes all rows of the source, together with the other members; returns when they are there.
  // One row alone is computed by every member for itself, which takes less than waiting.
  void prepare(const BlockKernels& kernels, const RowSource& source, int64_t rows, int64_t inputs,
               bool as_float, bool as_int8, const TeamMember& member);

  // All rows of a product with at least kManyRows of them; every member prepares a share.
  ManyRows prepare_many(const BlockKernels& kernels, const RowSource& source, int64_t rows,
                        int64_t inputs, const TeamMember& member);

  // A member's room for expanded weights.
  float* expanded(int64_t inputs, const TeamMember& member);

  PreparedRows group(int64_t group, int64_t rows, int64_t inputs, bool int8,
                     const TeamMember& member);

 private:
  // Rows that every member prepares for itself.
  static constexpr int64_t kAloneRows = 1;

  // The floats of a member's own row and of the rows in common.
  std::vector<float> values_, sums_, code_products_, scales_, expanded_;
  std::vector<int32_t> words_, code_sums_;
  int64_t inputs_ = 0;
};

}  // namespace eaglerl
