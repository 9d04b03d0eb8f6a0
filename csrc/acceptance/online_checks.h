// Checks that the bindings of what is learned while decoding share.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <sstream>
#include <vector>

#include "acceptance/draft_view.h"
#include "acceptance/online_acceptance.h"
#include "acceptance/online_sequence.h"
#include "common/checks.h"
#include "tree/tree_builder.h"

namespace eaglerl {

// A sequence keeps 120 bytes a candidate, 120 MB for 2^20.
constexpr int64_t kMostScored = int64_t(1) << 20;
// More than any verification takes, and little enough for sums of products.
constexpr double kMostSeconds = 1e6;
constexpr double kLeastSeconds = 1e-12;

inline double check_seconds(const char* name, double seconds, double lowest) {
  if (!(seconds >= lowest && seconds <= kMostSeconds)) {
    std::ostringstream message;  // std::to_string would write 1e-12 as 0.000000
    message << name << " must be in " << lowest << ".." << kMostSeconds << " seconds, got "
            << seconds;
    throw pybind11::value_error(message.str());
  }
  return seconds;
}

inline DraftSizes check_sizes(const std::shared_ptr<OnlineAcceptance>& shared, int64_t top_k,
                              int64_t max_depth, int64_t max_rows, int64_t lookup_tokens) {
  if (shared == nullptr) {
    throw pybind11::type_error("shared must be an OnlineAcceptance, got None");
  }
  shared->check_usable();
  check_between("top_k", top_k, 1, kMostScored);
  check_between("max_depth", max_depth, 0, shared->max_depth());
  check_between("max_rows", max_rows, 1, kMostScored);
  check_between("lookup_tokens", lookup_tokens, 0, kMostScored);
  check_product("the candidates of a draft", {max_depth + 1, top_k, top_k}, kMostScored);
  return {top_k, max_depth, max_rows, lookup_tokens};
}

inline void check_scored(const OnlineSequence& sequence) {
  if (sequence.known_depth() < 0) throw pybind11::value_error("score() must be called first");
}

inline void check_draft(const DraftSizes& sizes, int64_t depth, int64_t context_length,
                        int64_t match_length, int64_t lookup_length) {
  check_between("depth", depth, 0, sizes.max_depth);
  check_between("context_length", context_length, 0, kLargestCount);
  check_between("match_length", match_length, 0, kLargestCount);
  check_between("lookup_length", lookup_length, 0, kLargestCount);
}

// What a builder holds, in memory of the sequence: no arrays are made between them.
inline DraftView view_of(OnlineSequence& sequence, const DraftTreeBuilder& builder,
                         int64_t context_length, int64_t match_length,
                         const std::vector<int64_t>& looked_up) {
  builder.check_usable();
  const DraftSizes& sizes = sequence.sizes();
  check_between("context_length", context_length, 0, kLargestCount);
  check_between("match_length", match_length, 0, kLargestCount);
  check_between("the builder's top_k", builder.top_k(), sizes.top_k, sizes.top_k);
  const int64_t depth =
      check_between("the builder's rounds", builder.rounds(), 1, sizes.max_depth + 1) - 1;
  const int64_t pool = sizes.pool_size(depth);
  check_between("the builder's pool_size", builder.pool_size(), pool, pool);
  OnlineSequence::Scratch& scratch = sequence.scratch();
  scratch.scores.resize(size_t(pool));
  builder.scores(scratch.scores.data());
  scratch.nodes.resize(size_t(depth + 1));
  if (!looked_up.empty()) {
    builder.lookup_nodes(looked_up, int32_t(depth + 1), scratch.nodes.data());
  }
  return {scratch.scores.data(),
          depth,
          context_length,
          match_length,
          int64_t(looked_up.size()),
          looked_up.empty() ? nullptr : scratch.nodes.data()};
}

// Selects, in the builder, what was chosen. Returns the number of rows of the tree, and of the root
// and the candidates alone.
inline pybind11::tuple select_chosen(const OnlineSequence& sequence, DraftTreeBuilder& builder,
                                     const std::vector<int64_t>& looked_up) {
  builder.check_usable();
  const size_t wanted = std::min(looked_up.size(), size_t(sequence.lookup()));
  const int64_t rows =
      builder.select(sequence.nodes(), {looked_up.begin(), looked_up.begin() + ptrdiff_t(wanted)});
  return pybind11::make_tuple(rows, 1 + int64_t(sequence.nodes().size()));
}

// The chosen candidates, ascending, and the number of leading looked-up tokens.
inline pybind11::tuple selection_of(const OnlineSequence& sequence) {
  const std::vector<int64_t>& nodes = sequence.nodes();
  return pybind11::make_tuple(
      pybind11::array_t<int64_t>(pybind11::ssize_t(nodes.size()), nodes.data()), sequence.lookup());
}

// The survivals of all candidates, and of the looked-up tokens.
inline pybind11::tuple survivals_of(const OnlineSequence& sequence) {
  check_scored(sequence);
  const DraftSizes& sizes = sequence.sizes();
  const auto pool = pybind11::ssize_t(sizes.pool_size(sequence.known_depth()));
  return pybind11::make_tuple(
      pybind11::array_t<double>(pool, sequence.pool()),
      pybind11::array_t<double>(pybind11::ssize_t(sizes.lookup_tokens), sequence.looked_up()));
}

inline void check_accepted(const OnlineSequence& sequence, const std::vector<int64_t>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    check_between("rows", rows[i], i == 0 ? 1 : rows[i - 1] + 1, sequence.tree_rows() - 1);
  }
}

// Learns from the tokens that were looked up before a cycle, given those that it emitted.
inline void observe_looked_up(OnlineSequence& sequence, const std::vector<int64_t>& looked_up,
                              const std::vector<int64_t>& token_ids) {
  if (looked_up.empty()) return;
  const size_t shorter = std::min(looked_up.size(), token_ids.size());
  const auto end = looked_up.begin() + ptrdiff_t(shorter);
  const int64_t equal =
      std::mismatch(looked_up.begin(), end, token_ids.begin()).first - looked_up.begin();
  sequence.observe_lookup(equal, int64_t(token_ids.size()));
  sequence.count_lookup(equal > 0);
}

}  // namespace eaglerl
