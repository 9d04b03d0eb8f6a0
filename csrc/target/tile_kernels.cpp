// Products by AMX tiles. Compiled for one instruction set only, under the rule of
// block_kernels.cpp.
//
// A tile holds 16 rows of 64 bytes. One instruction multiplies 16 rows of a group with 16 outputs
// of a panel over 32 inputs in bfloat16: what takes 256 multiply-adds of vectors. Products of codes
// gain nothing from it: a block's sums have to leave their tile for the block's scale, and with
// that dot products take as long (three digits: 128 ns for 16 rows, against 88 to 145 ns, as other
// processes leave the unit free; Xeon of 2.0 GHz).
#include "target/block_scales.h"
#include "target/row_inputs.h"
#include "target/tile_rows.h"
#include "target/write_results.h"

namespace eaglerl::EAGLERL_ISA {
namespace {

static_assert(kLanes == kPanelOutputs, "a row of a tile is a vector");

struct alignas(64) TileShape {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The shapes of tiles 0 to 7 for the calling thread, until the end of the scope. Released tiles
// cost nothing when the thread is suspended.
class TileScope {
 public:
  explicit TileScope(const TileShape& shape) {
    // GCC 12 takes the instruction to read 8 bytes, and drops what was stored to the others.
    asm volatile("" ::"m"(shape));
    _tile_loadconfig(&shape);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// The upper halves of floats that bfloat16 holds exactly.
inline __m256i upper_halves(VecF value) {
  return _mm512_cvtepi32_epi16((__m512i)((VecU)value >> 16));
}

void prepare(const RowSource& source, int64_t first, int64_t begin, int64_t end,
             const TileRows& rows) {
  alignas(64) float inputs[kSumInputs];
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      compute_inputs(source, first + r, block * kSumInputs, inputs);
      uint16_t* out = rows.values + (block * rows.rows + r) * kSumInputs;
      for (int i = 0; i < kSumInputs; i += kLanes) {
        _mm256_storeu_si256((__m256i*)(out + i), upper_halves(load(inputs + i)));
      }
    }
  }
}

constexpr int kRowBytes = kSumInputs * 2;

// Sums of panel p and group g, in tile kGroups * p + g: several, since a tile's next product waits
// for its last one. The order of a sum is that of the inputs, in every shape.
template <int kGroups, int kPanels>
void multiply_panels(const BlockMatrixView& matrix, const TileRows* groups, int64_t panel,
                     float (&sums)[4][kMostTileRows][kPanelOutputs]) {
  static_assert(kGroups * kPanels <= 4 && kPanels != 3, "tiles 4 and 5 hold rows, 6 and 7 weights");
  const uint8_t* codes = matrix.panels + panel * matrix.layout.bytes;
  const int64_t panel_bytes = matrix.layout.bytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t block = 0; block < matrix.layout.blocks; ++block) {
    for (int p = 0; p < kPanels; ++p) {
      prefetch_ahead<BlockFormat::kBF16>(matrix.panels + (panel + p) * panel_bytes, matrix.layout,
                                         block);
    }
    _tile_loadd(4, groups[0].values + block * groups[0].rows * kSumInputs, kRowBytes);
    _tile_loadd(6, codes, kWordBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kGroups == 2) {
      _tile_loadd(5, groups[1].values + block * groups[1].rows * kSumInputs, kRowBytes);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (kPanels >= 2) _tile_loadd(7, codes + panel_bytes, kWordBytes);
    if constexpr (kPanels >= 2 && kGroups == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kPanels >= 2 && kGroups == 2) {
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (kPanels == 4) {
      _tile_loadd(6, codes + 2 * panel_bytes, kWordBytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, codes + 3 * panel_bytes, kWordBytes);
      _tile_dpbf16ps(3, 4, 7);
    }
    codes += kLayout<BlockFormat::kBF16>.code_bytes;
  }
  _tile_stored(0, sums[0], kWordBytes);
  _tile_stored(1, sums[1], kWordBytes);
  _tile_stored(2, sums[2], kWordBytes);
  _tile_stored(3, sums[3], kWordBytes);
}

template <int kGroups, int kPanels>
void multiply_and_write(const BlockMatrixView& matrix, const TileRows* groups, int64_t panel,
                        const ProductTarget& target) {
  alignas(64) float sums[4][kMostTileRows][kPanelOutputs];
  multiply_panels<kGroups, kPanels>(matrix, groups, panel, sums);
  for (int p = 0; p < kPanels; ++p) {
    ProductTarget place = target;
    for (int g = 0; g < kGroups; ++g) {
      for (int r = 0; r < groups[g].rows; ++r, place.out += place.stride) {
        const VecF result[1] = {load(sums[kGroups * p + g][r])};
        write_results<1>(result, (panel + p) * kPanelOutputs, matrix.outputs, place);
      }
    }
  }
}

void multiply(const BlockMatrixView& matrix, const TileRows* groups, int count, int64_t begin,
              int64_t end, const ProductTarget& target) {
  // Of a smaller second group, a tile holds what comes after its rows, too; it is not written.
  const int rows = count == 2 && groups[1].rows > groups[0].rows ? groups[1].rows : groups[0].rows;
  TileShape shape;
  for (int t = 0; t < 8; ++t) {
    shape.row_bytes[t] = kWordBytes;
    shape.rows[t] = uint8_t(t < 6 ? rows : kMostTileRows);
  }
  const TileScope scope(shape);
  int64_t panel = begin;
  if (count == 2) {
    for (; panel + 2 <= end; panel += 2) multiply_and_write<2, 2>(matrix, groups, panel, target);
    for (; panel < end; ++panel) multiply_and_write<2, 1>(matrix, groups, panel, target);
  } else {
    for (; panel + 4 <= end; panel += 4) multiply_and_write<1, 4>(matrix, groups, panel, target);
    for (; panel < end; ++panel) multiply_and_write<1, 1>(matrix, groups, panel, target);
  }
}

}  // namespace

extern const TileKernels tiles;

const TileKernels tiles = {prepare, multiply};

}  // namespace eaglerl::EAGLERL_ISA
