// A block of threads as the kernels see it. Work is divided into phases: a function is called once
// for each thread, then there is a barrier. Kernels use threads in no other way, so a test can run
// them on a CPU, one thread after another and in any order.
#pragma once

#include "cuda/device_common.h"

namespace eaglerl {

class CudaBlock {
 public:
  __device__ int tile() const { return int(blockIdx.x); }
  __device__ int tiles() const { return int(gridDim.x); }
  __device__ int group() const { return int(blockIdx.y); }

  template <class Phase>
  __device__ __forceinline__ void each(Phase phase) {
    phase(int(threadIdx.x));
    __syncthreads();
  }

  // In every step, `terms` gives each thread kCount summands, and `use` is called once for each of
  // the warp's kCount totals, with its number.
  template <int kCount, class Terms, class Use>
  __device__ __forceinline__ void warp_sums(int steps, Terms terms, Use use) {
    constexpr int kSharers = kWarpLanes / kCount;  // lanes that end with the same total
    const int thread = int(threadIdx.x);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      float sums[kCount] = {};
      terms(thread, step, sums);
      const float total = total_of_lane(sums);
      const int lane = thread % kWarpLanes;
      if (lane % kSharers == 0) use(thread, step, lane / kSharers, total);
    }
    __syncthreads();
  }

  // Returns whether this block is the last of `count` to get here. The last block sees what the
  // others wrote, if it reads with fresh(), and resets the ticket to 0.
  __device__ bool is_last(uint32_t* ticket, uint32_t count, int32_t& flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      flag = atomicAdd(ticket, 1u) == count - 1u;
      if (flag) *ticket = 0u;
    }
    __syncthreads();
    __threadfence();
    return flag != 0;
  }

  // Reads past the first-level cache, which may hold a line from before another block wrote it.
  __device__ static float fresh(const float* value) { return __ldcg(value); }

  // Reads memory that no thread writes, through the read-only cache.
  __device__ static Granule load(const Granule* source) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(source));
    return {{words.x, words.y, words.z, words.w}};
  }

 private:
  // Sums over the warp. In every round a lane hands over half of its sums and keeps the other half:
  // 16 + 8 + 4 + 2 + 1 = 31 shuffles for 32 sums, where a butterfly for each sum would take
  // 5 * 32 = 160. At the end a lane holds the total of number lane * kCount / 32.
  template <int kCount, int kOffset = kWarpLanes / 2>
  __device__ __forceinline__ static float total_of_lane(const float (&sums)[kCount]) {
    if constexpr (kOffset == 0) {
      return sums[0];
    } else if constexpr (kCount == 1) {
      const float total[1] = {sums[0] + __shfl_xor_sync(0xffffffffu, sums[0], kOffset)};
      return total_of_lane<1, kOffset / 2>(total);
    } else {
      const bool upper = (threadIdx.x & kOffset) != 0;
      float halves[kCount / 2];
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const float sent = upper ? sums[i] : sums[i + kCount / 2];
        const float kept = upper ? sums[i + kCount / 2] : sums[i];
        halves[i] = kept + __shfl_xor_sync(0xffffffffu, sent, kOffset);
      }
      return total_of_lane<kCount / 2, kOffset / 2>(halves);
    }
  }
};

}  // namespace eaglerl
