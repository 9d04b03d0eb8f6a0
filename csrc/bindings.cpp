// Python bindings. Tensors arrive as addresses and sizes that eaglerl.ops has checked; nothing here
// knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "acceptance_bindings.h"
#include "cached_attention.h"
#include "cpu_kernels.h"
#include "move_rows.h"
#include "parallel.h"
#include "policy_bindings.h"
#include "tree_bindings.h"

#if EAGLERL_HAS_CUDA
#include "cuda_bindings.h"
#endif

namespace py = pybind11;

namespace eaglerl {
namespace {

constexpr int64_t kSerialElements = 65'536;  // an elementwise op below this runs on one thread

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int64_t grain_of(int64_t rows, int64_t row_elements, int threads) {
  if (rows * row_elements < kSerialElements) return rows;
  return std::max<int64_t>(1, rows / (2 * int64_t(threads)));
}

void bind_rms_norm(uintptr_t x, int64_t x_stride, int64_t x_rows, uintptr_t index,
                   uintptr_t weight, uintptr_t out, int64_t out_stride, int64_t rows,
                   int64_t hidden, float eps, int threads) {
  if (index) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t source = at<const int64_t>(index)[row];
      if (source < 0 || source >= x_rows) {
        throw std::invalid_argument("index[" + std::to_string(row) + "] = " +
                                    std::to_string(source) + " is outside [0, " +
                                    std::to_string(x_rows) + ")");
      }
    }
  }
  const RmsNormCall call = {at<const float>(x),      x_stride,       at<const int64_t>(index),
                            at<const float>(weight), at<float>(out), out_stride,
                            hidden,                  eps};
  const CpuKernels& kernels = cpu_kernels();
  parallel_for(rows, grain_of(rows, hidden, threads), threads,
               [&](int64_t begin, int64_t end) { kernels.rms_norm(call, begin, end); });
}

void bind_silu_mul(uintptr_t gate_up, int64_t stride, uintptr_t out, int64_t rows,
                   int64_t intermediate, int threads) {
  const SiluMulCall call = {at<const float>(gate_up), stride, at<float>(out), intermediate};
  const CpuKernels& kernels = cpu_kernels();
  parallel_for(rows, grain_of(rows, intermediate, threads), threads,
               [&](int64_t begin, int64_t end) { kernels.silu_mul(call, begin, end); });
}

void bind_cached_attention(uintptr_t qkv, int64_t qkv_stride, uintptr_t cos, uintptr_t sin,
                           int64_t table_length, uintptr_t positions, uintptr_t cache_rows,
                           uintptr_t slots, uintptr_t key_cache, uintptr_t value_cache,
                           int64_t slot_count, int64_t slot_stride, int64_t capacity,
                           uintptr_t prefix_lengths, uintptr_t mask, int64_t mask_words,
                           int32_t block_length, uintptr_t query_norm, uintptr_t key_norm,
                           float eps, float scale, uintptr_t out, int64_t out_stride, int64_t rows,
                           int32_t query_heads, int32_t kv_heads, int32_t head_dim, int threads) {
  AttentionCall call = {};
  call.qkv = at<const float>(qkv);
  call.qkv_stride = qkv_stride;
  call.cos = at<const float>(cos);
  call.sin = at<const float>(sin);
  call.positions = at<const int32_t>(positions);
  call.cache_rows = at<const int32_t>(cache_rows);
  call.slots = at<const int32_t>(slots);
  call.key_cache = at<float>(key_cache);
  call.value_cache = at<float>(value_cache);
  call.slot_stride = slot_stride;
  call.capacity = capacity;
  call.prefix_lengths = at<const int32_t>(prefix_lengths);
  call.mask = at<const int64_t>(mask);
  call.mask_words = mask_words;
  call.block_length = block_length;
  call.query_norm = at<const float>(query_norm);
  call.key_norm = at<const float>(key_norm);
  call.eps = eps;
  call.scale = scale;
  call.out = at<float>(out);
  call.out_stride = out_stride;
  call.query_heads = query_heads;
  call.kv_heads = kv_heads;
  call.head_dim = head_dim;
  py::gil_scoped_release release;
  cached_attention(call, {table_length, slot_count}, rows, threads);
}

void bind_move_rows(uintptr_t base, int64_t outer, int64_t outer_stride, int64_t inner,
                    int64_t inner_stride, int64_t row_bytes, uintptr_t rows, int64_t count,
                    int64_t destination, int64_t capacity) {
  move_rows(at<char>(base), {outer, outer_stride, inner, inner_stride}, row_bytes,
            at<const int32_t>(rows), count, destination, capacity);
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
  module.def("cpu_isa", &cpu_isa, "Name of the instruction set that the kernels use.");
  module.def("available_isas", &list_isas, "Instruction sets this processor runs, widest first.");
  module.def("set_isa", &choose_isa, "Chooses one of available_isas() for the whole process.");
  module.def("threading_backend", &threading_backend, "'gomp', or 'none' if loops are serial.");
  module.def("rms_norm", &bind_rms_norm);
  module.def("silu_mul", &bind_silu_mul);
  module.def("cached_attention", &bind_cached_attention);
  module.def("move_rows", &bind_move_rows);
  bind_tree(module);
  bind_policy(module);
  bind_acceptance(module);
#if EAGLERL_HAS_CUDA
  bind_cuda_policy(module);
#endif
}
