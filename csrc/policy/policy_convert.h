// Conversion between vectors of floats and memory of float32, bfloat16 or float16. Included only by
// policy_kernels.cpp.
#pragma once

#include "common/simd.h"
#include "policy/policy_kernels.h"

#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace eaglerl::EAGLERL_ISA {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef uint16_t VecH __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

static inline VecU widen(const void* source) {
#if defined(__AVX512F__)
  return (VecU)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)source));
#elif defined(__AVX2__)
  return (VecU)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)source));
#else
  return __builtin_convertvector(*(const VecH*)source, VecU);
#endif
}

static inline VecF load(const Bfloat16* source) { return (VecF)(widen(source) << 16); }

static inline VecF load(const Float16* source) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)source));
#elif defined(__F16C__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)source));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (VecF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)source)));
#else
  // Shifted into a float's fields, the bits of a half are a number 2^112 times too small (the
  // exponent biases differ by 127 - 15). The product is exact, also for subnormal halves. The
  // largest exponent means infinity or NaN.
  const VecU bits = widen(source);
  const VecU magnitude = (bits & 0x7fffu) << 13;
  const VecU scaled = (VecU)((VecF)magnitude * 5.192296858534828e33f);
  const VecU special = (VecU)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return (VecF)(scaled | special | ((bits & 0x8000u) << 16));
#endif
}

// Loads the first `count` < kLanes elements, then zeros.
template <typename Element>
static inline VecF load_some(const Element* source, int64_t count) {
  alignas(64) Element padded[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) padded[lane] = lane < count ? source[lane] : Element{};
  return load(padded);
}

static inline void store_some(float* target, VecF value, int64_t count) {
  for (int64_t lane = 0; lane < count; ++lane) target[lane] = value[lane];
}

static inline uint16_t round_to_bfloat16(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return uint16_t((bits >> 16) | 0x40u);  // a NaN stays NaN: rounding could make it infinity
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline uint16_t round_to_float16(uint32_t bits) {
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value += 0.5f;  // the unit in the last place of 0.5 is 2^-24: the addition rounds
    uint32_t sum;
    std::memcpy(&sum, &value, sizeof sum);
    return uint16_t(sign | (sum - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - (112u << 23)) >> 13));
}

template <typename Element>
static void convert_row(const void* x, int64_t count, float* out) {
  const Element* source = (const Element*)x;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(source + i));
  if (i < count) store_some(out + i, load_some(source + i, count - i), count - i);
}

static void to_float(const void* x, ElementType type, int64_t count, float* out) {
  if (type == kFloat32) convert_row<float>(x, count, out);
  if (type == kBfloat16) convert_row<Bfloat16>(x, count, out);
  if (type == kFloat16) convert_row<Float16>(x, count, out);
}

static void from_float(const float* x, ElementType type, int64_t count, void* out) {
  if (type == kFloat32) {
    convert_row<float>(x, count, (float*)out);
    return;
  }
  uint16_t* target = (uint16_t*)out;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    target[i] = type == kBfloat16 ? round_to_bfloat16(bits) : round_to_float16(bits);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
