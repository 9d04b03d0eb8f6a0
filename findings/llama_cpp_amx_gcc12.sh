#!/usr/bin/env bash
# llama-cpp-python 0.3.36 (the llama.cpp in its sdist), compiled by GCC 12: on a CPU with AMX the first product of
# quantised weights kills the process.
#
# An 8-bit matrix of ones (32 x 64) is put into ggml's AMX buffer, where llama.cpp puts the weights of such a CPU by
# default, and multiplied with 8 rows of ones. Expected: 64 everywhere, or nearly so.
#
# Seen: SIGILL here; SIGSEGV at ldtilecfg in llama-server and llama-bench. ggml_tile_config_init fills a tile
# configuration of 64 bytes on the stack. GCC 12's amxtileintrin.h declares that _tile_loadconfig reads a pointer's size
# of it, 8 bytes, so that an optimised build drops the stores to the other 56, and the tiles' shapes are whatever lay
# there. With one line that reads all of it before the call, asm volatile("" :: "m"(tc)), the product is right.
#
# Debian 12 and its Python images have this compiler; `pip install llama-cpp-python==0.3.36` compiles there.
#
# Needs a CPU with AMX (/proc/cpuinfo), GCC 12 as c++, and ten minutes of one core. Ends with 2 without the two, with an
# error if this is no longer seen.
set -euo pipefail
grep -qw amx_int8 /proc/cpuinfo || { echo "this CPU has no AMX"; exit 2; }
[ "$(c++ -dumpversion | cut -d. -f1)" = 12 ] || { echo "c++ is $(c++ --version | head -1), not GCC 12"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q cmake==4.4.5 ninja==1.13.2
"$work/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$work" llama-cpp-python==0.3.36
tar -C "$work" -xzf "$work"/llama_cpp_python-0.3.36.tar.gz
source=$work/llama_cpp_python-0.3.36/vendor/llama.cpp
export PATH="$work/venv/bin:$PATH"

cat > "$work/product.cpp" <<'CPP'
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

constexpr int kInputs = 64, kOutputs = 32, kRows = 8;

int main() {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  auto extra = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
      ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
  ggml_backend_buffer_type_t amx = nullptr;
  for (auto* type = extra(device); *type; ++type) {
    if (!strcmp(ggml_backend_buft_name(*type), "AMX")) amx = *type;
  }
  if (!amx) return puts("ggml has no AMX buffer here"), 3;
  ggml_context* context = ggml_init({1 << 20, nullptr, true});
  ggml_tensor* weights = ggml_new_tensor_2d(context, GGML_TYPE_Q8_0, kInputs, kOutputs);
  ggml_tensor* input = ggml_new_tensor_2d(context, GGML_TYPE_F32, kInputs, kRows);
  ggml_tensor* output = ggml_mul_mat(context, weights, input);
  ggml_backend_buffer_t buffer =
      ggml_backend_buft_alloc_buffer(amx, ggml_backend_buft_get_alloc_size(amx, weights));
  ggml_backend_tensor_alloc(buffer, weights, ggml_backend_buffer_get_base(buffer));
  ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
  ggml_backend_cpu_set_n_threads(backend, 1);
  ggml_backend_alloc_ctx_tensors(context, backend);
  const std::vector<float> ones(kInputs * kOutputs, 1.0f);
  std::vector<char> blocks(ggml_nbytes(weights));
  ggml_quantize_chunk(GGML_TYPE_Q8_0, ones.data(), blocks.data(), 0, kOutputs, kInputs, nullptr);
  ggml_backend_tensor_set(weights, blocks.data(), 0, blocks.size());
  ggml_backend_tensor_set(input, ones.data(), 0, ggml_nbytes(input));
  ggml_cgraph* graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, output);
  ggml_backend_graph_compute(backend, graph);
  float low = 1e9f, high = -1e9f;
  std::vector<float> values(kOutputs * kRows);
  ggml_backend_tensor_get(output, values.data(), 0, ggml_nbytes(output));
  for (float value : values) low = std::min(low, value), high = std::max(high, value);
  printf("products from %.3f to %.3f\n", low, high);
  return low > 63.5f && high < 64.5f ? 0 : 4;
}
CPP

cmake -S "$source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_CURL=OFF > /dev/null
product() {
  cmake --build "$work/build" --target ggml > /dev/null
  libraries=$(find "$work/build" -name 'libggml*.so' -printf '%h\n' | sort -u | head -1)
  c++ -O2 -I "$source/ggml/include" "$work/product.cpp" -o "$work/product" \
    -L "$libraries" -Wl,-rpath,"$libraries" -lggml -lggml-cpu -lggml-base
  "$work/product" 2> /dev/null && code=0 || code=$?
}
echo "$(c++ --version | head -1); llama-cpp-python 0.3.36"
product
as_released=$code
sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1asm volatile("" :: "m"(tc));\n&/' "$source/ggml/src/ggml-cpu/amx/mmq.cpp"
product
with_line=$code
echo "as released: ends with $as_released (132 is SIGILL, 139 SIGSEGV); with the line: $with_line"
[[ $as_released =~ ^13[29]$ ]] && [ "$with_line" = 0 ] && echo "as described" || { echo "this has changed"; exit 1; }
