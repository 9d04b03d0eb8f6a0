// Greedy acceptance of several draft trees that one pass has verified.
#pragma once

#include <cstdint>
#include <vector>

namespace eaglerl {

// A tree and the logits after its rows; parents precede their children, row 0 is the root.
struct VerifiedTree {
  const int32_t* parents;
  const int64_t* tokens;
  const float* logits;  // those of row r: logits + r * stride
  int64_t rows;
};

struct GreedyPath {
  std::vector<int64_t> rows;    // the accepted path, the root first
  std::vector<int64_t> tokens;  // of the rows behind the root, then the target's own next token
  bool has_nan = false;         // among the logits after its rows
};

// Follows the largest logits of each tree from its root as long as a child has that token. Rows off
// the path are not read.
void greedy_paths(const VerifiedTree* trees, int64_t count, int64_t stride, int64_t vocab,
                  int threads, GreedyPath* out);

}  // namespace eaglerl
