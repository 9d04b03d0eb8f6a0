#include "tree/tree_common.h"
#include "cuda/tree_cuda.h"

namespace eaglerl {
namespace {

constexpr int kStructureThreads = 32;

__global__ void accept_path_kernel(const int32_t* parents, const int64_t* tokens,
                                   const int64_t* choices, int32_t rows, int32_t* out_rows,
                                   int32_t* counts) {
  const int64_t offset = int64_t(blockIdx.x) * rows;
  counts[blockIdx.x] = accept_path(parents + offset, tokens + offset, choices + offset, rows,
                                   out_rows + offset);
}

__global__ void tree_structure_kernel(const int32_t* parents, int32_t rows, int32_t* levels,
                                      int64_t* mask, int32_t words) {
  const int64_t offset = int64_t(blockIdx.x) * rows;
  // Thread 0 walks the levels, the others one word of the mask each.
  if (threadIdx.x == 0) tree_levels(parents + offset, rows, levels + offset);
  for (int32_t word = int32_t(threadIdx.x) - 1; word < words; word += kStructureThreads - 1) {
    if (word >= 0) {
      ancestor_mask_word(parents + offset, rows, words, word, mask + offset * words);
    }
  }
}

const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* cuda_accept_path(const int32_t* parents, const int64_t* tokens, const int64_t* choices,
                             int32_t rows, int32_t batch, int32_t* out_rows, int32_t* counts,
                             void* stream) {
  accept_path_kernel<<<batch, 1, 0, static_cast<cudaStream_t>(stream)>>>(parents, tokens, choices,
                                                                         rows, out_rows, counts);
  return launch_error();
}

const char* cuda_tree_structure(const int32_t* parents, int32_t rows, int32_t batch,
                                int32_t* levels, int64_t* mask, int32_t words, void* stream) {
  tree_structure_kernel<<<batch, kStructureThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      parents, rows, levels, mask, words);
  return launch_error();
}

}  // namespace eaglerl
