// A cycle's draft, as scorers see it between its passes.
#pragma once

#include <cstdint>

namespace eaglerl {

// Longer matches count as 16 tokens, more lookups as 10.
constexpr int64_t kLongestMatch = 16;
constexpr int64_t kManyLookups = 10;

// The largest draft and tree. The candidates of a level lie together: top_k at level 0, top_k^2 at
// every other.
struct DraftSizes {
  int64_t top_k;
  int64_t max_depth;
  int64_t max_rows;
  int64_t lookup_tokens;  // longest lookup
  // One chain is verified, of drafted tokens or of looked-up ones, and a pass has the rows of all
  // sequences. top_k is 1.
  bool chains = false;

  int64_t pool_size(int64_t depth) const { return top_k + depth * top_k * top_k; }
  int64_t level_begin(int64_t level) const { return level == 0 ? 0 : pool_size(level - 1); }
};

// A draft after one of its passes.
struct DraftView {
  const float* scores;  // (top_k + depth * top_k^2)
  int64_t depth;
  int64_t context_length;
  int64_t match_length;
  int64_t lookup_length;        // tokens that were looked up
  const int64_t* lookup_nodes;  // (depth + 1) candidates that hold them, else -1; null: no lookup
};

// Throws if a looked-up token's node is not a candidate of its level below the one before.
void check_lookup_nodes(const DraftSizes& sizes, const DraftView& draft);

}  // namespace eaglerl
