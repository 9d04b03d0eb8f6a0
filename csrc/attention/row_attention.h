// Attention whose result for a row does not depend, bit by bit, on the other rows of the pass, on
// the number of threads, or on gaps between the rows of the cache that it may see. Keys and values
// are written by CpuKernels::write_keys_values.
#pragma once

#include <cstdint>

#include "common/cpu_kernels.h"

namespace eaglerl {

struct RowAttentionKernels {
  // Rotated queries of rows [begin, end), times scale * log2(e), as (rows, query_heads, head_dim).
  void (*rotate_queries)(const AttentionCall& call, int64_t begin, int64_t end, float* queries);
  // Scores of all query heads of `kv_head` in rows [row_begin, row_end) for keys [key_begin,
  // key_end), where key_begin is a multiple of 16; scores of query q of the pass begin at
  // scores + q * stride, with q counted as row * query_heads + head from row_begin on.
  void (*score_keys)(const AttentionCall& call, const float* queries, int64_t row_begin,
                     int64_t row_end, int kv_head, int64_t key_begin, int64_t key_end,
                     float* scores, int64_t stride);
  // Turns the scores of one query into its output. Scores must have room for a whole vector at the
  // end.
  void (*attend_query)(const AttentionCall& call, int64_t row, int head, float* scores);
};

const RowAttentionKernels& row_attention_kernels();

}  // namespace eaglerl
