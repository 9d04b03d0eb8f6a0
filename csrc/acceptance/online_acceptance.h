// Learns, while a text is decoded, which candidates the target accepts, and decides by it.
// docs/policies.md says what is learned; tests/policies/online_reference.py computes it again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "acceptance/draft_choice.h"
#include "acceptance/draft_view.h"
#include "acceptance/online_cost.h"
#include "acceptance/online_logistic.h"
#include "common/checks.h"

namespace eaglerl {

constexpr int kNodeWeights = 10;
constexpr int kLookupWeights = 9;
// About the mean of log_match().
constexpr double kMeanLogMatch = 1.4;

inline double log_match(int64_t length) {
  return std::log1p(double(std::min(length, kLongestMatch)));
}

// Seconds of a cycle: verifying r + 1 rows at context length c takes base[r] + c * slope[r], a
// draft of d + 1 passes first_pass + d * later_pass + (1 + d) * c * draft_slope.
struct OnlineCosts {
  std::vector<double> base;
  std::vector<double> slope;
  double first_pass;
  double later_pass;
  double draft_slope;
};

// What all sequences share.
class OnlineAcceptance : public PythonObject {
 public:
  // `plain_seconds` is the duration of decoding one token without drafts.
  OnlineAcceptance(int64_t max_depth, double plain_seconds);

  double rate() const { return tokens_ / seconds_; }

  void count(double tokens, double seconds);
  // The same for costs that change: the rate is what all recent cycles would reach at the present
  // costs. `rounds` is negative for a cycle that drafted nothing.
  void count(double tokens, int64_t rows, double context_length, int64_t rounds);
  void reprice(const OnlineCosts& costs);
  // After a round at `depth`: the survival of its best candidates over that of the round before.
  void learn_ratio(int64_t depth, double ratio);
  // The value that a round at `depth` added, beside what had been expected.
  void learn_gain(int64_t depth, double expected, double found);
  double ratio(int64_t depth) const { return ratio_[depth]; }
  double gain_factor(int64_t depth) const;
  int64_t max_depth() const { return int64_t(ratio_.size()) - 1; }

  OnlineLogistic<kNodeWeights> nodes;
  OnlineLogistic<kLookupWeights> lookups;
  DraftChoice choice;

 private:
  struct Verified {
    double cycles = 0.0;
    double context = 0.0;
  };

  double tokens_;
  double seconds_;
  // Cycles by their number of rows, and the draft's passes of all of them.
  std::vector<Verified> verified_;
  double first_tokens_;  // of the rate at the beginning
  double first_passes_ = 0.0;
  double later_passes_ = 0.0;
  std::vector<double> ratio_;
  std::vector<double> expected_gain_;
  std::vector<double> found_gain_;
};

// What prompt lookup proposes before a cycle.
struct LookupView {
  int64_t match_length;
  int64_t tokens;
};

// What a cycle begins with: a draft, or looked-up tokens alone, or neither.
struct CyclePlan {
  bool drafts;
  int64_t lookup_tokens;
};

// One sequence.
class OnlineCycle : public PythonObject {
 public:
  OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes, OnlineCosts costs);
  // Costs are those that `learned` learns, of one of its widths, from the next plan() on.
  OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
              std::shared_ptr<OnlineCost> learned, int64_t width);

  // Begins a sequence.
  void reset();
  // Begins a cycle, whose first score() has depth 0.
  void begin() {
    known_ = -1;
    selected_ = false;
  }
  // Begins a cycle and decides whether it drafts. `unread` is the number of tokens that the
  // draft's first pass would read.
  CyclePlan plan(int64_t context_length, const LookupView& lookup, int64_t unread);
  // Scores the levels that are new since the last call, and plans over all of them.
  void score(const DraftView& draft);
  bool should_continue() const { return should_continue_; }
  // Whether what score() chose last is what the cycle verifies.
  void mark_selected() { selected_ = true; }
  bool selected() const { return selected_; }
  // Memory for a draft's scores and looked-up nodes.
  struct Scratch {
    std::vector<float> scores;
    std::vector<int64_t> nodes;
  };
  Scratch& scratch() { return scratch_; }
  // The candidates to verify, ascending, and the number of leading looked-up tokens.
  const std::vector<int64_t>& nodes() const { return nodes_; }
  int64_t lookup() const { return lookup_; }
  // Learns from a cycle that verified what score() chose last. `rows` are the accepted rows of the
  // tree without the root, each below tree_rows(); `tokens` the number of emitted ones.
  void observe(const int64_t* rows, int64_t count, int64_t tokens);
  // The same after a plan that drafted nothing.
  void observe_undrafted(int64_t tokens);
  // Learns, after a plan, from the looked-up tokens: the leading ones that are what was emitted.
  void observe_lookup(int64_t equal, int64_t tokens);
  // Learns the costs from the times of a cycle; seconds of 0 were not measured.
  void observe_times(int64_t rows, double verify_seconds, double draft_seconds);
  // Rows of the tree that score() chose last.
  int64_t tree_rows() const {
    return 1 + int64_t(nodes_.size()) + std::max<int64_t>(0, lookup_ - inside_);
  }
  // Counts a lookup of this sequence, whether or not its tokens were verified.
  void count_lookup(bool first_accepted);

  const DraftSizes& sizes() const { return sizes_; }
  bool planned() const { return planned_; }
  int64_t known_depth() const { return known_; }
  const double* pool() const { return survival_.data(); }
  const double* looked_up() const { return looked_up_.data(); }

 private:
  struct Ranked {
    double survival;
    int64_t index;
  };

  void reserve();
  void refresh_costs();
  double undrafted_value(int64_t* tokens);
  bool worth_drafting(double advantage, int64_t tokens, int64_t unread);
  void learn_advantage(double tokens);
  // Seconds of a draft of so many rounds after the first.
  double passes_seconds(double rounds) const;
  void score_level(const DraftView& draft, int64_t level);
  void score_lookup(const DraftView& draft);
  void rank(const DraftView& draft);
  // The survivals of the best candidates, descending, from their order.
  void take_best();
  double best_value(int64_t* chosen) const;
  void choose(int64_t count, int64_t pool);
  bool decide(int64_t depth, double value);
  int64_t try_rows(int64_t chosen, double best);
  bool try_pass(double gain, double cost);
  bool lookup_reached() const;
  void count_cycle(double tokens, int64_t rows, int64_t rounds);
  // Tokens per second here. The tokens of a text are given: one that is emitted now saves the
  // seconds that its own neighbours take, and not those of an average text.
  double rate() const;
  double verify_seconds(int64_t rows) const {
    return costs_.base[rows - 1] + double(context_) * costs_.slope[rows - 1];
  }

  std::shared_ptr<OnlineAcceptance> shared_;
  DraftSizes sizes_;
  OnlineCosts costs_;
  std::shared_ptr<OnlineCost> learned_;  // null: costs are given
  int64_t width_ = 0;

  // Of the last plan().
  bool planned_ = false;
  int64_t unread_ = 0;
  double undrafted_ = 0.0;  // value without a draft
  double typical_ = 0.0;    // what a usual draft gains at the present costs
  int64_t undrafted_tokens_ = 0;
  double first_survival_ = 0.0;  // of the first looked-up token
  int64_t drafted_depth_ = 0;
  double trial_loss_ = 0.0;  // what the chosen number of rows is worth less than the best
  double pass_loss_ = 0.0;   // what passes of the draft cost more than they promised
  OnlineLinear<kAdvantageWeights>::Vector choice_input_ = {};
  std::vector<OnlineLogistic<kUndraftedWeights>::Vector> undrafted_inputs_;
  double recent_ = 0.0;  // running advantage of this sequence's drafts
  double tokens_ = 0.0;  // of this sequence's last cycles, and their seconds
  double seconds_ = 0.0;
  double success_ = 0.0;
  int64_t lookups_ = 0;
  int64_t known_ = -1;
  int64_t context_ = 0;
  int64_t match_ = 0;
  int64_t inside_ = 0;   // leading looked-up tokens that the draft proposed too
  int64_t offered_ = 0;  // looked-up tokens
  int64_t lookup_ = 0;
  double value_ = 0.0;      // of the best tree so far
  double expected_ = -1.0;  // gain of the next round; negative before there is one
  bool should_continue_ = false;
  bool selected_ = false;
  Scratch scratch_;
  std::vector<double> survival_;
  std::vector<double> looked_up_;
  std::vector<OnlineLogistic<kNodeWeights>::Vector> inputs_;
  std::vector<OnlineLogistic<kLookupWeights>::Vector> lookup_inputs_;
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
