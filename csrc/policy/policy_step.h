// What one sequence does with its logits and its record in the action cache.
#pragma once

#include "policy/policy_encode.h"

namespace eaglerl {

// Throws std::invalid_argument unless the sequences' slots exist and are distinct. `seen` is
// scratch.
void check_slots(const int64_t* slots, int64_t sequences, const ActionCacheView& cache,
                 std::vector<uint64_t>& seen);

// Whether the decision in force serves this step. `features` are what an adaptive cache compares;
// their norm is left in `norm`.
bool cache_holds(const ActionCacheView& cache, int64_t slot, int64_t horizon, const float* features,
                 float* norm);

// Takes the action from the record.
void take_hit(const ActionCacheView& cache, int64_t slot, int64_t horizon, int32_t* action,
              int32_t* params);

// Takes the action from the logits, and keeps it if there is a cache.
void take_miss(const Policy& policy, const float* logits, const Draw& draw, int64_t sequence,
               const ActionCacheView& cache, int64_t slot, const float* features, float norm,
               int32_t* action, int32_t* params);

}  // namespace eaglerl
