#pragma once

#include "policy/folded_decision_plan.h"

namespace eaglerl {

// Launches on `stream` (a cudaStream_t) without waiting. The call's plan must come from
// plan_folded_decision. Returns the launch's error, or null.
const char* cuda_folded_decision(const FoldedCall& call, void* stream);

}  // namespace eaglerl
