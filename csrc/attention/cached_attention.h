#pragma once

#include <cstdint>
#include <vector>

#include "common/cpu_kernels.h"

namespace eaglerl {

struct AttentionLimits {
  int64_t table_length;  // rows of the cos and sin tables
  int64_t slot_count;
};

// Throws std::invalid_argument unless the number is one of CacheDtype.
CacheDtype check_cache_dtype(int32_t number);

inline int64_t element_bytes(CacheDtype dtype) { return dtype == CacheDtype::kFloat32 ? 4 : 2; }

// Returns an address of `count` elements of a cache, null only if `count` is 0.
void* cache_address(const char* name, uintptr_t address, int64_t count, CacheDtype dtype);

// Throws std::invalid_argument unless every key head serves the same number of query heads.
void check_heads(int64_t query_heads, int64_t kv_heads);

void check_head_dim(int64_t head_dim);

// Throws std::invalid_argument unless the sizes of a call are consistent and do not overflow.
void check_attention_sizes(const AttentionCall& call, const AttentionLimits& limits, int64_t rows);

// Rotates the keys of all rows and writes keys and values to the cache, then computes the attention
// of every row. Throws std::invalid_argument, before anything is written, if an index is out of
// range.
void cached_attention(const AttentionCall& call, const AttentionLimits& limits, int64_t rows,
                      int threads);

// Divides rows and heads into tasks, each of which sees all of its keys. Later tasks of a prompt
// see more keys.
void plan_blocks(const AttentionCall& call, int64_t rows, const CpuKernels& kernels,
                 std::vector<AttentionTask>& tasks);

}  // namespace eaglerl
