// The CUDA kernels of the policy's ops, run on the host, behind the bindings that the extension
// has: what eaglerl._C offers where it is built with CUDA.
#include "cuda_emulation.h"

#include "policy/folded_decision.h"

// In one source with the bindings: pybind11's headers take longest to compile.
#include "cuda/cuda_bindings.cpp"

namespace eaglerl {
namespace {

uint32_t thread_order = 0;
int64_t launches = 0;

// Shared memory starts with what an earlier block left: here, patterns that are NaN as floats.
template <typename T>
struct Poisoned {
  Poisoned() { std::memset(&value, 0xff, sizeof value); }
  T value;
};

std::vector<int> block_order(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(thread_order));
  return order;
}

template <typename Weight, int kSequences>
void run_folded(const FoldedCall& call) {
  const int tiles = call.plan.column_tiles * call.plan.row_tiles;
  for (int number : block_order(tiles * call.plan.groups)) {
    EmulatedBlock block(number % tiles, tiles, number / tiles, thread_order);
    Poisoned<FoldedShared<kSequences>> shared;
    // Quads are read at their alignment.
    std::vector<Quad> memory(size_t(call.plan.shared_floats) / 4 + 1);
    std::memset(memory.data(), 0xff, memory.size() * sizeof(Quad));
    folded_decision<EmulatedBlock, Weight, kSequences>(block, call, shared.value, memory[0].values);
  }
}

template <typename Weight>
void run_folded(const FoldedCall& call) {
  if (call.plan.block_sequences == 1) run_folded<Weight, 1>(call);
  if (call.plan.block_sequences == 8) run_folded<Weight, 8>(call);
}

}  // namespace

const char* cuda_folded_decision(const FoldedCall& call, void*) {
  ++launches;
  if (call.weight_type == kFloat32) run_folded<float>(call);
  if (call.weight_type == kBfloat16) run_folded<DeviceBfloat16>(call);
  if (call.weight_type == kFloat16) run_folded<DeviceFloat16>(call);
  return nullptr;
}

const char* cuda_action_cache_step(const ActionCacheStepCall& call, void*) {
  ++launches;
  for (int s : block_order(call.sequences)) {
    EmulatedBlock block(s, call.sequences, 0, thread_order);
    Poisoned<ActionCacheStepShared> shared;
    step_action_cache(block, call, shared.value);
  }
  return nullptr;
}

}  // namespace eaglerl

PYBIND11_MODULE(cuda_emulation, module) {
  eaglerl::bind_cuda_policy(module);
  module.def("set_order", [](uint32_t order) { eaglerl::thread_order = order; });
  module.def("launches", [] { return eaglerl::launches; });
}
