// Codes of a panel as floats. Included only by sources that are compiled once per instruction set.
#pragma once

#include "common/half_vectors.h"
#include "target/block_codes.h"
#include "target/block_matrix.h"

namespace eaglerl::EAGLERL_ISA {

constexpr int kWordBytes = 64;  // a panel's vector of 16 words

static inline VecU load_words(const uint8_t* address) {
  VecU words;
  std::memcpy(&words, address, sizeof(words));
  return words;
}

static inline VecF to_floats(VecI values) { return __builtin_convertvector(values, VecF); }

static inline VecI load_bytes_signed(const uint8_t* address) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, address, sizeof(bytes));
  return __builtin_convertvector(bytes, VecI);
}

static inline VecI load_bytes_unsigned(const uint8_t* address) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, address, sizeof(bytes));
  return __builtin_convertvector(bytes, VecI);
}

// The decoders of the formats. `half` counts vectors of kLanes outputs within the panel;
// read() loads the codes of a run of 8 inputs, value<i>() gives input i of the run.
template <BlockFormat>
struct Decoder;

// 4-bit codes, minus kOffset.
template <int kOffset>
struct NibbleRun {
  VecU words;

  void read(const uint8_t* codes, int run, int half) {
    words = load_words(codes + run * kWordBytes + half * kLanes * 4);
  }
  template <int kInput>
  VecF value() const {
    constexpr int shift = nibble_shift(kInput);
#if defined(__AVX512F__)
    // A permutation reads the lowest 4 bits of its index: a table of 16 floats saves the mask and
    // the conversion.
    const __m512 table = _mm512_setr_ps(
        0.f - kOffset, 1.f - kOffset, 2.f - kOffset, 3.f - kOffset, 4.f - kOffset, 5.f - kOffset,
        6.f - kOffset, 7.f - kOffset, 8.f - kOffset, 9.f - kOffset, 10.f - kOffset, 11.f - kOffset,
        12.f - kOffset, 13.f - kOffset, 14.f - kOffset, 15.f - kOffset);
    return (VecF)_mm512_permutexvar_ps((__m512i)(words >> shift), table);
#else
    return to_floats((VecI)(words >> shift & 15) - kOffset);
#endif
  }
};

template <>
struct Decoder<BlockFormat::kQ4_0> : NibbleRun<8> {};
template <>
struct Decoder<BlockFormat::kQ4_1> : NibbleRun<0> {};
template <>
struct Decoder<BlockFormat::kQ4_K> : NibbleRun<0> {};

template <>
struct Decoder<BlockFormat::kQ5_K> {
  VecU words;
  VecU high;  // bit 8 * (input % 4) + input / 4 of the run

  void read(const uint8_t* codes, int run, int half) {
    words = load_words(codes + run * kWordBytes + half * kLanes * 4);
    high = load_words(codes + 4 * kWordBytes + half * kLanes * 4) >> (run * 2);
  }
  template <int kInput>
  VecF value() const {
    constexpr int shift = nibble_shift(kInput), place = kInput % 4 * 8 + kInput / 4;
    return to_floats((VecI)((words >> shift & 15) | (high >> place & 1) << 4));
  }
};

template <>
struct Decoder<BlockFormat::kQ6_K> {
  VecU words;
  VecU high;  // two bits at 8 * (input % 4) + 2 * (input / 4) of the run

  void read(const uint8_t* codes, int run, int half) {
    words = load_words(codes + run * kWordBytes + half * kLanes * 4);
    high = load_words(codes + 2 * kWordBytes + half * kLanes * 4) >> (run * 4);
  }
  template <int kInput>
  VecF value() const {
    constexpr int shift = nibble_shift(kInput), place = kInput % 4 * 8 + kInput / 4 * 2;
    const VecU code = (words >> shift & 15) | (high >> place & 3) << 4;
    return to_floats((VecI)code - 32);
  }
};

// Signed bytes. The AVX-512 build leaves them in the highest byte of their word, 2^24 times too
// large, and the scale makes up for it: exact, and one instruction less.
template <>
struct Decoder<BlockFormat::kQ8_0> {
#if defined(__AVX2__)
  static constexpr float kScale = 0x1p-24f;
#else
  static constexpr float kScale = 1.0f;
#endif
  VecU words[2];

  void read(const uint8_t* codes, int run, int half) {
    for (int i = 0; i < 2; ++i) {
      words[i] = load_words(codes + (2 * run + i) * kWordBytes + half * kLanes * 4);
    }
  }
  template <int kInput>
  VecF value() const {
    constexpr int byte = kInput % 4;
    const VecU word = words[kInput / 4];
#if defined(__AVX2__)
    if (byte == 3) return to_floats((VecI)(word & 0xff000000u));
#if defined(__AVX512F__)
    const __m512i order = _mm512_set4_epi32(
        int(0x0c808080u | uint32_t(byte) << 24), int(0x08808080u | uint32_t(byte) << 24),
        int(0x04808080u | uint32_t(byte) << 24), int(0x00808080u | uint32_t(byte) << 24));
    return to_floats((VecI)_mm512_shuffle_epi8((__m512i)word, order));
#else
    const __m128i quarter = _mm_set_epi32(
        int(0x0c808080u | uint32_t(byte) << 24), int(0x08808080u | uint32_t(byte) << 24),
        int(0x04808080u | uint32_t(byte) << 24), int(0x00808080u | uint32_t(byte) << 24));
    const __m256i order = _mm256_broadcastsi128_si256(quarter);
    return to_floats((VecI)_mm256_shuffle_epi8((__m256i)word, order));
#endif
#else
    return to_floats((VecI)(word << (24 - 8 * byte)) >> 24);
#endif
  }
};

// Numbers that are stored as they are: (inputs, 16).
template <>
struct Decoder<BlockFormat::kF32> {
  const uint8_t* place;

  void read(const uint8_t* codes, int run, int half) {
    place = codes + (run * 8 * kPanelOutputs + half * kLanes) * 4;
  }
  template <int kInput>
  VecF value() const {
    return (VecF)load_words(place + kInput * kPanelOutputs * 4);
  }
};

template <>
struct Decoder<BlockFormat::kF16> {
  const uint8_t* place;

  void read(const uint8_t* codes, int run, int half) {
    place = codes + (run * 8 * kPanelOutputs + half * kLanes) * 2;
  }
  template <int kInput>
  VecF value() const {
    return load_halves(place + kInput * kPanelOutputs * 2);
  }
};

// Pairs of neighbouring inputs, a word each: (inputs / 2, 16, 2).
template <>
struct Decoder<BlockFormat::kBF16> {
  const uint8_t* place;

  void read(const uint8_t* codes, int run, int half) {
    place = codes + run * 4 * kWordBytes + half * kLanes * 4;
  }
  template <int kInput>
  VecF value() const {
    const VecU word = load_words(place + kInput / 2 * kWordBytes);
    return kInput % 2 == 0 ? (VecF)(word << 16) : (VecF)(word & 0xffff0000u);
  }
};

}  // namespace eaglerl::EAGLERL_ISA
