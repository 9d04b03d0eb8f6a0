// A block's scales and minima for kLanes outputs of a panel. Included only by
// sources that are compiled once per instruction set.
#pragma once

#include "target/block_decode.h"

namespace eaglerl::EAGLERL_ISA {

template <BlockFormat kFormat>
constexpr BlockLayout kLayout = layout_of(kFormat);

// Reads the scales of successive blocks. Of the K formats a scale is the product of a half that 8
// or 16 blocks share and an integer of the block's own, which a float holds exactly.
template <BlockFormat kFormat>
struct BlockScales {
  static constexpr int kShared = kLayout<kFormat>.scales_per_super;
  static constexpr bool kIsSuper = kShared > 1;

  const uint8_t* scales;
  const uint8_t* minima;
  const uint8_t* subscales;
  const uint8_t* subminima;

  BlockScales(const uint8_t* panel, const PanelLayout& layout, int half)
      : scales(panel + layout.scales + half * kLanes * 2),
        minima(panel + layout.minima + half * kLanes * 2),
        subscales(panel + layout.subscales + half * kLanes),
        subminima(panel + layout.subminima + half * kLanes) {}

  VecF scale(int64_t block) const {
    const VecF shared = load_halves(scales + block / kShared * kPanelOutputs * 2);
    if constexpr (kFormat == BlockFormat::kQ6_K) {
      return shared * to_floats(load_bytes_signed(subscales + block * kPanelOutputs));
    } else if constexpr (kIsSuper) {
      return shared * to_floats(load_bytes_unsigned(subscales + block * kPanelOutputs));
    }
    return shared;
  }

  VecF minimum(int64_t block) const {
    const VecF shared = load_halves(minima + block / kShared * kPanelOutputs * 2);
    if constexpr (kIsSuper) {
      return shared * to_floats(-load_bytes_unsigned(subminima + block * kPanelOutputs));
    }
    return shared;
  }
};

// Asks for what is needed after about 1 us: the codes 4 kB ahead and the next panel's scales. The
// processor's own prefetching begins anew with every panel's areas. With one row on two threads,
// weights arrive at 18 instead of 12.8 GB/s (Xeon; 15.6 for a mere sum of all words). Whatever lies
// behind the matrix may be asked for, too, since a prefetch never faults.
template <BlockFormat kFormat>
static inline void prefetch_ahead(const uint8_t* panel, const PanelLayout& layout, int64_t block) {
  constexpr int kLine = 64, kAhead = 4096;
  const uint8_t* codes = panel + block * kLayout<kFormat>.code_bytes + kAhead;
#pragma GCC unroll 32
  for (int line = 0; line < kLayout<kFormat>.code_bytes; line += kLine) {
    __builtin_prefetch(codes + line);
  }
  // No format has more than 64 bytes of scales a block and panel.
  const int64_t scales = layout.scales + block * kLine;
  if (kLayout<kFormat>.has_scale && scales < layout.bytes) {
    __builtin_prefetch(panel + layout.bytes + scales);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
