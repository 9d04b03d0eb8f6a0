// Bindings of the policy's ops and of the action cache's layout.
#include "policy_bindings.h"

#include "action_cache.h"

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

}  // namespace

void bind_policy(py::module_& module) {
  module.attr("cache_words") = cache_words();
  module.attr("cache_record_words") = int(kRecordWords);
  module.attr("cache_ring_words") = int(kRingWords);
  module.attr("cache_sketch_size") = int(kSketchSize);
  module.attr("cache_modes") = cache_modes();
}

}  // namespace eaglerl
