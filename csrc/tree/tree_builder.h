#pragma once

#include <cstdint>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

// The mask of 2^14 rows has 2^28 bits, 32 MiB; 2^24 candidates of 24 bytes take 400 MB.
constexpr int64_t kMostTreeRows = int64_t(1) << 14;
constexpr int64_t kMostCandidates = int64_t(1) << 24;

// Logits of a draft pass, and the target ids of the draft vocabulary (null: the same ids).
struct DraftLogits {
  const float* logits;
  int64_t row_stride;
  int64_t vocab;
  const int64_t* draft_to_target;
  int threads;
};

struct TreeRows {
  int64_t* tokens;
  int32_t* parents;  // -1 for the root
  int32_t* levels;
  int64_t* mask;  // (rows, words): ancestors and the row itself
  int32_t words;
  float* scores;  // cumulative log-probabilities, 0 for the root
};

// Bookkeeping of EAGLE-3's dynamic draft tree (Li et al., 2025, and its reference implementation).
// Every round adds top_k * top_k candidates to a pool; at the end the best of the pool are
// verified. Where scores tie, the lower pool index wins. An ancestor has a lower index than its
// descendants, and its score, a sum of fewer log-probabilities, is at least as high: so the best
// candidates always include their ancestors, and no separate check is needed.
class DraftTreeBuilder : public PythonObject {
 public:
  void begin(int64_t root_token, int top_k);
  void first(const DraftLogits& draft);
  void expand(const DraftLogits& draft);
  // Writes the top_k nodes that the next pass expands. `parents` are rows of the previous pass.
  // Row r of round i has scratch row i * top_k + r of the draft's KV cache; a row's mask has the
  // bits of its ancestors' scratch rows and its own.
  void frontier(int64_t* tokens, int64_t* parents, int64_t* mask, int32_t words) const;
  void finish(int total_tokens, const TreeRows& out);
  // Writes the candidates' cumulative log-probabilities, in the order of the rounds.
  void scores(float* out) const;
  // Looked-up tokens are a path below the root. Writes the candidates that hold its first `levels`
  // tokens; -1 from the first token that no candidate holds.
  void lookup_nodes(const std::vector<int64_t>& tokens, int32_t levels, int64_t* nodes) const;
  // Selects these candidates (ancestors included, in any order) instead of the best, and appends
  // the looked-up tokens that are not among them. Returns the number of rows, root included.
  int64_t select(std::vector<int64_t> nodes, const std::vector<int64_t>& lookup_tokens);
  // Writes what was selected. Looked-up tokens that the draft did not propose have the score NaN.
  void finish_selected(const TreeRows& out);

  int top_k() const { return top_k_; }
  int rounds() const { return rounds_; }
  int64_t pool_size() const { return static_cast<int64_t>(pool_.size()); }

 private:
  struct Node {
    float score;
    int32_t parent;  // pool index, -1: the root
    int32_t level;
    int64_t token;
  };
  struct FrontierNode {
    int32_t node;    // pool index
    int32_t parent;  // row of the previous pass
  };

  void check_draft(const DraftLogits& draft, int64_t rows) const;
  void score_rows(const DraftLogits& draft, int rows);
  void add_children(const DraftLogits& draft, int row, int32_t parent);
  int64_t level_begin(int64_t level) const {
    return level == 0 ? 0 : top_k_ + (level - 1) * top_k_ * top_k_;
  }
  int64_t child_with(int64_t token, int64_t parent, int64_t level) const;
  void check_selected(const std::vector<int64_t>& nodes);
  // Writes the root and the nodes order_[0, drafted), which must ascend.
  void write_nodes(int64_t drafted, const TreeRows& out);
  static void check_words(const TreeRows& out, int64_t rows);
  // Leaves the best `count` of nodes [begin, end) in order_, as pool indices in no order.
  void select_best(int64_t begin, int64_t end, int64_t count);
  bool better(int32_t a, int32_t b) const;
  void advance_masks();

  int64_t root_token_ = 0;
  int top_k_ = 0;
  int rounds_ = 0;  // passes whose children are in the pool
  std::vector<Node> pool_;
  std::vector<FrontierNode> frontier_;
  std::vector<uint64_t> masks_;  // (top_k, mask_words_) of the frontier
  std::vector<uint64_t> next_masks_;
  int32_t mask_words_ = 0;
  std::vector<int32_t> order_;
  std::vector<int32_t> row_of_node_;
  int64_t selected_ = -1;      // nodes in order_ that select() chose; -1: nothing is selected
  std::vector<int64_t> tail_;  // looked-up tokens that are appended
  int32_t tail_parent_ = 0;    // row of the first one's parent
  std::vector<float> top_values_;
  std::vector<int32_t> top_ids_;
  std::vector<float> log_sums_;
  std::vector<float> scratch_;
};

}  // namespace eaglerl
