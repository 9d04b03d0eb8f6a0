// Products of a pass with block matrices, by all members of a team.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/team.h"
#include "target/block_kernels.h"
#include "target/block_matrix.h"
#include "target/prepared_rows.h"

namespace eaglerl {

// A product whose outputs come from one matrix or from several, one after the other.
struct Projection {
  std::vector<std::shared_ptr<const BlockMatrix>> parts;
  std::vector<float> bias;  // of all outputs; empty: none

  int64_t outputs() const;
};

// A product of rows, for which `prepared` has room, of which every member takes pieces; some may
// still be at work on return.
void multiply_projection(const Projection& projection, int64_t rows, const RowSource& source,
                         ProductTarget target, PreparedStore& prepared, WorkQueue& queue,
                         const TeamMember& member);

// out (rows, outputs) = x (rows, inputs), rounded to the kind, times the matrix.
void multiply_block_matrix(const BlockMatrix& matrix, const float* x, float* out, int64_t rows,
                           RowKind kind, int threads);

}  // namespace eaglerl
