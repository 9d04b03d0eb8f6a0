// Bindings of the CUDA kernels for the policy's ops. Addresses are on the device; no call waits for
// it.
#include "cuda/cuda_bindings.h"

#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/binding_methods.h"
#include "cuda/action_cache_cuda.h"
#include "cuda/folded_decision_cuda.h"
#include "policy/policy_checks.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// Sizes are 32 bits on the device.
int32_t narrow(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  return int32_t(check_between(name, value, lowest, highest));
}

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() / 64;

void check_launch(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

CacheArguments cache_arguments(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                               int64_t reference_size, uintptr_t ring) {
  CacheArguments cache = {};
  cache.mode = checked_mode(mode);
  cache.state = optional_address<int32_t>("state", state);
  cache.reference = optional_address<float>("reference", reference);
  int32_t* entries = optional_address<int32_t>("ring", ring);
  cache.ring = cache.mode == kCacheScheduled ? entries : nullptr;
  cache.slot_count = slots;
  cache.reference_size = narrow("reference_size", reference_size, 0, kLargest);
  check_cache_memory(cache.mode, cache.state != nullptr, slots, cache.reference != nullptr,
                     reference_size, entries != nullptr);
  return cache;
}

const void* matrix_address(const char* name, uintptr_t address, ElementType type) {
  if (type == kFloat32) return element_address<const float>(name, address, 1);
  return element_address<const uint16_t>(name, address, 1);
}

// A policy with its buffers set once: a call passes only what changes from call to call.
class CudaFoldedDecision : public PythonObject {
 public:
  CudaFoldedDecision(const std::vector<uintptr_t>& matrices, const std::vector<uintptr_t>& vectors,
                     const std::vector<int64_t>& widths, int32_t type, int32_t activation,
                     uintptr_t norm_weight, int32_t norm_chunks, float eps, bool reads_layers,
                     uintptr_t action_params, int64_t actions, int64_t columns, int64_t horizon,
                     int32_t fallback_action) {
    const size_t layers = matrices.size();
    check_widths(layers, vectors.size(), widths);
    if (layers < 2 || layers > kMaxLayers) {
      throw std::invalid_argument("weights must have 1 to " + std::to_string(kMaxLayers - 1) +
                                  " hidden layers on this path, got " +
                                  std::to_string(int64_t(layers) - 1));
    }
    call_.weight_type = checked_type("type", type);
    for (size_t i = 0; i < layers; ++i) {
      call_.layers[i] = {matrix_address("matrices", matrices[i], call_.weight_type),
                         element_address<const float>("vectors", vectors[i], 1),
                         narrow("out", widths[i + 1], 1, kLargest),
                         narrow("in", widths[i], 1, kLargest)};
    }
    check_actions(actions, columns, horizon, fallback_action);
    check_logits_width(actions, horizon, widths.back());
    check_feature_layers(norm_chunks, eps, reads_layers, widths.front());
    call_.layer_count = int32_t(layers);
    call_.activation = checked_activation(activation);
    call_.norm_weight = optional_address<const float>("norm_weight", norm_weight);
    call_.norm_chunks = norm_chunks;
    call_.eps = eps;
    call_.piece_count = reads_layers ? kMaxPieces : 1;
    call_.width = call_.layers[0].in / call_.piece_count;
    call_.rule.action_params =
        element_address<const int32_t>("action_params", action_params, columns * actions);
    call_.rule.actions = int32_t(actions);
    call_.rule.columns = int32_t(columns);
    call_.rule.horizon = int32_t(horizon);
    call_.rule.fallback_action = fallback_action;
  }

  void set_cache(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                 int64_t reference_size, uintptr_t ring) {
    const CacheArguments cache =
        cache_arguments(mode, state, slots, reference, reference_size, ring);
    const int64_t compared = call_.piece_count == 1 ? call_.width : kSketchSize;
    if (mode == kCacheAdaptive && reference_size != compared) {
      throw std::invalid_argument("reference_size must be " + std::to_string(compared) + ", got " +
                                  std::to_string(reference_size));
    }
    call_.cache = cache;
  }

  void set_outputs(uintptr_t logits, uintptr_t action, uintptr_t params) {
    call_.logits = element_address<float>("logits", logits, 1);
    call_.action = element_address<int32_t>("action", action, 1);
    call_.params = element_address<int32_t>("params", params, 1);
  }

  void set_draw(double temperature, uint64_t seed) {
    call_.rule.temperature = narrow_temperature(temperature);
    call_.rule.seed = seed;
  }

  // `mid` and `high` may be 0: then `low` is the whole row.
  void set_inputs(uintptr_t low, uintptr_t mid, uintptr_t high, int64_t low_stride,
                  int64_t mid_stride, int64_t high_stride, int32_t type, int64_t available) {
    const int64_t given_strides[] = {low_stride, mid_stride, high_stride};
    for (const int64_t stride : given_strides) check_size("strides", stride);
    check_between("available", available, 0, kLargestCount);
    if (!mid != !high) {
      throw std::invalid_argument("mid and high must be given together, or neither");
    }
    call_.input_type = checked_type("type", type);
    call_.input_rows = available;
    const uintptr_t bytes = uintptr_t(call_.width * element_size(call_.input_type));
    const bool whole = !mid && call_.piece_count > 1;
    const uintptr_t pieces[] = {low, whole ? low + bytes : mid, whole ? low + 2 * bytes : high};
    const int64_t strides[] = {low_stride, whole ? low_stride : mid_stride,
                               whole ? low_stride : high_stride};
    for (int i = 0; i < kMaxPieces; ++i) {
      call_.pieces[i] = reinterpret_cast<const void*>(pieces[i]);
      call_.row_strides[i] = strides[i];
    }
  }

  // Returns the floats of scratch memory and the tickets that a call with these sequences needs.
  py::tuple scratch(int64_t sequences) {
    plan_for(sequences);
    return py::make_tuple(call_.plan.scratch_floats, call_.plan.ticket_count);
  }

  // Tickets must be 0, and a call resets them to 0. Calls that may overlap must not share either.
  void set_scratch(uintptr_t scratch, uintptr_t tickets) {
    scratch_ = scratch;
    call_.tickets = optional_address<uint32_t>("tickets", tickets);
  }

  void run(uintptr_t rows, int64_t row_count, uintptr_t last, int64_t sequences, uintptr_t slots,
           uint64_t offset, uintptr_t stream) {
    if (sequences == 0) return;
    plan_for(sequences);
    check_between("row_count", row_count, 0, kLargestCount);
    element_address<int32_t>("action, of set_outputs(),", reinterpret_cast<uintptr_t>(call_.action),
                             sequences);
    element_address<uint32_t>("tickets, of set_scratch(),",
                              reinterpret_cast<uintptr_t>(call_.tickets), call_.plan.ticket_count);
    float* scratch =
        element_address<float>("scratch, of set_scratch(),", scratch_, call_.plan.scratch_floats);
    call_.partial_sums = scratch;
    call_.activations = scratch + call_.plan.partial_floats;
    call_.rows = optional_address<const int64_t>("rows", rows);
    call_.row_count = row_count;
    call_.last = optional_address<const int64_t>("last", last);
    call_.cache.slots = optional_address<const int64_t>("slots", slots);
    call_.rule.offset = offset;
    check_launch(cuda_folded_decision(call_, reinterpret_cast<void*>(stream)));
  }

 private:
  void plan_for(int64_t sequences) {
    call_.sequences = narrow("sequences", sequences, 1, kMaxSequences);
    call_.plan = plan_folded_decision(call_);
  }

  FoldedCall call_ = {};
  uintptr_t scratch_ = 0;
};

void bind_step(uintptr_t logits, uintptr_t action_params, uintptr_t features, uintptr_t state,
               uintptr_t reference, uintptr_t ring, uintptr_t slots, uintptr_t action,
               uintptr_t params, int64_t sequences, int64_t actions, int64_t columns,
               int64_t horizon, int64_t slot_count, int64_t reference_size, int32_t mode,
               double temperature, uint64_t seed, uint64_t offset, int32_t fallback_action,
               uintptr_t stream) {
  if (sequences == 0) return;
  ActionCacheStepCall call = {};
  call.logits = element_address<const float>("logits", logits, 1);
  call.features = optional_address<const float>("features", features);
  call.sequences = narrow("sequences", sequences, 1, kLargest);
  call.cache = cache_arguments(mode, state, slot_count, reference, reference_size, ring);
  call.cache.slots = optional_address<const int64_t>("slots", slots);
  check_actions(actions, columns, horizon, fallback_action);
  call.rule = {element_address<const int32_t>("action_params", action_params, columns * actions),
               int32_t(actions),
               int32_t(columns),
               narrow("horizon", horizon, 1, kLargest),
               fallback_action,
               narrow_temperature(temperature),
               seed,
               offset};
  call.action = element_address<int32_t>("action", action, 1);
  call.params = element_address<int32_t>("params", params, 1);
  if (mode == kCacheAdaptive && !features) {
    throw std::invalid_argument("an adaptive cache needs features");
  }
  check_launch(cuda_action_cache_step(call, reinterpret_cast<void*>(stream)));
}

}  // namespace

void bind_cuda_policy(py::module_& module) {
  py::class_<CudaFoldedDecision>(module, "CudaFoldedDecision")
      .def(py::init<const std::vector<uintptr_t>&, const std::vector<uintptr_t>&,
                    const std::vector<int64_t>&, int32_t, int32_t, uintptr_t, int32_t, float, bool,
                    uintptr_t, int64_t, int64_t, int64_t, int32_t>())
      .def("set_cache", usable(&CudaFoldedDecision::set_cache))
      .def("set_outputs", usable(&CudaFoldedDecision::set_outputs))
      .def("set_draw", usable(&CudaFoldedDecision::set_draw))
      .def("set_inputs", usable(&CudaFoldedDecision::set_inputs))
      .def("scratch", usable(&CudaFoldedDecision::scratch))
      .def("set_scratch", usable(&CudaFoldedDecision::set_scratch))
      .def("run", usable(&CudaFoldedDecision::run));
  module.def("cuda_action_cache_step", &bind_step);
}

}  // namespace eaglerl
