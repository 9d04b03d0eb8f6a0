#include "cuda/action_cache_cuda.h"
#include "cuda/cuda_block.h"

namespace eaglerl {
namespace {

__global__ void __launch_bounds__(kBlockThreads, 2)
    action_cache_step_kernel(const __grid_constant__ ActionCacheStepCall call) {
  __shared__ ActionCacheStepShared shared;
  CudaBlock block;
  step_action_cache(block, call, shared);
}

}  // namespace

const char* cuda_action_cache_step(const ActionCacheStepCall& call, void* stream) {
  action_cache_step_kernel<<<unsigned(call.sequences), kBlockThreads, 0,
                             static_cast<cudaStream_t>(stream)>>>(call);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace eaglerl
