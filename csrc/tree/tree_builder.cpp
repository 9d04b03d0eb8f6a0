#include "tree/tree_builder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "common/cpu_kernels.h"
#include "common/parallel.h"
#include "tree/tree_common.h"

namespace eaglerl {
namespace {

constexpr int64_t kSerialLogits = 32'768;  // below this a second thread costs more than it saves

}  // namespace

void DraftTreeBuilder::begin(int64_t root_token, int top_k) {
  if (top_k < 1) {
    throw std::invalid_argument("top_k must be at least 1, not " + std::to_string(top_k));
  }
  check_product("the candidates of a pass, top_k * top_k,", {top_k, top_k}, kMostCandidates);
  root_token_ = root_token;
  top_k_ = top_k;
  rounds_ = 0;
  selected_ = -1;
  pool_.clear();
  frontier_.clear();
}

void DraftTreeBuilder::check_draft(const DraftLogits& draft, int64_t rows) const {
  if (top_k_ == 0) throw std::logic_error("begin() must be called first");
  if (top_k_ > draft.vocab) {
    throw std::invalid_argument("top_k = " + std::to_string(top_k_) +
                                " exceeds the draft vocabulary of " + std::to_string(draft.vocab));
  }
  if (pool_size() + rows * top_k_ > kMostCandidates) {
    throw std::invalid_argument("a tree may have " + std::to_string(kMostCandidates) +
                                " candidates at most, these passes give more");
  }
}

void DraftTreeBuilder::score_rows(const DraftLogits& draft, int rows) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t row_scratch = 2 * ((draft.vocab + 63) / 64);  // two floats for every 64 logits
  // Every allocation comes first: if one fails, nothing has changed.
  pool_.reserve(pool_.size() + static_cast<size_t>(rows) * top_k_);
  order_.reserve(static_cast<size_t>(rows) * top_k_);
  top_values_.resize(static_cast<size_t>(rows) * top_k_);
  top_ids_.resize(static_cast<size_t>(rows) * top_k_);
  log_sums_.resize(rows);
  scratch_.resize(static_cast<size_t>(rows) * row_scratch);
  const int threads = rows * draft.vocab < kSerialLogits ? 1 : draft.threads;
  parallel_for(rows, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const TopKResult result =
          kernels.top_k(draft.logits + row * draft.row_stride, draft.vocab, top_k_,
                        top_values_.data() + row * top_k_, top_ids_.data() + row * top_k_,
                        scratch_.data() + row * row_scratch);
      log_sums_[row] = result.count == top_k_ ? result.log_sum_exp : NAN;
    }
  });
  for (int row = 0; row < rows; ++row) {
    if (!std::isfinite(log_sums_[row])) {
      throw std::invalid_argument("draft logits of row " + std::to_string(row) +
                                  " hold a value that is not a number, or infinity");
    }
  }
}

void DraftTreeBuilder::add_children(const DraftLogits& draft, int row, int32_t parent) {
  const float parent_score = parent < 0 ? 0.0f : pool_[parent].score;
  const int32_t level = parent < 0 ? 1 : pool_[parent].level + 1;
  for (int child = 0; child < top_k_; ++child) {
    const int64_t place = int64_t(row) * top_k_ + child;
    // Rounding may give a log-probability above 0; a child must not outrank its parent.
    const float log_probability = std::min(top_values_[place] - log_sums_[row], 0.0f);
    const int64_t id = top_ids_[place];
    const int64_t token = draft.draft_to_target ? draft.draft_to_target[id] : id;
    pool_.push_back({parent_score + log_probability, parent, level, token});
  }
}

void DraftTreeBuilder::first(const DraftLogits& draft) {
  check_draft(draft, 1);
  if (rounds_ != 0) throw std::logic_error("first() must follow begin()");
  score_rows(draft, 1);
  add_children(draft, 0, -1);
  frontier_.resize(top_k_);
  mask_words_ = 0;
  masks_.clear();
  for (int rank = 0; rank < top_k_; ++rank) frontier_[rank] = {rank, 0};
  rounds_ = 1;
  advance_masks();
}

// The expansion phase of EAGLE-2 (Li et al., 2024), which EAGLE-3 keeps: all top_k * top_k children
// join the pool, and the best top_k of them are expanded next.
void DraftTreeBuilder::expand(const DraftLogits& draft) {
  check_draft(draft, top_k_);
  if (rounds_ == 0) throw std::logic_error("first() must be called before expand()");
  score_rows(draft, top_k_);
  const int64_t begin = pool_size();
  for (int row = 0; row < top_k_; ++row) add_children(draft, row, frontier_[row].node);
  select_best(begin, pool_size(), top_k_);
  std::sort(order_.begin(), order_.begin() + top_k_,
            [this](int32_t a, int32_t b) { return better(a, b); });
  for (int rank = 0; rank < top_k_; ++rank) {
    const int32_t node = order_[rank];
    frontier_[rank] = {node, static_cast<int32_t>((node - begin) / top_k_)};
  }
  ++rounds_;
  advance_masks();
}

// A node attends to the scratch rows of its ancestors and its own, not to its siblings': its mask
// is its parent's with one more bit. A row has rounds * top_k bits; 7 rounds of 10 fit into two
// words.
void DraftTreeBuilder::advance_masks() {
  const int32_t words = (rounds_ * top_k_ + 63) / 64;
  next_masks_.assign(static_cast<size_t>(top_k_) * words, 0);
  for (int rank = 0; rank < top_k_; ++rank) {
    uint64_t* row = next_masks_.data() + int64_t(rank) * words;
    // After first(), the frontier has no drafted ancestors: mask_words_ is 0, nothing is copied.
    const uint64_t* inherited = masks_.data() + int64_t(frontier_[rank].parent) * mask_words_;
    std::copy(inherited, inherited + mask_words_, row);
    const int scratch_row = (rounds_ - 1) * top_k_ + rank;
    row[scratch_row / 64] |= uint64_t(1) << (scratch_row % 64);
  }
  masks_.swap(next_masks_);
  mask_words_ = words;
}

void DraftTreeBuilder::frontier(int64_t* tokens, int64_t* parents, int64_t* mask,
                                int32_t words) const {
  if (rounds_ == 0) throw std::logic_error("first() must be called before frontier()");
  if (words < mask_words_) {
    throw std::invalid_argument("the mask needs " + std::to_string(mask_words_) +
                                " words a row, not " + std::to_string(words));
  }
  for (int rank = 0; rank < top_k_; ++rank) {
    tokens[rank] = pool_[frontier_[rank].node].token;
    parents[rank] = frontier_[rank].parent;
    for (int32_t word = 0; word < words; ++word) {
      const bool known = word < mask_words_;
      mask[int64_t(rank) * words + word] =
          known ? static_cast<int64_t>(masks_[int64_t(rank) * mask_words_ + word]) : 0;
    }
  }
}

bool DraftTreeBuilder::better(int32_t a, int32_t b) const {
  if (pool_[a].score != pool_[b].score) return pool_[a].score > pool_[b].score;
  return a < b;
}

void DraftTreeBuilder::select_best(int64_t begin, int64_t end, int64_t count) {
  selected_ = -1;  // the selection was in order_, which is overwritten
  order_.resize(end - begin);
  std::iota(order_.begin(), order_.end(), static_cast<int32_t>(begin));
  if (count < end - begin) {
    std::nth_element(order_.begin(), order_.begin() + count, order_.end(),
                     [this](int32_t a, int32_t b) { return better(a, b); });
  }
}

void DraftTreeBuilder::scores(float* out) const {
  for (size_t node = 0; node < pool_.size(); ++node) out[node] = pool_[node].score;
}

// The reranking phase of EAGLE-2: chooses the best of all candidates, not only of the last
// frontier. nth_element takes time linear in the pool, a full sort does not. Sorting the chosen
// ones by index then puts parents before children.
void DraftTreeBuilder::finish(int total_tokens, const TreeRows& out) {
  if (total_tokens < 1 || total_tokens - 1 > pool_size()) {
    throw std::invalid_argument("total_tokens must be from 1 to 1 + the " +
                                std::to_string(pool_size()) + " candidates, not " +
                                std::to_string(total_tokens));
  }
  check_words(out, total_tokens);
  check_between("total_tokens", total_tokens, 1, kMostTreeRows);
  const int drafted = total_tokens - 1;
  select_best(0, pool_size(), drafted);
  std::sort(order_.begin(), order_.begin() + drafted);
  write_nodes(drafted, out);
  for (int32_t word = 0; word < out.words; ++word) {
    ancestor_mask_word(out.parents, total_tokens, out.words, word, out.mask);
  }
}

void DraftTreeBuilder::check_words(const TreeRows& out, int64_t rows) {
  if (int64_t(out.words) * 64 < rows) {
    throw std::invalid_argument("the mask has " + std::to_string(out.words) +
                                " words a row, too few for " + std::to_string(rows) + " rows");
  }
}

void DraftTreeBuilder::write_nodes(int64_t drafted, const TreeRows& out) {
  row_of_node_.resize(pool_.size());
  out.tokens[0] = root_token_;
  out.parents[0] = -1;
  out.levels[0] = 0;
  out.scores[0] = 0.0f;
  for (int64_t i = 0; i < drafted; ++i) {
    const Node& node = pool_[order_[i]];
    const int64_t row = i + 1;
    row_of_node_[order_[i]] = int32_t(row);
    out.tokens[row] = node.token;
    out.parents[row] = node.parent < 0 ? 0 : row_of_node_[node.parent];
    out.levels[row] = node.level;
    out.scores[row] = node.score;
  }
}

// The candidates of a level lie together: top_k in level 0, top_k^2 in every other. Where a
// parent's children begin depends on its rank in that round's frontier, which is not kept, so the
// whole level is searched: 100 candidates at top_k 10.
int64_t DraftTreeBuilder::child_with(int64_t token, int64_t parent, int64_t level) const {
  const int64_t end = std::min(level_begin(level + 1), pool_size());
  for (int64_t node = level_begin(level); node < end; ++node) {
    if (pool_[node].parent == parent && pool_[node].token == token) return node;
  }
  return -1;
}

void DraftTreeBuilder::lookup_nodes(const std::vector<int64_t>& tokens, int32_t levels,
                                    int64_t* nodes) const {
  std::fill_n(nodes, levels, int64_t(-1));
  int64_t node = -1;
  for (int32_t level = 0; level < levels && size_t(level) < tokens.size(); ++level) {
    node = child_with(tokens[level], node, level);
    if (node < 0) return;
    nodes[level] = node;
  }
}

void DraftTreeBuilder::check_selected(const std::vector<int64_t>& nodes) {
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i] < 0 || nodes[i] >= pool_size() || (i > 0 && nodes[i] == nodes[i - 1])) {
      throw std::invalid_argument(
          "nodes must be distinct and in 0.." + std::to_string(pool_size() - 1) + ", got " +
          std::to_string(nodes[i]) + (i > 0 && nodes[i] == nodes[i - 1] ? " twice" : ""));
    }
  }
  row_of_node_.assign(pool_.size(), -1);
  for (const int64_t node : nodes) {
    const int32_t parent = pool_[node].parent;
    if (parent >= 0 && row_of_node_[parent] < 0) {
      throw std::invalid_argument("nodes must hold the parent of each; that of " +
                                  std::to_string(node) + " is missing");
    }
    row_of_node_[node] = 0;
  }
}

// The lookup shares rows with the tree as long as the tree has its tokens, then continues as a path
// of its own below the last shared row. No token is verified twice.
int64_t DraftTreeBuilder::select(std::vector<int64_t> nodes,
                                 const std::vector<int64_t>& lookup_tokens) {
  selected_ = -1;
  std::sort(nodes.begin(), nodes.end());
  check_selected(nodes);
  order_.assign(nodes.begin(), nodes.end());
  for (size_t i = 0; i < order_.size(); ++i) row_of_node_[order_[i]] = int32_t(i) + 1;
  size_t shared = 0;
  tail_parent_ = 0;
  for (int64_t node = -1; shared < lookup_tokens.size(); ++shared) {
    node = child_with(lookup_tokens[shared], node, int64_t(shared));
    if (node < 0 || row_of_node_[node] < 0) break;
    tail_parent_ = row_of_node_[node];
  }
  tail_.assign(lookup_tokens.begin() + shared, lookup_tokens.end());
  const int64_t rows = 1 + int64_t(order_.size() + tail_.size());
  check_between("the rows of nodes and lookup_tokens", rows, 1, kMostTreeRows);
  selected_ = int64_t(order_.size());
  return rows;
}

void DraftTreeBuilder::finish_selected(const TreeRows& out) {
  if (selected_ < 0) throw std::logic_error("select() must be called before finish_selected()");
  const int64_t rows = 1 + selected_ + int64_t(tail_.size());
  check_words(out, rows);
  write_nodes(selected_, out);
  int32_t parent = tail_parent_;
  for (int64_t row = 1 + selected_; row < rows; ++row) {
    out.tokens[row] = tail_[row - 1 - selected_];
    out.parents[row] = parent;
    out.levels[row] = out.levels[parent] + 1;
    out.scores[row] = NAN;
    parent = int32_t(row);
  }
  for (int32_t word = 0; word < out.words; ++word) {
    ancestor_mask_word(out.parents, int32_t(rows), out.words, word, out.mask);
  }
}

}  // namespace eaglerl
