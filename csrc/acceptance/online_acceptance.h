// Learns, while a text is decoded, which candidates the target accepts, and decides by it.
// docs/policies.md says what is learned; tests/policies/online_reference.py computes it again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "acceptance/draft_view.h"
#include "acceptance/online_logistic.h"
#include "common/checks.h"

namespace eaglerl {

constexpr int kNodeWeights = 8;
constexpr int kLookupWeights = 9;

// What all sequences share.
class OnlineAcceptance : public PythonObject {
 public:
  // `plain_seconds` is the duration of decoding one token without drafts.
  OnlineAcceptance(int64_t max_depth, double plain_seconds);

  double rate() const { return tokens_ / seconds_; }

  void count(double tokens, double seconds);
  // After a round at `depth`: the survival of its best candidates over that of the round before.
  void learn_ratio(int64_t depth, double ratio);
  // The value that a round at `depth` added, beside what had been expected.
  void learn_gain(int64_t depth, double expected, double found);
  double ratio(int64_t depth) const { return ratio_[depth]; }
  double gain_factor(int64_t depth) const;
  int64_t max_depth() const { return int64_t(ratio_.size()) - 1; }

  OnlineLogistic<kNodeWeights> nodes;
  OnlineLogistic<kLookupWeights> lookups;

 private:
  double tokens_;
  double seconds_;
  std::vector<double> ratio_;
  std::vector<double> expected_gain_;
  std::vector<double> found_gain_;
};

// Seconds of a cycle: verifying r + 1 rows at context length c takes base[r] + c * slope[r], a
// draft of d + 1 passes first_pass + d * later_pass + (1 + d) * c * draft_slope.
struct OnlineCosts {
  std::vector<double> base;
  std::vector<double> slope;
  double first_pass;
  double later_pass;
  double draft_slope;
};

// One sequence.
class OnlineCycle : public PythonObject {
 public:
  OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes, OnlineCosts costs);

  // Begins a sequence.
  void reset();
  // Begins a cycle, whose first score() has depth 0.
  void begin() { known_ = -1; }
  // Scores the levels that are new since the last call, and plans over all of them.
  void score(const DraftView& draft);
  bool should_continue() const { return should_continue_; }
  // The candidates to verify, ascending, and the number of leading looked-up tokens.
  const std::vector<int64_t>& nodes() const { return nodes_; }
  int64_t lookup() const { return lookup_; }
  // Learns from a cycle that verified what score() chose last. `rows` are the accepted rows of the
  // tree without the root, each below tree_rows(); `tokens` the number of emitted ones.
  void observe(const int64_t* rows, int64_t count, int64_t tokens);
  // Rows of the tree that score() chose last.
  int64_t tree_rows() const {
    return 1 + int64_t(nodes_.size()) + std::max<int64_t>(0, lookup_ - inside_);
  }
  // Counts a lookup of this sequence, whether or not its tokens were verified.
  void count_lookup(bool first_accepted);

  const DraftSizes& sizes() const { return sizes_; }
  int64_t known_depth() const { return known_; }
  const double* pool() const { return survival_.data(); }
  const double* looked_up() const { return looked_up_.data(); }

 private:
  struct Ranked {
    double survival;
    int64_t index;
  };

  void score_level(const DraftView& draft, int64_t level);
  void score_lookup(const DraftView& draft);
  void rank(const DraftView& draft);
  double best_value(int64_t* chosen) const;
  void choose(int64_t count, int64_t pool);
  bool decide(int64_t depth, double value);
  bool lookup_reached() const;
  double verify_seconds(int64_t rows) const {
    return costs_.base[rows - 1] + double(context_) * costs_.slope[rows - 1];
  }

  std::shared_ptr<OnlineAcceptance> shared_;
  DraftSizes sizes_;
  OnlineCosts costs_;

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
