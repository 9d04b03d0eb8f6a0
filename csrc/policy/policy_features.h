// Normalises a token's features (low, mid, high) for the FC and sketches them for the action cache.
// Included only by policy_kernels.cpp.
#pragma once

#include <math.h>

#include "common/vector_math.h"
#include "policy/action_cache.h"
#include "policy/policy_convert.h"

namespace eaglerl::EAGLERL_ISA {

static_assert(kSketchSize % kLanes == 0, "the sketch consists of whole vectors");

static inline float inverse_rms(float squares, int64_t count, float eps) {
  return 1.0f / sqrtf(squares / float(count) + eps);
}

static void prepare_features(const FeatureRow& row, const FeatureNorm& norm, float* out) {
  const int64_t width = row.width;
  const float* source[kFeatureLayers];
  float scale[kFeatureLayers] = {1.0f, 1.0f, 1.0f}, total = 0.0f;
  for (int chunk = 0; chunk < kFeatureLayers; ++chunk) {
    source[chunk] = (const float*)row.chunk[chunk];
    if (row.type != kFloat32) {
      source[chunk] = out + chunk * width;
      to_float(row.chunk[chunk], row.type, width, out + chunk * width);
    }
    if (!norm.chunks) continue;
    const float squares = sum_of_squares(source[chunk], width);
    scale[chunk] = inverse_rms(squares, width, norm.eps);
    total += squares;
  }
  for (int chunk = 0; chunk < kFeatureLayers; ++chunk) {
    if (norm.chunks == 1) scale[chunk] = inverse_rms(total, kFeatureLayers * width, norm.eps);
    const float* weight = norm.weight ? norm.weight + chunk * width : nullptr;
    const float factor = scale[chunk];
    const float* x = source[chunk];
    float* y = out + chunk * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      const VecF scaled = load(x + i) * factor;
      store(y + i, weight ? scaled * load(weight + i) : scaled);
    }
    for (; i < width; ++i) y[i] = weight ? x[i] * factor * weight[i] : x[i] * factor;
  }
}

// Adds one chunk into buckets by the place within the chunk, and returns its sum of squares. A sign
// is the top bit of n * kFactor modulo 2^32. From one block of kSketchSize elements to the next the
// product grows by a constant, so one addition per vector replaces the multiplications.
template <typename Element>
static float sketch_chunk(const Element* x, int64_t width, uint32_t first, float* buckets) {
  constexpr int kParts = kSketchSize / kLanes;
  constexpr uint32_t kFactor = 2654435769u;
  alignas(64) uint32_t hashes[kSketchSize];
  VecF sums[kParts] = {}, squares = {};
  for (uint32_t n = 0; n < kSketchSize; ++n) hashes[n] = (first + n) * kFactor;
  int64_t i = 0;
  for (; i < width; i += kSketchSize) {
    const uint32_t step = uint32_t(i) * kFactor;
    for (int part = 0; part < kParts; ++part) {
      const int64_t place = i + part * kLanes;
      if (place >= width) break;
      const VecF value =
          place + kLanes <= width ? load(x + place) : load_some(x + place, width - place);
      const VecU sign = (*(const VecU*)(hashes + part * kLanes) + step) & 0x80000000u;
      sums[part] += (VecF)((VecU)value ^ sign);
      squares += value * value;
    }
  }
  for (int part = 0; part < kParts; ++part) store(buckets + part * kLanes, sums[part]);
  return horizontal_sum(squares);
}

static void sketch(const FeatureRow& row, float eps, float* out) {
  for (int bucket = 0; bucket < kSketchSize; ++bucket) out[bucket] = 0.0f;
  for (int chunk = 0; chunk < kFeatureLayers; ++chunk) {
    const void* x = row.chunk[chunk];
    const uint32_t first = uint32_t(chunk * row.width);
    alignas(64) float buckets[kSketchSize];
    const float squares =
        row.type == kFloat32    ? sketch_chunk((const float*)x, row.width, first, buckets)
        : row.type == kBfloat16 ? sketch_chunk((const Bfloat16*)x, row.width, first, buckets)
                                : sketch_chunk((const Float16*)x, row.width, first, buckets);
    const float scale = inverse_rms(squares, row.width, eps);
    for (uint32_t place = 0; place < kSketchSize; ++place) {
      out[(first + place) % kSketchSize] += scale * buckets[place];
    }
  }
}

static float dot(const float* x, const float* y, int64_t count) {
  VecF sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int part = 0; part < 4; ++part) {
      sums[part] += load(x + i + part * kLanes) * load(y + i + part * kLanes);
    }
  }
  for (; i < count; i += kLanes) {
    const int64_t left = count - i < kLanes ? count - i : kLanes;
    sums[0] += load_some(x + i, left) * load_some(y + i, left);
  }
  return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace eaglerl::EAGLERL_ISA
