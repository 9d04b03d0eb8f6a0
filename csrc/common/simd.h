// Fixed-width float vectors for one instruction set. Included only by sources that are compiled
// once per instruction set; everything is in that set's namespace.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace eaglerl::EAGLERL_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(kLanes * 4), may_alias));
typedef float VecFUnaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4), may_alias));

static inline VecF load(const float* source) { return *(const VecFUnaligned*)source; }
static inline void store(float* target, VecF value) { *(VecFUnaligned*)target = value; }

// Subtracting +0 changes no value and no sign, so the compiler reduces this to one broadcast.
static inline VecF splat(float value) { return value - VecF{}; }
static inline VecI splat(int32_t value) { return value - VecI{}; }

static inline VecF maximum(VecF a, VecF b) {
#if defined(__AVX512F__)
  return (VecF)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

static inline float horizontal_sum(VecF value) {
#if defined(__AVX512F__)
  __m512 wide = (__m512)value;
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(wide), _mm512_extractf32x8_ps(wide, 1));
#elif defined(__AVX2__)
  __m256 half = (__m256)value;
#endif
#if defined(__AVX2__)
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
#else
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
#endif
}

static inline float horizontal_maximum(VecF value) {
  float best = value[0];
  for (int lane = 1; lane < kLanes; ++lane) best = value[lane] > best ? value[lane] : best;
  return best;
}

// 2^x with a relative error below 1e-7 for x in [-126, 127]; exactly 0 below -126. The argument is
// split into an integer, which is added to the exponent bits, and a remainder in [-0.5, 0.5], for
// which a minimax polynomial of degree 6 is used (relative error 2e-9 before rounding).
static inline VecF exp2_vector(VecF x) {
  const VecF kRound = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF bounded = maximum(x, splat(-126.0f));
  const VecF shifted = bounded + kRound;
  const VecF fraction = bounded - (shifted - kRound);
  VecF y = splat(1.5345795e-4f);
  y = y * fraction + 1.3399931e-3f;
  y = y * fraction + 9.6184891e-3f;
  y = y * fraction + 5.5503286e-2f;
  y = y * fraction + 2.4022646e-1f;
  y = y * fraction + 6.9314718e-1f;
  y = y * fraction + 1.0f;
  const VecI scaled = (VecI)((VecU)y + ((VecU)shifted << 23));
  return x < splat(-126.0f) ? VecF{} : (VecF)scaled;
}

constexpr float kLog2E = 1.44269504088896341f;

}  // namespace eaglerl::EAGLERL_ISA
