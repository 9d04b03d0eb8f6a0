#pragma once

#include "policy/action_cache_step.h"

namespace eaglerl {

// Launches on `stream` (a cudaStream_t) without waiting. Returns the launch's error, or null.
const char* cuda_action_cache_step(const ActionCacheStepCall& call, void* stream);

}  // namespace eaglerl
