#include "target/block_codes.h"

#include <cstring>

namespace eaglerl {
namespace {

constexpr int kWord = 4;                        // bytes of a lane's word
constexpr int kVector = kPanelOutputs * kWord;  // bytes of a panel's vector of words
constexpr int kLargestBlock = 256;

uint32_t read_word(const uint8_t* address) {
  uint32_t word;
  std::memcpy(&word, address, sizeof(word));
  return word;
}

void or_word(uint8_t* address, uint32_t bits) {
  const uint32_t word = read_word(address) | bits;
  std::memcpy(address, &word, sizeof(word));
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | fraction << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    const float small = float(fraction) * 0x1p-24f;
    std::memcpy(&bits, &small, sizeof(bits));
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t read_half(const uint8_t* address) {
  uint16_t half;
  std::memcpy(&half, address, sizeof(half));
  return half;
}

// A lane's places in a panel.
struct Lane {
  uint8_t* panel;
  const PanelLayout& layout;
  int lane;

  void put_half(int64_t area, int64_t index, const uint8_t* half) const {
    std::memcpy(panel + area + (index * kPanelOutputs + lane) * 2, half, 2);
  }
  void put_byte(int64_t area, int64_t index, uint8_t value) const {
    panel[area + index * kPanelOutputs + lane] = value;
  }
  // Codes of `count` inputs from the first of vector `vector` on, 8 a vector.
  void put_nibbles(int64_t first_byte, const uint8_t* codes, int count) const {
    for (int i = 0; i < count; ++i) {
      or_word(panel + first_byte + i / 8 * kVector + lane * kWord, uint32_t(codes[i] & 15)
                                                                       << nibble_shift(i % 8));
    }
  }
};

void pack_simple_nibbles(const Lane& lane, const uint8_t* row, const BlockLayout& kind) {
  const bool has_minimum = kind.has_minimum;
  for (int64_t block = 0; block < lane.layout.blocks; ++block, row += kind.file_bytes) {
    lane.put_half(lane.layout.scales, block, row);
    if (has_minimum) lane.put_half(lane.layout.minima, block, row + 2);
    const uint8_t* bytes = row + (has_minimum ? 4 : 2);
    uint8_t codes[32];
    for (int i = 0; i < 16; ++i) {
      codes[i] = bytes[i] & 15;
      codes[i + 16] = bytes[i] >> 4;
    }
    lane.put_nibbles(block * kind.code_bytes, codes, 32);
  }
}

void pack_bytes(const Lane& lane, const uint8_t* row, const BlockLayout& kind) {
  for (int64_t block = 0; block < lane.layout.blocks; ++block, row += kind.file_bytes) {
    lane.put_half(lane.layout.scales, block, row);
    for (int i = 0; i < 32; i += 4) {
      std::memcpy(lane.panel + block * kind.code_bytes + i / 4 * kVector + lane.lane * kWord,
                  row + 2 + i, 4);
    }
  }
}

// The 6-bit scale and minimum of sub-block `j` of 8, out of the 12 bytes of Q4_K and Q5_K.
void read_sub_scales(const uint8_t* packed, int j, uint8_t* scale, uint8_t* minimum) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *minimum = packed[j + 4] & 63;
  } else {
    *scale = uint8_t((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
    *minimum = uint8_t((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
  }
}

void pack_k_nibbles(const Lane& lane, const uint8_t* row, const BlockLayout& kind) {
  const bool five_bits = kind.format == BlockFormat::kQ5_K;
  for (int64_t super = 0; super < lane.layout.blocks / 8; ++super, row += kind.file_bytes) {
    lane.put_half(lane.layout.scales, super, row);
    lane.put_half(lane.layout.minima, super, row + 2);
    const uint8_t* high = row + 16;
    const uint8_t* low = high + (five_bits ? 32 : 0);
    for (int j = 0; j < 8; ++j) {
      const int64_t block = super * 8 + j;
      uint8_t scale, minimum;
      read_sub_scales(row + 4, j, &scale, &minimum);
      lane.put_byte(lane.layout.subscales, block, scale);
      lane.put_byte(lane.layout.subminima, block, minimum);
      uint8_t codes[32];
      for (int i = 0; i < 32; ++i) codes[i] = low[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
      lane.put_nibbles(block * kind.code_bytes, codes, 32);
      if (!five_bits) continue;
      // Bit 8 * (input % 4) + input / 4 of one word: a shift by input / 4 aligns four of them.
      uint32_t word = 0;
      for (int i = 0; i < 32; ++i) word |= uint32_t(high[i] >> j & 1) << (i % 4 * 8 + i / 4);
      or_word(lane.panel + block * kind.code_bytes + 4 * kVector + lane.lane * kWord, word);
    }
  }
}

void q6_codes(const uint8_t* block, uint8_t* codes) {
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + half * 64;
    const uint8_t* high = block + 128 + half * 32;
    uint8_t* out = codes + half * 128;
    for (int i = 0; i < 32; ++i) {
      out[i] = uint8_t((low[i] & 15) | (high[i] & 3) << 4);
      out[i + 32] = uint8_t((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
      out[i + 64] = uint8_t(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
      out[i + 96] = uint8_t(low[i + 32] >> 4 | (high[i] >> 6 & 3) << 4);
    }
  }
}

void pack_q6(const Lane& lane, const uint8_t* row, const BlockLayout& kind) {
  for (int64_t super = 0; super < lane.layout.blocks / 16; ++super, row += kind.file_bytes) {
    lane.put_half(lane.layout.scales, super, row + 208);
    uint8_t codes[kLargestBlock];
    q6_codes(row, codes);
    for (int j = 0; j < 16; ++j) {
      const int64_t block = super * 16 + j;
      lane.put_byte(lane.layout.subscales, block, row[192 + j]);
      lane.put_nibbles(block * kind.code_bytes, codes + j * 16, 16);
      // Two bits at 8 * (input % 4) + 2 * (input / 4).
      uint32_t word = 0;
      for (int i = 0; i < 16; ++i) {
        word |= uint32_t(codes[j * 16 + i] >> 4) << (i % 4 * 8 + i / 4 * 2);
      }
      or_word(lane.panel + block * kind.code_bytes + 2 * kVector + lane.lane * kWord, word);
    }
  }
}

// Where a lane's number for an input stands. Tiles of BF16 hold pairs of inputs.
int64_t plain_place(const BlockLayout& kind, int64_t input, int lane) {
  if (kind.format == BlockFormat::kBF16) {
    return (input / 2 * kPanelOutputs + lane) * kWord + input % 2 * kind.file_bytes;
  }
  return (input * kPanelOutputs + lane) * kind.file_bytes;
}

void pack_plain(const Lane& lane, const uint8_t* row, const BlockLayout& kind) {
  const int element = kind.file_bytes;
  for (int64_t i = 0; i < lane.layout.blocks * kind.block; ++i) {
    std::memcpy(lane.panel + plain_place(kind, i, lane.lane), row + i * element, size_t(element));
  }
}

}  // namespace

void pack_lane(BlockFormat format, const PanelLayout& layout, const uint8_t* row, int lane_number,
               uint8_t* panel) {
  const Lane lane = {panel, layout, lane_number};
  const BlockLayout& kind = *block_layout(format);
  switch (format) {
    case BlockFormat::kQ4_0:
    case BlockFormat::kQ4_1: return pack_simple_nibbles(lane, row, kind);
    case BlockFormat::kQ8_0: return pack_bytes(lane, row, kind);
    case BlockFormat::kQ4_K:
    case BlockFormat::kQ5_K: return pack_k_nibbles(lane, row, kind);
    case BlockFormat::kQ6_K: return pack_q6(lane, row, kind);
    case BlockFormat::kF32:
    case BlockFormat::kF16:
    case BlockFormat::kBF16: return pack_plain(lane, row, kind);
  }
}

namespace {

int read_nibble(const uint8_t* codes, int lane, int input) {
  const uint32_t word = read_word(codes + input / 8 * kVector + lane * kWord);
  return int(word >> nibble_shift(input % 8) & 15);
}

// The code of input `i` of a block, without its offset; 8-bit codes are signed.
int read_code(BlockFormat format, const uint8_t* codes, int lane, int i) {
  switch (format) {
    case BlockFormat::kQ8_0: return int8_t(codes[i / 4 * kVector + lane * kWord + i % 4]);
    case BlockFormat::kQ5_K: {
      const uint32_t word = read_word(codes + 4 * kVector + lane * kWord);
      return read_nibble(codes, lane, i) | int(word >> (i % 4 * 8 + i / 4) & 1) << 4;
    }
    case BlockFormat::kQ6_K: {
      const uint32_t word = read_word(codes + 2 * kVector + lane * kWord);
      return (read_nibble(codes, lane, i) | int(word >> (i % 4 * 8 + i / 4 * 2) & 3) << 4) - 32;
    }
    case BlockFormat::kQ4_0: return read_nibble(codes, lane, i) - 8;
    default: return read_nibble(codes, lane, i);
  }
}

float read_plain(BlockFormat format, const uint8_t* address) {
  if (format == BlockFormat::kF16) return half_to_float(read_half(address));
  uint32_t bits = 0;
  if (format == BlockFormat::kF32) {
    bits = read_word(address);
  } else {
    bits = uint32_t(read_half(address)) << 16;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

void unpack_lane(BlockFormat format, const PanelLayout& layout, const uint8_t* panel, int lane,
                 float* out) {
  const BlockLayout& kind = *block_layout(format);
  if (!kind.has_scale) {
    for (int64_t i = 0; i < layout.blocks * kind.block; ++i) {
      out[i] = read_plain(format, panel + plain_place(kind, i, lane));
    }
    return;
  }
  const auto half_at = [&](int64_t area, int64_t index) {
    return half_to_float(read_half(panel + area + (index * kPanelOutputs + lane) * 2));
  };
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int64_t super = block / kind.scales_per_super;
    float scale = half_at(layout.scales, super);
    float minimum = kind.has_minimum ? half_at(layout.minima, super) : 0.0f;
    if (kind.scales_per_super > 1) {
      const int64_t place = block * kPanelOutputs + lane;
      const uint8_t byte = panel[layout.subscales + place];
      // Q6_K's are signed, the others have 6 bits. Products of 11 and 8 bits are exact in floats.
      scale *= format == BlockFormat::kQ6_K ? float(int8_t(byte)) : float(byte);
      if (kind.has_minimum) minimum *= -float(panel[layout.subminima + place]);
    }
    const uint8_t* codes = panel + block * kind.code_bytes;
    for (int i = 0; i < kind.block; ++i) {
      *out++ = scale * float(read_code(format, codes, lane, i)) + minimum;
    }
  }
}

}  // namespace eaglerl
