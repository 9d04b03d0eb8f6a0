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

}  // namespace eaglerl::EAGLERL_ISA
