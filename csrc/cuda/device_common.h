// Shared by the CUDA kernels: the shape of a block, the element types of tensors, and 16-byte
// vector loads.
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "policy/action_cache.h"
#include "policy/policy_types.h"

#if defined(__CUDACC__)
#define EAGLERL_DEVICE __device__ __forceinline__
#else
#define EAGLERL_DEVICE inline
#endif

namespace eaglerl {

constexpr int kBlockThreads = 256;
constexpr int kWarpLanes = 32;
constexpr int kBlockWarps = kBlockThreads / kWarpLanes;

struct DeviceBfloat16 {
  uint16_t bits;
};
struct DeviceFloat16 {
  uint16_t bits;
};

// The 16 bytes of one vector load, which must be aligned to 16.
struct alignas(16) Granule {
  uint32_t words[4];
};

struct alignas(16) Quad {
  float values[4];
};

EAGLERL_DEVICE float float_of_bits(uint32_t bits) { return word_as_float(int32_t(bits)); }

EAGLERL_DEVICE float float_of_half(uint32_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
  // As in policy_convert.h: the shifted bits are a number 2^112 times too small.
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  const float scaled = float_of_bits(magnitude) * 5.192296858534828e33f;
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return float_of_bits(uint32_t(float_as_word(scaled)) | special | ((bits & 0x8000u) << 16));
#endif
}

EAGLERL_DEVICE float to_float(float value) { return value; }
EAGLERL_DEVICE float to_float(DeviceBfloat16 value) { return float_of_bits(value.bits << 16); }
EAGLERL_DEVICE float to_float(DeviceFloat16 value) { return float_of_half(value.bits); }

EAGLERL_DEVICE float element_as_float(const void* data, int64_t index, ElementType type) {
  if (type == kFloat32) return static_cast<const float*>(data)[index];
  if (type == kBfloat16) return to_float(static_cast<const DeviceBfloat16*>(data)[index]);
  return to_float(static_cast<const DeviceFloat16*>(data)[index]);
}

// Unpacks four elements of a granule, in memory order. A granule of 2-byte elements has two planes.
EAGLERL_DEVICE void unpack_quad(const Granule& granule, int, float (&out)[4], float) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = float_of_bits(granule.words[i]);
}

EAGLERL_DEVICE void unpack_quad(const Granule& granule, int plane, float (&out)[4],
                                DeviceBfloat16) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = float_of_bits(granule.words[2 * plane + i] << 16);
    out[2 * i + 1] = float_of_bits(granule.words[2 * plane + i] & 0xffff0000u);
  }
}

EAGLERL_DEVICE void unpack_quad(const Granule& granule, int plane, float (&out)[4], DeviceFloat16) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = float_of_half(granule.words[2 * plane + i] & 0xffffu);
    out[2 * i + 1] = float_of_half(granule.words[2 * plane + i] >> 16);
  }
}

// Returns the 16 bytes that begin `shift` bytes (even, below 16) into two neighbouring granules.
// Three conditional moves keep every index a constant: a variable index would force the words out
// of registers into local memory.
EAGLERL_DEVICE Granule shifted(const Granule& low, const Granule& high, uint32_t shift) {
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = low.words[i];
    words[4 + i] = high.words[i];
  }
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = shift & 8u ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = shift & 4u ? words[i + 1] : words[i];
  Granule out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.words[i] = shift & 2u ? (words[i] >> 16) | (words[i + 1] << 16) : words[i];
  }
  return out;
}

}  // namespace eaglerl
