// 16-bit floats, read into and written from vectors of floats. Included only by sources that are
// compiled once per instruction set.
#pragma once

#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

typedef uint16_t VecHalf __attribute__((vector_size(kLanes * 2)));

// kLanes half-precision numbers.
static inline VecF load_halves(const void* source) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)source));
#elif defined(__AVX2__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)source));
#else
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, subnormal numbers included.
  VecHalf halves;
  std::memcpy(&halves, source, sizeof(halves));
  const VecU bits = __builtin_convertvector(halves, VecU);
  const VecU magnitude = (bits & 0x7fff) << 13;
  const VecF scaled = (VecF)magnitude * 0x1p112f;
  const VecU special = (VecU)((bits & 0x7c00) == 0x7c00) & 0x7f800000u;
  return (VecF)((VecU)scaled | special | (bits & 0x8000) << 16);
#endif
}

static inline VecF load_bfloat16(const void* source) {
  VecHalf halves;
  std::memcpy(&halves, source, sizeof(halves));
  return (VecF)(__builtin_convertvector(halves, VecU) << 16);
}

constexpr uint32_t kInfinityBits = 0x7f800000;

// Both round to nearest, ties to even, as torch's `to` does: what is too large becomes infinite,
// and a NaN stays one.
static inline void store_halves(void* target, VecF value) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256((__m256i*)target, halves);
#elif defined(__AVX2__)
  const __m128i halves = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128((__m128i*)target, halves);
#else
  const VecU bits = (VecU)value, magnitude = bits & 0x7fffffff;
  // 13 bits of the mantissa go, and the exponent's bias falls from 127 to 15. A carry out of the
  // mantissa raises the exponent, as it should.
  const VecU normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Below 2^-14 the numbers are multiples of 2^-24, as floats from 0.5 to 1 are.
  const VecU tiny = (VecU)((VecF)magnitude + 0.5f) - 0x3f000000u;
  VecU halves = magnitude < 0x38800000u ? tiny : normal;
  halves = magnitude >= 0x477ff000u ? VecU{} + 0x7c00 : halves;  // from 65,520 on
  halves = magnitude > kInfinityBits ? VecU{} + 0x7e00 : halves;
  const VecHalf narrow = __builtin_convertvector(halves | (bits >> 16 & 0x8000), VecHalf);
  std::memcpy(target, &narrow, sizeof(narrow));
#endif
}

static inline void store_bfloat16(void* target, VecF value) {
  const VecU bits = (VecU)value;
  const VecU rounded = bits + 0x7fff + (bits >> 16 & 1);
  const VecU kept = (bits & 0x7fffffff) > kInfinityBits ? bits | 0x400000 : rounded;
  const VecHalf narrow = __builtin_convertvector(kept >> 16, VecHalf);
  std::memcpy(target, &narrow, sizeof(narrow));
}

}  // namespace eaglerl::EAGLERL_ISA
