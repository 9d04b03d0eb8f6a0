// The products of a panel with a group of rows in codes. Included only by code_kernels.cpp and
// tile_kernels.cpp.
#pragma once

#include "target/block_scales.h"
#include "target/code_kernels.h"
#include "target/write_results.h"

namespace eaglerl::EAGLERL_ISA {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kHasDot = true;
#else
constexpr bool kHasDot = false;
#endif

// Adds four products of unsigned and signed bytes to every lane, exactly.
static inline VecI dot4(VecI sum, VecU codes, int32_t word) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(word));
#elif defined(__AVXVNNI__)
  return (VecI)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, _mm256_set1_epi32(word));
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

// The value of a block's sums in units of the row's scale. Sums have at most 21 bits, so that each
// is a float exactly.
template <int kDigits>
static inline VecF joined(const VecI (&sums)[kDigits]) {
  if constexpr (kDigits == 1) {
    return to_floats(sums[0]);
  } else {
    return to_floats(sums[0]) * 65536.0f + (to_floats(sums[1]) * 256.0f + to_floats(sums[2]));
  }
}

// Adds a block's product to a row's result; `sums` is in units of the row's scale.
template <BlockFormat kFormat>
static inline void add_block(VecF sums, VecF scale, VecF minimum, float row_scale, float row_sum,
                             VecF& result) {
  result += sums * (scale * splat(row_scale));
  if constexpr (kLayout<kFormat>.has_minimum) result += minimum * splat(row_sum);
}

static inline int32_t read_word(const int8_t* codes) {
  int32_t word;
  std::memcpy(&word, codes, sizeof(word));
  return word;
}

template <BlockFormat kFormat, int kDigits, int kRows, int kWord>
static inline void add_words(const uint8_t* codes, int half, const int8_t* rows,
                             VecI (&sums)[kRows][kDigits]) {
  if constexpr (kWord < ByteCodes<kFormat>::kWords) {
    const VecU bytes = ByteCodes<kFormat>::template read<kWord>(codes, half);
    for (int r = 0; r < kRows; ++r) {
      for (int d = 0; d < kDigits; ++d) {
        const int32_t word = read_word(rows + (d * kRows + r) * kSumInputs + kWord * 4);
        sums[r][d] = dot4(sums[r][d], bytes, word);
      }
    }
    add_words<kFormat, kDigits, kRows, kWord + 1>(codes, half, rows, sums);
  }
}

template <BlockFormat kFormat, int kDigits, int kRows>
static inline void code_results(const uint8_t* panel, const PanelLayout& layout, int half,
                                const CodeRows& rows, VecF (&results)[kRows]) {
  using Codes = ByteCodes<kFormat>;
  constexpr bool kHalfBlock = kLayout<kFormat>.block == kHalfSumInputs;
  constexpr int kCodes = kDigits * kRows;
  const BlockScales<kFormat> scales(panel, layout, half);
  for (int r = 0; r < kRows; ++r) results[r] = VecF{};
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const uint8_t* codes = panel + block * kLayout<kFormat>.code_bytes;
    if (half == 0) prefetch_ahead<kFormat>(panel, layout, block);
    const int64_t unit = kHalfBlock ? block / 2 : block;
    const int8_t* row_codes =
        rows.codes + unit * kCodes * kSumInputs + (kHalfBlock ? block % 2 * kHalfSumInputs : 0);
    VecI sums[kRows][kDigits];
    for (int r = 0; r < kRows; ++r) {
      for (int d = 0; d < kDigits; ++d) {
        int32_t code_sum = 0;
        if constexpr (Codes::kOffset != 0) {
          const int32_t* place =
              rows.code_sums + (kHalfBlock ? block : 2 * block) * kCodes + d * kRows + r;
          code_sum = kHalfBlock ? place[0] : place[0] + place[kCodes];
        }
        sums[r][d] = splat(-Codes::kOffset * code_sum);
      }
    }
    add_words<kFormat, kDigits, kRows, 0>(codes, half, row_codes, sums);
    const VecF scale = scales.scale(block);
    VecF minimum = {};
    if constexpr (kLayout<kFormat>.has_minimum) minimum = scales.minimum(block);
    for (int r = 0; r < kRows; ++r) {
      add_block<kFormat>(joined<kDigits>(sums[r]), scale, minimum, rows.scales[unit * kRows + r],
                         rows.sums[unit * kRows + r], results[r]);
    }
  }
}

}  // namespace eaglerl::EAGLERL_ISA
