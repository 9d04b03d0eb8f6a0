// Bindings of the policy's ops and of the action cache's layout.
#include "policy_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cfloat>
#include <chrono>
#include <stdexcept>
#include <vector>

#include "action_cache.h"
#include "parallel.h"
#include "philox.h"
#include "policy_encode.h"

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
  words["hits"] = int(kHits);
  words["misses"] = int(kMisses);
  words["fallbacks"] = int(kFallbacks);
  words["threshold"] = int(kThreshold);
  words["reference_norm"] = int(kReferenceNorm);
  words["horizon"] = int(kHorizon);
  return words;
}

py::dict cache_modes() {
  py::dict modes;
  modes["fixed"] = int(kCacheFixed);
  modes["adaptive"] = int(kCacheAdaptive);
  modes["scheduled"] = int(kCacheScheduled);
  return modes;
}

constexpr int64_t kMaxActions = 1024;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// As a float, a tiny temperature would become 0, which means greedy and divides by zero in a draw.
Draw draw_of(double temperature, uint64_t seed, uint64_t offset) {
  const float narrow = temperature > 0 ? std::max(float(temperature), FLT_MIN) : 0.0f;
  return {narrow, seed, offset};
}

std::vector<PolicyLayer> layers(const std::vector<uintptr_t>& matrices,
                                const std::vector<uintptr_t>& vectors,
                                const std::vector<int64_t>& widths) {
  if (matrices.empty() || vectors.size() != matrices.size() ||
      widths.size() != matrices.size() + 1) {
    throw std::invalid_argument("matrices, vectors and widths do not make layers");
  }
  std::vector<PolicyLayer> layers;
  for (size_t i = 0; i < matrices.size(); ++i) {
    layers.push_back({at<const void>(matrices[i]), at<const float>(vectors[i]), widths[i],
                      widths[i + 1]});
  }
  return layers;
}

Policy make_policy(const std::vector<uintptr_t>& matrices, const std::vector<uintptr_t>& vectors,
                   const std::vector<int64_t>& widths, uintptr_t fc_weight, uintptr_t fc_bias,
                   int64_t taps, int32_t type, int32_t activation, uintptr_t norm_weight,
                   int32_t norm_chunks, float eps, bool reads_taps, uintptr_t bins,
                   int64_t actions, int64_t horizon, int32_t fallback_action) {
  Policy policy = {};
  policy.mlp = layers(matrices, vectors, widths);
  policy.fc = {at<const void>(fc_weight), at<const float>(fc_bias), taps, widths.front()};
  policy.type = ElementType(type);
  policy.activation = Activation(activation);
  policy.norm = {norm_chunks, eps, at<const float>(norm_weight)};
  policy.reads_taps = reads_taps;
  policy.bins = at<const int32_t>(bins);
  policy.actions = actions;
  policy.horizon = horizon;
  policy.fallback_action = fallback_action;
  if (actions < 1 || actions > kMaxActions || policy.logits_width() != horizon * actions) {
    throw std::invalid_argument("the logits' width must be horizon * actions, at most 1024 of them");
  }
  return policy;
}

// A policy whose buffers are known: what is left for a call is what changes from call to call.
struct Encoder {
  Policy policy;
  EncodeInputs inputs;
  ActionCacheView cache;
  Draw draw;
  EncodeOutputs outputs;
  int threads;

  void set_cache(int32_t mode, uintptr_t state, int64_t slots, uintptr_t reference,
                 int64_t reference_size, uintptr_t ring) {
    cache = {CacheMode(mode), at<int32_t>(state), slots, at<float>(reference), reference_size,
             at<int32_t>(ring)};
  }

  void set_outputs(uintptr_t features, uintptr_t logits, uintptr_t action, uintptr_t params) {
    outputs = {at<void>(features), at<float>(logits), at<int32_t>(action), at<int32_t>(params)};
  }

  void set_draw(double temperature, uint64_t seed) { draw = draw_of(temperature, seed, 0); }

  void set_inputs(uintptr_t low, uintptr_t mid, uintptr_t high, int64_t low_stride,
                  int64_t mid_stride, int64_t high_stride, int32_t type, int64_t available) {
    inputs.part[0] = at<const void>(low);
    inputs.part[1] = at<const void>(mid);
    inputs.part[2] = at<const void>(high);
    inputs.stride[0] = low_stride;
    inputs.stride[1] = mid_stride;
    inputs.stride[2] = high_stride;
    inputs.type = ElementType(type);
    inputs.available = available;
  }

  double run(uintptr_t rows, int64_t row_count, uintptr_t last, int64_t sequences, uintptr_t slots,
             uint64_t offset) {
    inputs.rows = at<const int64_t>(rows);
    inputs.row_count = row_count;
    inputs.last = at<const int64_t>(last);
    inputs.sequences = sequences;
    inputs.slots = at<const int64_t>(slots);
    draw.offset = offset;
    py::gil_scoped_release release;
    return encode(policy, inputs, cache, draw, outputs, threads);
  }
};

Encoder make_encoder(const Policy& policy, int threads) {
  Encoder encoder = {};
  encoder.policy = policy;
  encoder.threads = threads;
  return encoder;
}

void bind_action_cache_step(uintptr_t logits, uintptr_t bins, uintptr_t features, uintptr_t state,
                            uintptr_t reference, uintptr_t ring, uintptr_t slots, uintptr_t action,
                            uintptr_t params, int64_t sequences, int64_t actions, int64_t horizon,
                            int64_t slot_count, int64_t reference_size, int32_t mode,
                            double temperature, uint64_t seed, uint64_t offset,
                            int32_t fallback_action) {
  if (actions < 1 || actions > kMaxActions) {
    throw std::invalid_argument("bins must hold 1 to 1024 actions");
  }
  Policy policy = {};
  policy.bins = at<const int32_t>(bins);
  policy.actions = actions;
  policy.horizon = horizon;
  policy.fallback_action = fallback_action;
  const ActionCacheView cache = {CacheMode(mode),      at<int32_t>(state), slot_count,
                                 at<float>(reference), reference_size,     at<int32_t>(ring)};
  action_cache_step(policy, at<const float>(logits), at<const float>(features), sequences,
                    at<const int64_t>(slots), cache, draw_of(temperature, seed, offset),
                    {nullptr, nullptr, at<int32_t>(action), at<int32_t>(params)});
}

std::array<uint32_t, 4> bind_philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  philox4x32_10(counter.data(), key[0], key[1]);
  return counter;
}

// Seconds that reading `bytes` takes the same threads that a layer would run on: the floor of what
// a layer with that much weight can take.
double bind_read_seconds(uintptr_t memory, int64_t bytes, int threads) {
  const PolicyKernels& kernels = policy_kernels();
  const int64_t grain = std::max<int64_t>(4096, bytes / (8 * threads) / 64 * 64);
  const auto started = std::chrono::steady_clock::now();
  parallel_for(bytes, grain, threads, [&](int64_t begin, int64_t end) {
    volatile float sink = kernels.read(at<const char>(memory) + begin, end - begin);
    (void)sink;
  });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
  return taken.count();
}

void bind_encoder(py::module_& module) {
  py::class_<Policy>(module, "Policy").def(py::init(&make_policy));
  py::class_<Encoder>(module, "PolicyEncoder")
      .def(py::init(&make_encoder))
      .def("set_cache", &Encoder::set_cache)
      .def("set_outputs", &Encoder::set_outputs)
      .def("set_draw", &Encoder::set_draw)
      .def("set_inputs", &Encoder::set_inputs)
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
  module.attr("cache_record_words") = int(kRecordWords);
  module.attr("cache_ring_words") = int(kRingWords);
  module.attr("cache_sketch_size") = int(kSketchSize);
  module.attr("cache_modes") = cache_modes();
  module.attr("element_types") = element_types();
  module.attr("activations") = activations();
  module.def("action_cache_step", &bind_action_cache_step);
  module.def("check_range", [](const char* name, uintptr_t index, int64_t count, int64_t end) {
    check_range(name, at<const int64_t>(index), count, end);
  });
  module.def("philox4x32_10", &bind_philox);
  module.def("read_seconds", &bind_read_seconds);
  bind_encoder(module);
}

}  // namespace eaglerl
