// What one sequence's drafts and lookups promise, and what became of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "acceptance/draft_view.h"
#include "acceptance/online_acceptance.h"
#include "acceptance/selection_rules.h"

namespace eaglerl {

// What prompt lookup proposes before a cycle.
struct LookupView {
  int64_t match_length;
  int64_t tokens;
};

// Predicts the survivals of one sequence's candidates and looked-up tokens, and learns from those
// that were verified. It knows no costs: how many are verified, and whether anything is drafted,
// others decide.
class OnlineSequence {
 public:
  OnlineSequence(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes);

  // Begins a sequence.
  void reset();
  // Begins a cycle, whose first score() has depth 0.
  void begin() { known_ = -1; }
  // Makes the drafts of further cycles smaller, within the sizes that it was made with.
  void limit(const DraftSizes& sizes) {
    sizes_ = sizes;
    begin();
  }
  // Predicts the survivals of looked-up tokens without a draft; best() contains at most `most`.
  void look_up(const LookupView& lookup, int64_t most);
  // Scores the levels that are new since the last call, and ranks all of them.
  void score(const DraftView& draft);
  // Survivals of the best candidates and looked-up tokens, descending; after look_up() those of
  // the looked-up tokens alone.
  const std::vector<double>& best() const { return best_; }
  // Of chains: the tokens that a row costs, for the next score().
  void set_row_price(double tokens) { row_price_ = tokens; }
  // What the drafted chain is worth beside the tokens that the lookup shares with it, and what the
  // looked-up one is; best() has the tokens of the better one.
  double drafted_value() const { return drafted_value_; }
  double looked_up_value() const { return looked_up_value_; }
  // Chooses so many of the best.
  void choose(int64_t count);
  // Takes the choice of a device: candidates, ascending, and leading looked-up tokens.
  void take_choice(std::vector<int64_t> nodes, int64_t lookup) {
    nodes_ = std::move(nodes);
    lookup_ = lookup;
  }
  // Leading looked-up tokens that the draft proposed too, and all looked-up tokens.
  int64_t inside() const { return inside_; }
  int64_t offered() const { return offered_; }

  // The candidates that were chosen, ascending, and the number of leading looked-up tokens.
  const std::vector<int64_t>& nodes() const { return nodes_; }
  int64_t lookup() const { return lookup_; }
  // Rows of the chosen tree.
  int64_t tree_rows() const {
    return 1 + int64_t(nodes_.size()) + std::max<int64_t>(0, lookup_ - inside_);
  }
  // The number of its tokens that are expected to be emitted, the bonus token included.
  double expected_tokens() const;
  // Survival of the first token that look_up() saw; 0 without one.
  double first_survival() const { return first_survival_; }
  // (top_k) best survivals of a level, descending.
  const double* top(int64_t level) const { return tops_.data() + level * sizes_.top_k; }
  // The survival of a level's best candidates over that of the level before.
  double ratio_at(int64_t level) const;

  // Learns from the chosen tree. `rows` are its accepted rows without the root, each below
  // tree_rows().
  void observe(const int64_t* rows, int64_t count);
  // Learns from both chains, whichever was verified: the leading tokens of the drafted one and of
  // the looked-up one that are among the first of so many emitted ones.
  void observe_chains(int64_t drafted_equal, int64_t looked_up_equal, int64_t tokens);
  // Learns, after look_up(), from its tokens: the leading ones that are what was emitted.
  void observe_lookup(int64_t equal, int64_t tokens);
  // Counts a lookup of this sequence, whether or not its tokens were verified.
  void count_lookup(bool first_accepted);

  const DraftSizes& sizes() const { return sizes_; }
  // Depth of the last score() of the cycle; -1 before it.
  int64_t known_depth() const { return known_; }
  const double* pool() const { return survival_.data(); }
  const double* looked_up() const { return looked_up_.data(); }

  // For a rule: the inputs of candidates that lookups contribute, and the rule's part for
  // looked-up tokens that no candidate holds.
  double lookup_success() const { return success_; }
  double match_input(int64_t length) const;
  void write_lookup_rule(const SelectionSizes& sizes, int32_t* words) const;

  // Memory for a draft's scores and looked-up nodes.
  struct Scratch {
    std::vector<float> scores;
    std::vector<int64_t> nodes;
  };
  Scratch& scratch() { return scratch_; }

 private:
  struct Ranked {
    double survival;
    int64_t index;
  };

  void score_level(const DraftView& draft, int64_t level);
  void score_lookup(const DraftView& draft);
  void rank(int64_t pool);
  void rank_chain(int64_t drafted);
  double chain_value(const double* survivals, int64_t count) const;
  bool lookup_reached() const;

  std::shared_ptr<OnlineAcceptance> shared_;
  DraftSizes sizes_;
  double success_ = 0.0;
  int64_t lookups_ = 0;
  int64_t known_ = -1;
  int64_t match_ = 0;
  int64_t inside_ = 0;   // leading looked-up tokens that the draft proposed too
  int64_t offered_ = 0;  // looked-up tokens
  int64_t lookup_ = 0;
  double first_survival_ = 0.0;
  double row_price_ = 0.0;
  double drafted_value_ = 0.0;
  double looked_up_value_ = 0.0;
  Scratch scratch_;
  std::vector<double> survival_;
  std::vector<double> looked_up_;
  std::vector<OnlineLogistic<kNodeWeights>::Vector> inputs_;
  std::vector<OnlineLogistic<kLookupWeights>::Vector> lookup_inputs_;
  std::vector<OnlineLogistic<kUndraftedWeights>::Vector> undrafted_inputs_;
  std::vector<double> tops_;  // (max_depth + 1, top_k) best survivals of each level, descending
  std::vector<int64_t> parents_;
  std::vector<int64_t> lookup_nodes_;
  std::vector<Ranked> order_;
  std::vector<double> best_;
  std::vector<int64_t> level_;
  std::vector<int64_t> nodes_;
  std::vector<bool> accepted_;
};

}  // namespace eaglerl
