// Bindings of the policy's ops and of the action cache's layout.
#include "policy/policy_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <vector>

#include "common/binding_methods.h"
#include "common/parallel.h"
#include "common/tensor_guard.h"
#include "policy/action_cache.h"
#include "policy/philox.h"
#include "policy/policy_checks.h"
#include "policy/policy_encode.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

py::dict cache_words() {
  py::dict words;
  words["step"] = int(kStep);
  words["interval"] = int(kInterval);
  words["valid"] = int(kValid);
  words["action"] = int(kAction);
  words["total_tokens"] = int(kTotalTokens);
  words["depth"] = int(kDepth);
  words["top_k"] = int(kTopK);
  words["lookup_tokens"] = int(kLookupTokens);
  words["hits"] = int(kHits);
  words["misses"] = int(kMisses);
  words["fallbacks"] = int(kFallbacks);
  words["threshold"] = int(kThreshold);
  words["reference_norm"] = int(kReferenceNorm);
  words["horizon"] = int(kHorizon);
  return words;
}

py::tuple action_columns() {
  static_assert(kActionColumns == 4, "every column has a name");
  return py::make_tuple("total_tokens", "depth", "top_k", "lookup_tokens");
}

py::dict cache_modes() {
  py::dict modes;
  modes["fixed"] = int(kCacheFixed);
  modes["adaptive"] = int(kCacheAdaptive);
  modes["scheduled"] = int(kCacheScheduled);
  return modes;
}

Draw draw_of(double temperature, uint64_t seed, uint64_t offset) {
  return {narrow_temperature(temperature), seed, offset};
}

const void* matrix_address(const char* name, uintptr_t address, ElementType type) {
  if (type == kFloat32) return element_address<const float>(name, address, 1);
  return element_address<const uint16_t>(name, address, 1);
}

std::vector<PolicyLayer> layers(const std::vector<uintptr_t>& matrices,
                                const std::vector<uintptr_t>& vectors,
                                const std::vector<int64_t>& widths, ElementType type) {
  check_widths(matrices.size(), vectors.size(), widths);
  std::vector<PolicyLayer> layers;
  for (size_t i = 0; i < matrices.size(); ++i) {
    layers.push_back({matrix_address("matrices", matrices[i], type),
                      element_address<const float>("vectors", vectors[i], 1), widths[i],
                      widths[i + 1]});
  }
  return layers;
}

struct BoundPolicy : PythonObject {
  Policy policy;
};

BoundPolicy make_policy(const std::vector<uintptr_t>& matrices,
                        const std::vector<uintptr_t>& vectors, const std::vector<int64_t>& widths,
                        uintptr_t fc_weight, uintptr_t fc_bias, int64_t fc_inputs, int32_t type,
                        int32_t activation, uintptr_t norm_weight, int32_t norm_chunks, float eps,
                        bool reads_layers, uintptr_t action_params, int64_t actions,
                        int64_t columns, int64_t horizon, int32_t fallback_action) {
  BoundPolicy bound;
  Policy& policy = bound.policy;
  policy = {};
  policy.type = checked_type("type", type);
  policy.mlp = layers(matrices, vectors, widths, policy.type);
  if (fc_weight) {
    check_between("fc_inputs", fc_inputs, 1, kLargestCount);
    check_product("fc_weight", {fc_inputs, widths.front()});
    if (!reads_layers) {
      throw std::invalid_argument("a policy with fc_weight must read feature layers");
    }
    policy.fc = {matrix_address("fc_weight", fc_weight, policy.type),
                 optional_address<const float>("fc_bias", fc_bias), fc_inputs, widths.front()};
  }
  policy.activation = checked_activation(activation);
  check_feature_layers(norm_chunks, eps, reads_layers, policy.input_width());
  policy.norm = {norm_chunks, eps, optional_address<const float>("norm_weight", norm_weight)};
  policy.reads_layers = reads_layers;
  check_actions(actions, columns, horizon, fallback_action);
  check_logits_width(actions, horizon, policy.logits_width());
  policy.action_params =
      element_address<const int32_t>("action_params", action_params, columns * actions);
  policy.actions = actions;
  policy.columns = int32_t(columns);
  policy.horizon = horizon;
  policy.fallback_action = fallback_action;
  return bound;
}

ActionCacheView cache_view(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                           int64_t reference_size, uintptr_t ring) {
  const ActionCacheView cache = {checked_mode(mode),
                                 optional_address<int32_t>("state", state),
                                 slots,
                                 optional_address<float>("reference", reference),
                                 reference_size,
                                 optional_address<int32_t>("ring", ring)};
  check_cache_memory(cache.mode, cache.state != nullptr, slots, cache.reference != nullptr,
                     reference_size, cache.ring != nullptr);
  return cache;
}

const void* input_address(const char* name, uintptr_t address, ElementType type) {
  if (type == kFloat32) return optional_address<const float>(name, address);
  return optional_address<const uint16_t>(name, address);
}

// A policy with its buffers set once: a call passes only what changes from call to call.
class Encoder : public PythonObject {
 public:
  Encoder(const BoundPolicy& bound, int threads) : threads_(threads) {
    bound.check_usable();
    check_between("threads", threads, 1, kMostThreads);
    policy_ = bound.policy;
  }

  void set_cache(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                 int64_t reference_size, uintptr_t ring) {
    cache_ = cache_view(mode, state, slots, reference, reference_size, ring);
  }

  // Outputs for `max_rows` rows of features and `max_sequences` decisions.
  void set_outputs(uintptr_t features, uintptr_t logits, uintptr_t action, uintptr_t params,
                   int64_t max_rows, int64_t max_sequences) {
    check_between("max_rows", max_rows, 0, kLargestCount);
    check_between("max_sequences", max_sequences, 0, kLargestCount);
    const EncodeOutputs outputs = {optional_address<uint16_t>("features", features),
                                   element_address<float>("logits", logits, max_sequences),
                                   element_address<int32_t>("action", action, max_sequences),
                                   element_address<int32_t>("params", params, max_sequences)};
    if (outputs.features && !policy_.fc.weight) {
      throw std::invalid_argument("features need a policy with fc_weight");
    }
    outputs_ = outputs;
    max_rows_ = max_rows;
    max_sequences_ = max_sequences;
  }

  void set_draw(double temperature, uint64_t seed) { draw_ = draw_of(temperature, seed, 0); }

  void set_inputs(uintptr_t low, uintptr_t mid, uintptr_t high, int64_t low_stride,
                  int64_t mid_stride, int64_t high_stride, int32_t type, int64_t available) {
    EncodeInputs inputs = {};
    inputs.type = checked_type("type", type);
    inputs.part[0] = input_address("low", low, inputs.type);
    inputs.part[1] = input_address("mid", mid, inputs.type);
    inputs.part[2] = input_address("high", high, inputs.type);
    const int64_t strides[] = {low_stride, mid_stride, high_stride};
    for (int part = 0; part < kFeatureLayers; ++part) {
      inputs.stride[part] = check_size("strides", strides[part]);
    }
    inputs.available = check_between("available", available, 0, kLargestCount);
    check_product("low, mid and high", {available, *std::max_element(strides, strides + 3)});
    if (available > 0 && !inputs.part[0]) refuse_address("low", 0, 1);
    if (!inputs.part[1] != !inputs.part[2]) {
      throw std::invalid_argument("mid and high must be given together, or neither");
    }
    if (inputs.part[1] && !policy_.reads_layers) {
      throw std::invalid_argument("mid and high need a policy that reads feature layers");
    }
    inputs_ = inputs;
  }

  // Sets the guards of the tensors that calls read and write, None for tensors that are not
  // watched. A call that finds one changed does nothing. `kept` are the cache and the outputs.
  void set_guards(const py::object& inputs, const py::object& kept, const py::object& weights) {
    const TensorGuard* guards[] = {inputs.cast<const TensorGuard*>(),
                                   kept.cast<const TensorGuard*>(),
                                   weights.cast<const TensorGuard*>()};
    for (const TensorGuard* guard : guards) {
      if (guard) guard->check_usable();
    }
    guard_objects_ = py::make_tuple(inputs, kept, weights);
    input_guard_ = guards[0];
    kept_guard_ = guards[1];
    weight_guard_ = guards[2];
  }

  // Returns the seconds spent on the features, or -1 if a guarded tensor has changed and nothing
  // was done.
  double run(uintptr_t rows, int64_t row_count, uintptr_t last, int64_t sequences, uintptr_t slots,
             uint64_t offset) {
    check_usable();
    check_between("row_count", row_count, 0, max_rows_);
    check_between("sequences", sequences, 0, max_sequences_);
    if (kept_guard_ && !kept_guard_->memory_unchanged()) return -1.0;
    if (all_hold(element_address<const int64_t>("slots", slots, 0), sequences)) {
      const bool counted = rows == 0 && input_guard_;
      if (counted && !input_guard_->first_has_rows(inputs_.available)) return -1.0;
    } else {
      // An adaptive cache compares after the inputs are read, and may still serve the call without
      // the weights. Then it is enough that their memory is still there.
      const bool may_hold = cache_.state && cache_.mode == kCacheAdaptive && !outputs_.features;
      if (input_guard_ && !input_guard_->unchanged()) return -1.0;
      for (const TensorGuard* guard : {kept_guard_, weight_guard_}) {
        if (guard && !(may_hold ? guard->memory_unchanged() : guard->unchanged())) return -1.0;
      }
      check_usable();  // a guard may have run Python code
    }
    // The indices are copied before they are checked: another thread may change the originals.
    keep(rows_, "rows", rows, row_count);
    keep(last_, "last", last, sequences);
    keep(slots_, "slots", slots, sequences);
    inputs_.rows = rows ? rows_.data() : nullptr;
    inputs_.row_count = row_count;
    inputs_.last = last ? last_.data() : nullptr;
    inputs_.sequences = sequences;
    inputs_.slots = slots ? slots_.data() : nullptr;
    draw_.offset = offset;
    AtWork at_work(*this);
    py::gil_scoped_release release;
    return encode(policy_, inputs_, cache_, draw_, outputs_, threads_);
  }

 private:
  // Returns whether the cache serves all sequences, so that neither weights nor inputs are read.
  bool all_hold(const int64_t* slots, int64_t sequences) const {
    if (!cache_.state || cache_.mode == kCacheAdaptive || outputs_.features) return false;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t slot = slots ? slots[s] : s;
      if (slot < 0 || slot >= cache_.slots) return false;
      const int32_t* record = cache_.state + slot * kRecordWords;
      if (!cache_in_time(record, cache_.mode, policy_.horizon)) return false;
    }
    return true;
  }

  static void keep(std::vector<int64_t>& kept, const char* name, uintptr_t address, int64_t count) {
    if (!address) return;
    const int64_t* values = element_address<const int64_t>(name, address, count);
    // One element more, so that the copy of an empty index is not null.
    if (int64_t(kept.size()) < count + 1) kept.resize(size_t(count) + 1);
    std::copy_n(values, count, kept.begin());
  }

  Policy policy_;
  EncodeInputs inputs_ = {};
  ActionCacheView cache_ = {};
  Draw draw_ = {};
  EncodeOutputs outputs_ = {};
  int64_t max_rows_ = 0;
  int64_t max_sequences_ = 0;
  int threads_;
  py::object guard_objects_;
  const TensorGuard* input_guard_ = nullptr;
  const TensorGuard* kept_guard_ = nullptr;
  const TensorGuard* weight_guard_ = nullptr;
  std::vector<int64_t> rows_;
  std::vector<int64_t> last_;
  std::vector<int64_t> slots_;
};

void bind_action_cache_step(uintptr_t logits, uintptr_t action_params, uintptr_t features,
                            uintptr_t state, uintptr_t reference, uintptr_t ring, uintptr_t slots,
                            uintptr_t action, uintptr_t params, int64_t sequences, int64_t actions,
                            int64_t columns, int64_t horizon, int64_t slot_count,
                            int64_t reference_size, int32_t mode, double temperature, uint64_t seed,
                            uint64_t offset, int32_t fallback_action) {
  check_between("sequences", sequences, 0, kLargestCount);
  check_actions(actions, columns, horizon, fallback_action);
  Policy policy = {};
  policy.action_params =
      element_address<const int32_t>("action_params", action_params, columns * actions);
  policy.actions = actions;
  policy.columns = int32_t(columns);
  policy.horizon = horizon;
  policy.fallback_action = fallback_action;
  const ActionCacheView cache =
      cache_view(mode, state, slot_count, reference, reference_size, ring);
  const bool adaptive = cache.mode == kCacheAdaptive;
  action_cache_step(policy, element_address<const float>("logits", logits, sequences),
                    element_address<const float>("features", features, adaptive ? sequences : 0),
                    sequences, optional_address<const int64_t>("slots", slots), cache,
                    draw_of(temperature, seed, offset),
                    {nullptr, nullptr, element_address<int32_t>("action", action, sequences),
                     element_address<int32_t>("params", params, sequences)});
}

std::array<uint32_t, 4> bind_philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  philox4x32_10(counter.data(), key[0], key[1]);
  return counter;
}

// Returns the seconds that a layer's threads take to read `bytes`: a lower bound for a layer with
// weights of that size.
double bind_read_seconds(uintptr_t memory, int64_t bytes, int threads) {
  check_size("bytes", bytes);
  check_between("threads", threads, 1, kMostThreads);
  const float* floats = element_address<const float>("memory", memory, bytes);
  const char* source = reinterpret_cast<const char*>(floats);
  const PolicyKernels& kernels = policy_kernels();
  const int64_t grain = std::max<int64_t>(4096, bytes / (8 * threads) / 64 * 64);
  const auto started = std::chrono::steady_clock::now();
  parallel_for(bytes, grain, threads, [&](int64_t begin, int64_t end) {
    volatile float sink = kernels.read(source + begin, end - begin);
    (void)sink;
  });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
  return taken.count();
}

void bind_encoder(py::module_& module) {
  py::class_<BoundPolicy>(module, "Policy").def(py::init(&make_policy));
  py::class_<Encoder>(module, "PolicyEncoder")
      .def(py::init<const BoundPolicy&, int>())
      .def("set_cache", usable(&Encoder::set_cache))
      .def("set_outputs", usable(&Encoder::set_outputs))
      .def("set_draw", usable(&Encoder::set_draw))
      .def("set_inputs", usable(&Encoder::set_inputs))
      .def("set_guards", usable(&Encoder::set_guards))
      .def("run", &Encoder::run);
}

py::dict element_types() {
  py::dict types;
  types["float32"] = int(kFloat32);
  types["bfloat16"] = int(kBfloat16);
  types["float16"] = int(kFloat16);
  return types;
}

py::dict activations() {
  py::dict kinds;
  kinds["tanh"] = int(kTanh);
  kinds["relu"] = int(kRelu);
  kinds["silu"] = int(kSilu);
  return kinds;
}

}  // namespace

void bind_policy(py::module_& module) {
  module.attr("cache_words") = cache_words();
  module.attr("action_columns") = action_columns();
  module.attr("fewest_action_columns") = int(kFewestActionColumns);
  module.attr("cache_record_words") = int(kRecordWords);
  module.attr("cache_ring_words") = int(kRingWords);
  module.attr("cache_sketch_size") = int(kSketchSize);
  module.attr("cache_modes") = cache_modes();
  module.attr("element_types") = element_types();
  module.attr("activations") = activations();
  module.def("action_cache_step", &bind_action_cache_step);
  module.def("check_range", [](const char* name, uintptr_t index, int64_t count, int64_t end) {
    check_between("count", count, 0, kLargestCount);
    check_range(name, element_address<const int64_t>(name, index, count), count, end);
  });
  module.def("philox4x32_10", &bind_philox);
  module.def("read_seconds", &bind_read_seconds);
  bind_encoder(module);
}

}  // namespace eaglerl
