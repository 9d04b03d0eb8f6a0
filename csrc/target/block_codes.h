// One output's weights, from its row in a GGUF file to its lane of a panel, and as floats.
#pragma once

#include <cstdint>

#include "target/block_matrix.h"

namespace eaglerl {

// Places of codes within the 32-bit word that a lane has for 8 inputs (4-bit codes). The low halves
// of its bytes hold inputs 0 to 3 and the high halves 4 to 7, so that one mask gives the operand of
// an 8-bit dot product over four neighbouring inputs.
constexpr int nibble_shift(int input) { return input % 4 * 8 + input / 4 * 4; }

// `row` is a row of the file, `panel` the first byte of a panel whose other lanes are left alone.
void pack_lane(BlockFormat format, const PanelLayout& layout, const uint8_t* row, int lane,
               uint8_t* panel);

// Writes layout.blocks * block floats, each rounded once or twice as ggml's own dequantisation.
void unpack_lane(BlockFormat format, const PanelLayout& layout, const uint8_t* panel, int lane,
                 float* out);

}  // namespace eaglerl
