// Rows in codes and their products by dot products of bytes. Compiled once per instruction set, see
// block_kernels.cpp.
#include "target/code_kernels.h"

#include "target/code_products.h"
#include "target/formats.h"
#include "target/row_inputs.h"

namespace eaglerl::EAGLERL_ISA {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
constexpr int kMantissaBits = 23;
constexpr int kExponentBias = 127;

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The bits of the largest magnitude of 32 inputs. Not a maximum of floats, which would lose a NaN:
// as integers, magnitudes order like floats.
uint32_t largest_magnitude(const float* x) {
  VecI largest = {};
  for (int i = 0; i < kSumInputs; i += kLanes) {
    const VecI bits = (VecI)load(x + i) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
#if defined(__AVX512F__)
  return uint32_t(_mm512_reduce_max_epi32((__m512i)largest));
#else
  int32_t best = 0;
  for (int lane = 0; lane < kLanes; ++lane) best = largest[lane] > best ? largest[lane] : best;
  return uint32_t(best);
#endif
}

// One digit of 32 inputs; returns their scale.
float quantise(const float* inputs, int32_t* values) {
  const float scale = from_bits(largest_magnitude(inputs)) * (1.0f / 127.0f);
  // Below the smallest normal number the reciprocal would be infinite: such a block counts as 0. A
  // NaN or an infinity stays in the scale, and so reaches the result.
  const bool tiny = scale < 1.17549435e-38f;
  const VecF inverse = splat(tiny ? 0.0f : 1.0f / scale);
  for (int i = 0; i < kSumInputs; i += kLanes) {
    const VecF scaled = load(inputs + i) * inverse;
    const VecF bounded = scaled == scaled ? scaled : VecF{};
    const VecI code = (VecI)(bounded + splat(kRound)) - (VecI)splat(kRound);
    std::memcpy(values + i, &code, sizeof(code));
  }
  return tiny ? 0.0f : scale;
}

// Numbers of 24 bits for 32 inputs; returns their scale, a power of two. The most significant digit
// of 127.5 and more would not fit a byte: 1 / 64 above the largest magnitude keeps clear of it.
float fix_point(const float* inputs, int32_t* values) {
  const float largest = from_bits(largest_magnitude(inputs));
  uint32_t bits;
  const float bound = largest * 1.015625f;
  std::memcpy(&bits, &bound, sizeof(bits));
  const int exponent = int(bits >> kMantissaBits);  // biased
  constexpr int kLow = kMantissaBits - 1;
  // Below 2^-104 the scale would not be a normal number: such a block counts as 0. 255: not finite.
  const bool none = exponent <= kLow || exponent == 255;
  const VecF inverse = splat(
      none ? 0.0f : from_bits(uint32_t(2 * kExponentBias + kLow - exponent) << kMantissaBits));
  for (int i = 0; i < kSumInputs; i += kLanes) {
    const VecF scaled = load(inputs + i) * inverse;
    const VecF nearest = scaled + (scaled < 0.0f ? splat(-0.5f) : splat(0.5f));
    // No number: its scale reaches the result.
    const VecF bounded = nearest == nearest ? nearest : VecF{};
    const VecI value = __builtin_convertvector(bounded, VecI);
    // Digits from -128 to 127: an offset of 128 in each of them carries over to the next.
    const VecI digits = (value + 0x808080) ^ 0x808080;
    std::memcpy(values + i, &digits, sizeof(digits));
  }
  if (exponent == 255) return from_bits(0x7fc00000u);
  return none ? 0.0f : from_bits(uint32_t(exponent - kLow) << kMantissaBits);
}

// Byte `byte` of 32 words.
void take_bytes(const int32_t* words, int byte, int8_t* out) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  for (int i = 0; i < kSumInputs; i += kLanes) {
    VecI word;
    std::memcpy(&word, words + i, sizeof(word));
    const Bytes bytes = __builtin_convertvector(word >> (8 * byte), Bytes);
    std::memcpy(out + i, &bytes, sizeof(bytes));
  }
}

// Sums of the first and of the last 16 of 32 codes.
void sum_halves(const int8_t* codes, int32_t* sums) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
  const __m256i ones = _mm256_set1_epi8(1);
#if defined(__AVX512VNNI__)
  const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, bytes);
#else
  const __m256i fours = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), ones, bytes);
#endif
  const __m128i pairs =
      _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  _mm_storel_epi64((__m128i*)sums, _mm_hadd_epi32(pairs, pairs));
#else
  sums[0] = sums[1] = 0;
  for (int i = 0; i < kHalfSumInputs; ++i) {
    sums[0] += codes[i];
    sums[1] += codes[kHalfSumInputs + i];
  }
#endif
}

template <int kDigits>
void prepare_digits(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                    const CodeRows& rows) {
  const int64_t count = rows.rows;
  alignas(64) float inputs[kSumInputs];
  alignas(64) int32_t values[kSumInputs];
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t r = 0; r < count; ++r) {
      compute_inputs(source, first + r, block * kSumInputs, inputs);
      const float scale = kDigits == 1 ? quantise(inputs, values) : fix_point(inputs, values);
      int64_t total = 0;
      for (int d = 0; d < kDigits; ++d) {
        int8_t* codes = rows.codes + ((block * kDigits + d) * count + r) * kSumInputs;
        take_bytes(values, kDigits - 1 - d, codes);
        int32_t sums[2];
        sum_halves(codes, sums);
        int32_t* place = rows.code_sums + (2 * block * kDigits + d) * count + r;
        place[0] = sums[0];
        place[kDigits * count] = sums[1];
        total = total * 256 + sums[0] + sums[1];
      }
      rows.scales[block * count + r] = scale;
      rows.sums[block * count + r] = scale * float(total);
    }
  }
}

void prepare_codes(const RowSource& source, int64_t first, int64_t begin, int64_t end,
                   const CodeRows& rows) {
  if (rows.digits == 1) {
    prepare_digits<1>(source, first, begin, end, rows);
  } else {
    prepare_digits<3>(source, first, begin, end, rows);
  }
}

template <BlockFormat kFormat, int kDigits, int kRows>
void multiply_group(const BlockMatrixView& matrix, const CodeRows& rows, int64_t begin, int64_t end,
                    const ProductTarget& target) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* codes = matrix.panels + panel * matrix.layout.bytes;
    for (int half = 0; half < kPanelOutputs / kLanes; ++half) {
      VecF results[kRows];
      code_results<kFormat, kDigits, kRows>(codes, matrix.layout, half, rows, results);
      write_results<kRows>(results, panel * kPanelOutputs + half * kLanes, matrix.outputs, target);
    }
  }
}

template <BlockFormat kFormat, int kDigits, int kRows = 1>
void multiply_rows(const BlockMatrixView& matrix, const CodeRows& rows, int64_t begin, int64_t end,
                   const ProductTarget& target) {
  if constexpr (kRows < most_dot_rows(kDigits)) {
    if (rows.rows > kRows) {
      return multiply_rows<kFormat, kDigits, kRows + 1>(matrix, rows, begin, end, target);
    }
  }
  multiply_group<kFormat, kDigits, kRows>(matrix, rows, begin, end, target);
}

void multiply_codes(const BlockMatrixView& matrix, const CodeRows& rows, int64_t begin, int64_t end,
                    const ProductTarget& target) {
  with_blocks(matrix.format, [&](auto format) {
    if (rows.digits == 1) return multiply_rows<format.value, 1>(matrix, rows, begin, end, target);
    if constexpr (kHasDot) multiply_rows<format.value, 3>(matrix, rows, begin, end, target);
  });
}

}  // namespace

extern const CodeKernels codes;

const CodeKernels codes = {kHasDot, prepare_codes, multiply_codes};

}  // namespace eaglerl::EAGLERL_ISA
