// One sequence's step of the action cache.
#pragma once

#include "policy/policy_encode.h"

namespace eaglerl {

// Throws std::invalid_argument unless the sequences' slots exist and are distinct. `seen` is
// scratch memory.
void check_slots(const int64_t* slots, int64_t sequences, const ActionCacheView& cache,
                 std::vector<uint64_t>& seen);

// Returns whether the kept decision serves this step. An adaptive cache compares `features` and
// leaves their norm in `norm`.
bool cache_holds(const ActionCacheView& cache, int64_t slot, int64_t horizon, const float* features,
                 float* norm);

// Takes the action from the cache and counts the hit.
void take_hit(const Policy& policy, const ActionCacheView& cache, int64_t slot, int32_t* action,
              int32_t* params);

// Chooses the action from the logits and stores it in the cache, if there is one.
void take_miss(const Policy& policy, const float* logits, const Draw& draw, int64_t sequence,
               const ActionCacheView& cache, int64_t slot, const float* features, float norm,
               int32_t* action, int32_t* params);

}  // namespace eaglerl
