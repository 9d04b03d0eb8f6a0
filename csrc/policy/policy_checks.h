// Checks of a policy's and an action cache's numbers, on every device.
#pragma once

#include <cfloat>
#include <vector>

#include "common/checks.h"
#include "policy/action_cache.h"
#include "policy/policy_types.h"

namespace eaglerl {

constexpr int64_t kMaxActions = 1024;

inline ElementType checked_type(const char* name, int32_t code) {
  return ElementType(check_between(name, code, kFloat32, kFloat16));
}

inline Activation checked_activation(int32_t code) {
  return Activation(check_between("activation", code, kTanh, kSilu));
}

inline CacheMode checked_mode(int32_t code) {
  return CacheMode(check_between("mode", code, kCacheFixed, kCacheScheduled));
}

inline void check_draw_temperature(double temperature) {
  if (temperature >= 0 && temperature <= DBL_MAX) return;
  throw std::invalid_argument("temperature must be 0 or positive and finite, got " +
                              std::to_string(temperature));
}

// A tiny temperature would become 0 as a float, which means greedy, and a division by zero in a
// draw.
inline float narrow_temperature(double temperature) {
  check_draw_temperature(temperature);
  if (temperature == 0) return 0.0f;
  const float narrow = float(temperature < FLT_MAX ? temperature : FLT_MAX);
  return narrow > FLT_MIN ? narrow : FLT_MIN;
}

inline void check_actions(int64_t actions, int64_t columns, int64_t horizon,
                          int64_t fallback_action) {
  check_between("actions", actions, 1, kMaxActions);
  check_between("columns", columns, kFewestActionColumns, kActionColumns);
  check_size("horizon", horizon, 1);
  check_product("logits", {actions, horizon}, kLargestCount);
  check_between("fallback_action", fallback_action, 0, actions - 1);
}

inline void check_logits_width(int64_t actions, int64_t horizon, int64_t logits_width) {
  if (logits_width != actions * horizon) {
    throw std::invalid_argument(
        "the logits' width must be horizon * actions = " + std::to_string(actions * horizon) +
        ", got " + std::to_string(logits_width));
  }
}

// Checks the widths of an MLP, from its input to the logits.
inline void check_widths(size_t matrices, size_t vectors, const std::vector<int64_t>& widths) {
  if (matrices == 0 || vectors != matrices || widths.size() != matrices + 1) {
    throw std::invalid_argument("matrices, vectors and widths do not make layers");
  }
  for (size_t i = 0; i < matrices; ++i) {
    check_between("widths", widths[i], 1, kLargestCount);
    check_between("widths", widths[i + 1], 1, kLargestCount);
    check_product("a matrix", {widths[i], widths[i + 1]});
  }
}

inline void check_feature_layers(int32_t norm_chunks, float eps, bool reads_layers, int64_t width) {
  if (norm_chunks != 0 && norm_chunks != 1 && norm_chunks != 3) {
    throw std::invalid_argument("norm_chunks must be 0, 1 or 3, got " +
                                std::to_string(norm_chunks));
  }
  if (!(eps >= 0.0f && eps <= FLT_MAX)) {
    throw std::invalid_argument("eps must be 0 or positive and finite, got " + std::to_string(eps));
  }
  if (reads_layers && width % 3 != 0) {
    throw std::invalid_argument("the features must be three layers of one width, got " +
                                std::to_string(width) + " columns");
  }
}

// Checks that a cache has the memory that its mode needs.
inline void check_cache_memory(CacheMode mode, bool has_state, int64_t slots, bool has_reference,
                               int64_t reference_size, bool has_ring) {
  check_between("slots", slots, has_state ? 0 : -1, kLargestCount);
  if (!has_state && slots > 0) throw std::invalid_argument("the cache has slots and no state");
  check_between("reference_size", reference_size, 0, kLargestCount);
  if (mode == kCacheAdaptive && slots > 0 && (!has_reference || reference_size < 1)) {
    throw std::invalid_argument("an adaptive cache needs its reference");
  }
  if (mode == kCacheScheduled && slots > 0 && !has_ring) {
    throw std::invalid_argument("a scheduled cache needs its ring");
  }
}

}  // namespace eaglerl
