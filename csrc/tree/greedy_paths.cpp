#include "tree/greedy_paths.h"

#include "common/cpu_kernels.h"
#include "common/parallel.h"

namespace eaglerl {
namespace {

int64_t child_of(const VerifiedTree& tree, int64_t row, int64_t token) {
  for (int64_t child = row + 1; child < tree.rows; ++child) {
    if (tree.parents[child] == row && tree.tokens[child] == token) return child;
  }
  return -1;
}

void follow(const VerifiedTree& tree, int64_t stride, int64_t vocab, GreedyPath& path) {
  const CpuKernels& kernels = cpu_kernels();
  for (int64_t row = 0; row >= 0;) {
    const float* logits = tree.logits + row * stride;
    const int64_t token = kernels.argmax(logits, vocab);
    path.has_nan = path.has_nan || logits[token] != logits[token];
    path.rows.push_back(row);
    path.tokens.push_back(token);
    row = child_of(tree, row, token);
  }
}

}  // namespace

void greedy_paths(const VerifiedTree* trees, int64_t count, int64_t stride, int64_t vocab,
                  int threads, GreedyPath* out) {
  parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) follow(trees[i], stride, vocab, out[i]);
  });
}

}  // namespace eaglerl
