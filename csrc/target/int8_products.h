// The products of a panel with a group of 8-bit rows. Included only by int8_kernels.cpp.
#pragma once

#include "target/block_products.h"

namespace eaglerl::EAGLERL_ISA {

// Adds four products of unsigned and signed bytes to every lane, exactly.
static inline VecI dot4(VecI sum, VecU codes, int32_t word) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(word));
#elif defined(__AVX512F__)
  const __m512i low = _mm512_set1_epi32(0x00ff00ff);
  const __m512i words = _mm512_set1_epi32(word);
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512((__m512i)codes, low),
                                         _mm512_srai_epi16(_mm512_slli_epi16(words, 8), 8));
  const __m512i odd =
      _mm512_madd_epi16(_mm512_srli_epi16((__m512i)codes, 8), _mm512_srai_epi16(words, 8));
  return sum + (VecI)even + (VecI)odd;
#elif defined(__AVX2__)
  const __m256i low = _mm256_set1_epi32(0x00ff00ff);
  const __m256i words = _mm256_set1_epi32(word);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)codes, low),
                                         _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8));
  const __m256i odd =
      _mm256_madd_epi16(_mm256_srli_epi16((__m256i)codes, 8), _mm256_srai_epi16(words, 8));
  return sum + (VecI)even + (VecI)odd;
#else
  for (int i = 0; i < 4; ++i) {
    sum += (VecI)(codes >> (8 * i) & 255) * splat(int32_t(int8_t(uint32_t(word) >> (8 * i))));
  }
  return sum;
#endif
}

// A block's codes as bytes, four neighbouring inputs a word, plus kOffset where they are signed.
template <BlockFormat kFormat>
struct ByteCodes {
  static constexpr int kWords = kLayout<kFormat>.block / 4;
  static constexpr int kOffset = kFormat == BlockFormat::kQ4_0   ? 8
                                 : kFormat == BlockFormat::kQ6_K ? 32
                                 : kFormat == BlockFormat::kQ8_0 ? 128
                                                                 : 0;

  template <int kWord>
  static VecU read(const uint8_t* codes, int half) {
    const int lane = half * kLanes * 4;
    if constexpr (kFormat == BlockFormat::kQ8_0) {
      return load_words(codes + kWord * kWordBytes + lane) ^ 0x80808080u;
    } else {
      const VecU words = load_words(codes + kWord / 2 * kWordBytes + lane);
      VecU bytes = (words >> (kWord % 2 * 4)) & 0x0f0f0f0fu;
      if constexpr (kFormat == BlockFormat::kQ5_K) {
        const VecU high = load_words(codes + 4 * kWordBytes + lane);
        bytes |= (high >> kWord & 0x01010101u) << 4;
      } else if constexpr (kFormat == BlockFormat::kQ6_K) {
        const VecU high = load_words(codes + 2 * kWordBytes + lane);
        bytes |= (high >> (2 * kWord) & 0x03030303u) << 4;
      }
      return bytes;
    }
  }
};

template <BlockFormat kFormat, int kRows, int kWord>
static inline void add_words(const uint8_t* codes, int half, const int32_t* words,
                             VecI (&sums)[kRows]) {
  if constexpr (kWord < ByteCodes<kFormat>::kWords) {
    const VecU bytes = ByteCodes<kFormat>::template read<kWord>(codes, half);
    for (int r = 0; r < kRows; ++r) sums[r] = dot4(sums[r], bytes, words[kWord * kRows + r]);
    add_words<kFormat, kRows, kWord + 1>(codes, half, words, sums);
  }
}

template <BlockFormat kFormat, int kRows>
static inline void int8_results(const uint8_t* panel, const PanelLayout& layout, int half,
                                const PreparedRows& rows, VecF (&results)[kRows]) {
  using Codes = ByteCodes<kFormat>;
  constexpr bool kHalfBlock = kLayout<kFormat>.block == kHalfSumInputs;
  const BlockScales<kFormat> scales(panel, layout, half);
  const int32_t* words = rows.words;
  for (int r = 0; r < kRows; ++r) results[r] = VecF{};
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const uint8_t* codes = panel + block * kLayout<kFormat>.code_bytes;
    VecI sums[kRows];
    for (int r = 0; r < kRows; ++r) {
      int32_t code_sum = 0;
      if constexpr (Codes::kOffset != 0 && kHalfBlock) {
        code_sum = rows.code_sums[block * kRows + r];
      } else if constexpr (Codes::kOffset != 0) {
        code_sum =
            rows.code_sums[2 * block * kRows + r] + rows.code_sums[(2 * block + 1) * kRows + r];
      }
      sums[r] = splat(-Codes::kOffset * code_sum);
    }
    add_words<kFormat, kRows, 0>(codes, half, words, sums);
    words += Codes::kWords * kRows;
    const int64_t unit = (kHalfBlock ? block / 2 : block) * kRows;
    const VecF scale = scales.scale(block);
    for (int r = 0; r < kRows; ++r) {
      results[r] += to_floats(sums[r]) * (scale * splat(rows.scales[unit + r]));
    }
    if constexpr (kLayout<kFormat>.has_minimum) {
      const VecF minimum = scales.minimum(block);
      for (int r = 0; r < kRows; ++r) results[r] += minimum * splat(rows.sums[unit + r]);
    }
  }
}

template <BlockFormat kFormat>
struct Int8Product {
  template <int kRows>
  static void compute(const uint8_t* panel, const PanelLayout& layout, int half,
                      const PreparedRows& rows, VecF (&results)[kRows]) {
    int8_results<kFormat, kRows>(panel, layout, half, rows, results);
  }
};

}  // namespace eaglerl::EAGLERL_ISA
