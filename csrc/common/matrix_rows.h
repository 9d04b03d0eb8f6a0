// One warp multiplies a few rows of a matrix with rows of floats, in loads of 16 bytes.
#pragma once

#include "cuda/device_common.h"

namespace eaglerl {

// Rows of a matrix that a warp multiplies at a time. With the 8 sequences of a block, a lane keeps
// 4 * 8 = 32 sums in registers, and each float of x that is read serves 4 rows.
constexpr int kWarpRows = 4;

// A few rows of floats, permuted to match loads of Weight. A lane loads 16 bytes of weights, 4 or 8
// elements, and reads the floats that go with them 4 at a time. In planes of every vector's first
// and second 4 floats, the 32 lanes read 512 consecutive bytes: no bank conflicts in shared memory.
template <typename Weight>
struct FloatRows {
  static constexpr int kVector = int(sizeof(Granule) / sizeof(Weight));
  static constexpr int kPlanes = kVector / 4;

  float* values;
  int stride;  // of a row, a multiple of kVector

  EAGLERL_DEVICE float& at(int row, int column) const {
    const int plane = column % kVector / 4;
    const int place = column / kVector * 4 + column % 4;
    return values[row * stride + plane * (stride / kPlanes) + place];
  }

  EAGLERL_DEVICE const float* quad(int row, int plane, int vector) const {
    return values + row * stride + plane * (stride / kPlanes) + vector * 4;
  }
};

// Adds this lane's share of the products of kWarpRows rows of weights and kSequences rows of
// floats.
template <class Block, typename Weight, int kSequences, bool kAligned>
EAGLERL_DEVICE void add_vectors(const Weight* const (&weights)[kWarpRows],
                                const FloatRows<Weight>& x, int vectors, int lane,
                                float (&sums)[kWarpRows * kSequences]) {
  constexpr int kVector = FloatRows<Weight>::kVector;
  // One sequence needs 4 sums instead of 32: there are registers for two loads in flight.
#pragma unroll(kSequences == 1 ? 2 : 1)
  for (int v = lane; v < vectors; v += kWarpLanes) {
    Granule granules[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(weights[r] + int64_t(v) * kVector);
      const Granule* granule = reinterpret_cast<const Granule*>(address & ~uintptr_t(15));
      if (kAligned) {
        granules[r] = Block::load(granule);
      } else {
        // A 16-byte load must be aligned, so two neighbours are loaded and shifted. If this vector
        // happens to be aligned, the second is not needed and may lie outside the matrix.
        const uint32_t shift = uint32_t(address & 15);
        const Granule next = Block::load(granule + (shift != 0 ? 1 : 0));
        granules[r] = shifted(Block::load(granule), next, shift);
      }
    }
#pragma unroll
    for (int plane = 0; plane < FloatRows<Weight>::kPlanes; ++plane) {
      float w[kWarpRows][4];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) unpack_quad(granules[r], plane, w[r], Weight{});
#pragma unroll
      for (int s = 0; s < kSequences; ++s) {
        const Quad quad = *reinterpret_cast<const Quad*>(x.quad(s, plane, v));
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[r * kSequences + s] += w[r][i] * quad.values[i];
          }
        }
      }
    }
  }
}

// Adds the products of rows [row, row + kWarpRows) of the matrix; rows from row_end on repeat the
// last one, and their sums are not used. `weights` is the first of `columns` columns in the first
// row.
template <class Block, typename Weight, int kSequences>
EAGLERL_DEVICE void add_products(const Weight* weights, int64_t row_stride, int row, int row_end,
                                 const FloatRows<Weight>& x, int columns, int lane,
                                 float (&sums)[kWarpRows * kSequences]) {
  if (row >= row_end) return;
  const Weight* rows[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    rows[r] = weights + int64_t(row + r < row_end ? row + r : row_end - 1) * row_stride;
  }
  const uintptr_t places = reinterpret_cast<uintptr_t>(weights) | (row_stride * sizeof(Weight));
  const int vectors = columns / FloatRows<Weight>::kVector;
  if (places % sizeof(Granule) == 0) {
    add_vectors<Block, Weight, kSequences, true>(rows, x, vectors, lane, sums);
  } else {
    add_vectors<Block, Weight, kSequences, false>(rows, x, vectors, lane, sums);
  }
  const int column = vectors * FloatRows<Weight>::kVector + lane;
  if (column >= columns) return;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const float weight = to_float(rows[r][column]);
#pragma unroll
    for (int s = 0; s < kSequences; ++s) sums[r * kSequences + s] += weight * x.at(s, column);
  }
}

}  // namespace eaglerl
