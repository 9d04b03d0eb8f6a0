// Bindings of the CUDA kernels of the policy's ops. Addresses are the device's; nothing here waits.
#include "cuda_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cfloat>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "action_cache_cuda.h"
#include "folded_decision_cuda.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Sizes are 32 bits on the device.
int32_t narrow(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value >= lowest && value <= highest) return int32_t(value);
  throw std::invalid_argument(std::string(name) + " must be in " + std::to_string(lowest) + ".." +
                              std::to_string(highest) + ", got " + std::to_string(value));
}

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() / 64;

void check_launch(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

// As a float, a tiny temperature would become 0, which means greedy and divides by zero in a draw.
float narrow_temperature(double temperature) {
  return temperature > 0 ? std::max(float(temperature), FLT_MIN) : 0.0f;
}

CacheArguments cache_arguments(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                               int64_t reference_size, uintptr_t ring) {
  if (mode < kCacheFixed || mode > kCacheScheduled) {
    throw std::invalid_argument("mode must be one of cache_modes, got " + std::to_string(mode));
  }
  CacheArguments cache = {};
  cache.state = at<int32_t>(state);
  cache.reference = at<float>(reference);
  cache.ring = mode == kCacheScheduled ? at<int32_t>(ring) : nullptr;
  cache.slot_count = slots;
  cache.mode = CacheMode(mode);
  cache.reference_size = narrow("reference_size", reference_size, 0, kLargest);
  if (mode == kCacheAdaptive && (!reference || reference_size < 1)) {
    throw std::invalid_argument("an adaptive cache needs its reference");
  }
  if (mode == kCacheScheduled && !ring) {
    throw std::invalid_argument("a scheduled cache needs its ring");
  }
  return cache;
}

// A policy whose buffers are known: what is left for a call is what changes from call to call.
class CudaFoldedDecision {
 public:
  CudaFoldedDecision(const std::vector<uintptr_t>& matrices, const std::vector<uintptr_t>& vectors,
                     const std::vector<int64_t>& widths, int32_t type, int32_t activation,
                     uintptr_t norm_weight, int32_t norm_chunks, float eps, bool reads_taps,
                     uintptr_t bins, int64_t actions, int64_t horizon, int32_t fallback_action) {
    const size_t layers = matrices.size();
    if (layers < 2 || layers > kMaxLayers || vectors.size() != layers ||
        widths.size() != layers + 1) {
      throw std::invalid_argument("weights must have 1 to " + std::to_string(kMaxLayers - 1) +
                                  " hidden layers on this path, got " +
                                  std::to_string(int64_t(layers) - 1));
    }
    for (size_t i = 0; i < layers; ++i) {
      call_.layers[i] = {at<const void>(matrices[i]), at<const float>(vectors[i]),
                         narrow("out", widths[i + 1], 1, kLargest),
                         narrow("in", widths[i], 1, kLargest)};
    }
    if (actions < 1 || horizon < 1 || widths.back() != actions * horizon) {
      throw std::invalid_argument("the logits' width must be horizon * actions");
    }
    call_.layer_count = int32_t(layers);
    call_.weight_type = ElementType(type);
    call_.activation = Activation(activation);
    call_.norm_weight = at<const float>(norm_weight);
    call_.norm_chunks = norm_chunks;
    call_.eps = eps;
    call_.piece_count = reads_taps ? kMaxPieces : 1;
    call_.width = call_.layers[0].in / call_.piece_count;
    call_.rule.bins = at<const int32_t>(bins);
    call_.rule.actions = int32_t(actions);
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
    call_.logits = at<float>(logits);
    call_.action = at<int32_t>(action);
    call_.params = at<int32_t>(params);
  }

  void set_draw(double temperature, uint64_t seed) {
    call_.rule.temperature = narrow_temperature(temperature);
    call_.rule.seed = seed;
  }

  // `mid` and `high` may be 0: then `low` is all of the row.
  void set_inputs(uintptr_t low, uintptr_t mid, uintptr_t high, int64_t low_stride,
                  int64_t mid_stride, int64_t high_stride, int32_t type, int64_t available) {
    call_.input_type = ElementType(type);
    call_.input_rows = available;
    const uintptr_t bytes = uintptr_t(call_.width * element_size(call_.input_type));
    const bool whole = !mid && call_.piece_count > 1;
    const uintptr_t pieces[] = {low, whole ? low + bytes : mid, whole ? low + 2 * bytes : high};
    const int64_t strides[] = {low_stride, whole ? low_stride : mid_stride,
                               whole ? low_stride : high_stride};
    for (int i = 0; i < kMaxPieces; ++i) {
      call_.pieces[i] = at<const void>(pieces[i]);
      call_.row_strides[i] = strides[i];
    }
  }

  // Numbers of floats of scratch memory, and of tickets, that a call for so many sequences needs.
  py::tuple scratch(int64_t sequences) {
    plan_for(sequences);
    return py::make_tuple(call_.plan.scratch_floats, call_.plan.ticket_count);
  }

  // Tickets are zeros, and a call leaves them so. Calls that may overlap must not share these.
  void set_scratch(uintptr_t scratch, uintptr_t tickets) {
    scratch_ = scratch;
    call_.tickets = at<uint32_t>(tickets);
  }

  void run(uintptr_t rows, int64_t row_count, uintptr_t last, int64_t sequences, uintptr_t slots,
           uint64_t offset, uintptr_t stream) {
    if (sequences == 0) return;
    plan_for(sequences);
    call_.partial_sums = at<float>(scratch_);
    call_.activations = at<float>(scratch_) + call_.plan.partial_floats;
    call_.rows = at<const int64_t>(rows);
    call_.row_count = row_count;
    call_.last = at<const int64_t>(last);
    call_.cache.slots = at<const int64_t>(slots);
    call_.rule.offset = offset;
    check_launch(cuda_folded_decision(call_, at<void>(stream)));
  }

 private:
  void plan_for(int64_t sequences) {
    call_.sequences = narrow("sequences", sequences, 1, kMaxSequences);
    call_.plan = plan_folded_decision(call_);
  }

  FoldedCall call_ = {};
  uintptr_t scratch_ = 0;
};

void bind_step(uintptr_t logits, uintptr_t bins, uintptr_t features, uintptr_t state,
               uintptr_t reference, uintptr_t ring, uintptr_t slots, uintptr_t action,
               uintptr_t params, int64_t sequences, int64_t actions, int64_t horizon,
               int64_t slot_count, int64_t reference_size, int32_t mode, double temperature,
               uint64_t seed, uint64_t offset, int32_t fallback_action, uintptr_t stream) {
  if (sequences == 0) return;
  ActionCacheStepCall call = {};
  call.logits = at<const float>(logits);
  call.features = at<const float>(features);
  call.sequences = narrow("sequences", sequences, 1, kLargest);
  call.cache = cache_arguments(mode, state, slot_count, reference, reference_size, ring);
  call.cache.slots = at<const int64_t>(slots);
  call.rule = {at<const int32_t>(bins),
               narrow("actions", actions, 1, kLargest),
               narrow("horizon", horizon, 1, kLargest),
               fallback_action,
               narrow_temperature(temperature),
               seed,
               offset};
  call.action = at<int32_t>(action);
  call.params = at<int32_t>(params);
  if (mode == kCacheAdaptive && !features) {
    throw std::invalid_argument("an adaptive cache needs features");
  }
  check_launch(cuda_action_cache_step(call, at<void>(stream)));
}

}  // namespace

void bind_cuda_policy(py::module_& module) {
  py::class_<CudaFoldedDecision>(module, "CudaFoldedDecision")
      .def(py::init<const std::vector<uintptr_t>&, const std::vector<uintptr_t>&,
                    const std::vector<int64_t>&, int32_t, int32_t, uintptr_t, int32_t, float, bool,
                    uintptr_t, int64_t, int64_t, int32_t>())
      .def("set_cache", &CudaFoldedDecision::set_cache)
      .def("set_outputs", &CudaFoldedDecision::set_outputs)
      .def("set_draw", &CudaFoldedDecision::set_draw)
      .def("set_inputs", &CudaFoldedDecision::set_inputs)
      .def("scratch", &CudaFoldedDecision::scratch)
      .def("set_scratch", &CudaFoldedDecision::set_scratch)
      .def("run", &CudaFoldedDecision::run);
  module.def("cuda_action_cache_step", &bind_step);
}

}  // namespace eaglerl
