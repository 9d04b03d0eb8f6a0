#include "cuda/cuda_block.h"
#include "cuda/folded_decision_cuda.h"
#include "policy/folded_decision.h"

namespace eaglerl {
namespace {

template <typename Weight, int kSequences>
__global__ void __launch_bounds__(kBlockThreads, kSequences == 1 ? 2 : 1)
    folded_decision_kernel(const __grid_constant__ FoldedCall call) {
  __shared__ FoldedShared<kSequences> shared;
  extern __shared__ Quad memory[];
  CudaBlock block;
  folded_decision<CudaBlock, Weight, kSequences>(block, call, shared, memory->values);
}

template <typename Weight>
void launch(const FoldedCall& call, cudaStream_t stream) {
  const dim3 grid(unsigned(call.plan.column_tiles) * unsigned(call.plan.row_tiles),
                  unsigned(call.plan.groups));
  const size_t bytes = sizeof(float) * size_t(call.plan.shared_floats);
  if (call.plan.block_sequences == 1) {
    folded_decision_kernel<Weight, 1><<<grid, kBlockThreads, bytes, stream>>>(call);
  } else {
    folded_decision_kernel<Weight, 8><<<grid, kBlockThreads, bytes, stream>>>(call);
  }
}

}  // namespace

const char* cuda_folded_decision(const FoldedCall& call, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (call.weight_type == kFloat32) launch<float>(call, queue);
  if (call.weight_type == kBfloat16) launch<DeviceBfloat16>(call, queue);
  if (call.weight_type == kFloat16) launch<DeviceFloat16>(call, queue);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace eaglerl
