// Python bindings. Tensors arrive as addresses and sizes. eaglerl.ops has checked that the memory
// is there; everything that the numbers alone can tell is checked here. torch is not linked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "acceptance/online_bindings.h"
#include "attention/cached_attention.h"
#include "attention/move_rows.h"
#include "common/checks.h"
#include "common/cpu_kernels.h"
#include "common/parallel.h"
#include "common/tensor_guard.h"
#include "common/thread_bindings.h"
#include "lookup/lookup_bindings.h"
#include "policy/policy_bindings.h"
#include "target/block_bindings.h"
#include "tree/tree_bindings.h"

#if EAGLERL_HAS_CUDA
#include "cuda/cuda_bindings.h"
#endif

namespace py = pybind11;

namespace eaglerl {
namespace {

constexpr int64_t kSerialElements = 65'536;  // an elementwise op below this runs on one thread

int64_t grain_of(int64_t rows, int64_t row_elements, int threads) {
  if (rows * row_elements < kSerialElements) return rows;
  return std::max<int64_t>(1, rows / (2 * int64_t(threads)));
}

// Checks a matrix with a row stride. Rows that are written must not overlap.
void check_matrix(const char* name, int64_t rows, int64_t width, int64_t stride, bool written) {
  check_between("rows", rows, 0, kLargestCount);
  check_size(name, width);
  check_between("stride", stride, written && rows > 1 ? width : 0, kLargestSize);
  check_product(name, {rows, std::max(width, stride)});
}

void bind_rms_norm(uintptr_t x, int64_t x_stride, int64_t x_rows, uintptr_t index, uintptr_t weight,
                   uintptr_t out, int64_t out_stride, int64_t rows, int64_t hidden, float eps,
                   int threads) {
  check_between("threads", threads, 1, kMostThreads);
  check_matrix("x", x_rows, hidden, x_stride, false);
  check_matrix("out", rows, hidden, out_stride, true);
  const int64_t* indices = optional_address<const int64_t>("index", index);
  if (!indices && rows > x_rows) {
    throw std::invalid_argument("rows = " + std::to_string(rows) + " exceeds the " +
                                std::to_string(x_rows) + " rows of x");
  }
  for (int64_t row = 0; indices && row < rows; ++row) {
    if (indices[row] < 0 || indices[row] >= x_rows) {
      throw std::invalid_argument("index[" + std::to_string(row) +
                                  "] = " + std::to_string(indices[row]) + " is outside [0, " +
                                  std::to_string(x_rows) + ")");
    }
  }
  const int64_t elements = rows * hidden;
  const RmsNormCall call = {element_address<const float>("x", x, elements),
                            x_stride,
                            indices,
                            element_address<const float>("weight", weight, elements),
                            element_address<float>("out", out, elements),
                            out_stride,
                            hidden,
                            eps};
  const CpuKernels& kernels = cpu_kernels();
  parallel_for(rows, grain_of(rows, hidden, threads), threads,
               [&](int64_t begin, int64_t end) { kernels.rms_norm(call, begin, end); });
}

void bind_silu_mul(uintptr_t gate_up, int64_t stride, uintptr_t out, int64_t rows,
                   int64_t intermediate, int threads) {
  check_between("threads", threads, 1, kMostThreads);
  check_size("intermediate", intermediate);
  check_matrix("gate_up", rows, 2 * intermediate, stride, false);
  const int64_t elements = rows * intermediate;
  const SiluMulCall call = {element_address<const float>("gate_up", gate_up, elements), stride,
                            element_address<float>("out", out, elements), intermediate};
  const CpuKernels& kernels = cpu_kernels();
  parallel_for(rows, grain_of(rows, intermediate, threads), threads,
               [&](int64_t begin, int64_t end) { kernels.silu_mul(call, begin, end); });
}

void bind_cached_attention(uintptr_t qkv, int64_t qkv_stride, uintptr_t cos, uintptr_t sin,
                           int64_t table_length, uintptr_t positions, uintptr_t cache_rows,
                           uintptr_t slots, uintptr_t key_cache, uintptr_t value_cache,
                           int64_t slot_count, int64_t slot_stride, int64_t capacity,
                           int32_t cache_dtype, uintptr_t prefix_lengths, uintptr_t mask,
                           int64_t mask_words, int32_t block_length, uintptr_t query_norm,
                           uintptr_t key_norm, float eps, float scale, uintptr_t out,
                           int64_t out_stride, int64_t rows, int32_t query_heads, int32_t kv_heads,
                           int32_t head_dim, int threads) {
  check_between("threads", threads, 1, kMostThreads);
  AttentionCall call = {};
  call.qkv_stride = qkv_stride;
  call.slot_stride = slot_stride;
  call.capacity = capacity;
  call.cache_dtype = check_cache_dtype(cache_dtype);
  call.mask_words = mask_words;
  call.block_length = block_length;
  call.eps = eps;
  call.scale = scale;
  call.out_stride = out_stride;
  call.query_heads = query_heads;
  call.kv_heads = kv_heads;
  call.head_dim = head_dim;
  const AttentionLimits limits = {table_length, slot_count};
  check_attention_sizes(call, limits, rows);
  call.qkv = element_address<const float>("qkv", qkv, rows);
  call.cos = element_address<const float>("cos", cos, std::min(rows, table_length));
  call.sin = element_address<const float>("sin", sin, std::min(rows, table_length));
  call.positions = element_address<const int32_t>("positions", positions, rows);
  call.cache_rows = element_address<const int32_t>("cache_rows", cache_rows, rows);
  call.slots = optional_address<const int32_t>("slots", slots);
  const int64_t written = std::min(rows, capacity);
  call.key_cache = cache_address("key_cache", key_cache, written, call.cache_dtype);
  call.value_cache = cache_address("value_cache", value_cache, written, call.cache_dtype);
  call.prefix_lengths = element_address<const int32_t>("prefix_lengths", prefix_lengths, rows);
  call.mask = element_address<const int64_t>("mask", mask, block_length > 0 ? rows : 0);
  call.query_norm = optional_address<const float>("query_norm", query_norm);
  call.key_norm = optional_address<const float>("key_norm", key_norm);
  call.out = element_address<float>("out", out, rows);
  py::gil_scoped_release release;
  cached_attention(call, limits, rows, threads);
}

void bind_move_rows(uintptr_t base, int64_t outer, int64_t outer_stride, int64_t inner,
                    int64_t inner_stride, int64_t row_bytes, uintptr_t rows, int64_t count,
                    int64_t destination, int64_t capacity) {
  check_between("count", count, 0, kLargestCount);
  const Lanes lanes = {outer, outer_stride, inner, inner_stride};
  move_rows(element_address<char>("cache", base, count), lanes, row_bytes,
            element_address<const int32_t>("rows", rows, count), count, destination, capacity);
}

std::vector<std::string> list_isas() {
  const char* names[8];
  const int count = available_isas(names, 8);
  return {names, names + count};
}

void choose_isa(const std::string& name) {
  if (set_isa(name.c_str())) return;
  std::string allowed;
  for (const std::string& isa : list_isas()) allowed += (allowed.empty() ? "" : ", ") + isa;
  throw std::invalid_argument("isa must be one of " + allowed + ", not '" + name + "'");
}

}  // namespace
}  // namespace eaglerl

PYBIND11_MODULE(_C, module) {
  using namespace eaglerl;
  module.doc() = "Native parts of eaglerl. Use them through eaglerl.ops, which checks arguments.";
  module.attr("compiler") = EAGLERL_COMPILER;
  module.attr("has_cuda") = EAGLERL_HAS_CUDA != 0;
  module.attr("max_head_dim") = kMaxHeadDim;
  pybind11::dict cache_dtypes;  // numbers of the dtypes of a KV cache, by torch's names
  cache_dtypes["float32"] = int(CacheDtype::kFloat32);
  cache_dtypes["bfloat16"] = int(CacheDtype::kBfloat16);
  cache_dtypes["float16"] = int(CacheDtype::kFloat16);
  module.attr("cache_dtypes") = cache_dtypes;
  module.def("cpu_isa", &cpu_isa, "Name of the instruction set that the kernels use.");
  module.def("available_isas", &list_isas, "Instruction sets this processor runs, widest first.");
  module.def("set_isa", &choose_isa, "Chooses one of available_isas() for the whole process.");
  module.def("rms_norm", &bind_rms_norm);
  module.def("silu_mul", &bind_silu_mul);
  module.def("cached_attention", &bind_cached_attention);
  module.def("move_rows", &bind_move_rows);
  bind_threads(module);
  bind_tensor_guard(module);
  bind_tree(module);
  bind_lookup(module);
  bind_policy(module);
  bind_online(module);
  bind_blocks(module);
#if EAGLERL_HAS_CUDA
  bind_cuda_policy(module);
#endif
}
