// RMSNorm and SwiGLU rows. Included only by cpu_kernels.cpp.
#pragma once

#include <math.h>

#include "common/cpu_kernels.h"
#include "common/vector_math.h"

namespace eaglerl::EAGLERL_ISA {

static void rms_norm(const RmsNormCall& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t source = call.index ? call.index[row] : row;
    const float* x = call.x + source * call.x_stride;
    float* out = call.out + row * call.out_stride;
    const float mean = sum_of_squares(x, call.hidden) / float(call.hidden);
    const float inverse = 1.0f / sqrtf(mean + call.eps);
    int64_t i = 0;
    for (; i + kLanes <= call.hidden; i += kLanes) {
      store(out + i, load(x + i) * inverse * load(call.weight + i));
    }
    for (; i < call.hidden; ++i) out[i] = x[i] * inverse * call.weight[i];
  }
}

static void silu_mul(const SiluMulCall& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = call.gate_up + row * call.stride;
    const float* up = gate + call.intermediate;
    float* out = call.out + row * call.intermediate;
    int64_t i = 0;
    for (; i + kLanes <= call.intermediate; i += kLanes) {
      store(out + i, silu(load(gate + i)) * load(up + i));
    }
    if (i < call.intermediate) {
      const int64_t rest = call.intermediate - i;
      alignas(64) float padded[kLanes] = {};
      std::memcpy(padded, gate + i, rest * sizeof(float));
      const VecF activated = silu(load(padded));
      for (int64_t lane = 0; lane < rest; ++lane) out[i + lane] = activated[lane] * up[i + lane];
    }
  }
}

}  // namespace eaglerl::EAGLERL_ISA
