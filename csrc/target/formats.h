// A choice of code by format. Included only by sources that are compiled once per instruction set.
#pragma once

#include "target/block_matrix.h"

namespace eaglerl::EAGLERL_ISA {

template <BlockFormat kFormat>
struct FormatTag {
  static constexpr BlockFormat value = kFormat;
};

// Calls body with the tag of a format that has blocks.
template <class Body>
static inline void with_blocks(BlockFormat format, const Body& body) {
  switch (format) {
    case BlockFormat::kQ4_0: return body(FormatTag<BlockFormat::kQ4_0>());
    case BlockFormat::kQ4_1: return body(FormatTag<BlockFormat::kQ4_1>());
    case BlockFormat::kQ8_0: return body(FormatTag<BlockFormat::kQ8_0>());
    case BlockFormat::kQ4_K: return body(FormatTag<BlockFormat::kQ4_K>());
    case BlockFormat::kQ5_K: return body(FormatTag<BlockFormat::kQ5_K>());
    case BlockFormat::kQ6_K: return body(FormatTag<BlockFormat::kQ6_K>());
    default: return;
  }
}

}  // namespace eaglerl::EAGLERL_ISA
