// Learns, while a text is decoded, whether a cycle should draft at all.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "acceptance/online_linear.h"
#include "acceptance/online_logistic.h"
#include "acceptance/trial_budget.h"

namespace eaglerl {

constexpr int kUndraftedWeights = 7;
constexpr int kAdvantageWeights = 4;
constexpr int kSurvivals = 31;

// What all sequences share. Values are tokens: what a cycle is expected to emit less what its
// seconds yield at the rate.
class DraftChoice {
 public:
  DraftChoice();

  // Survival of a looked-up token whose predecessors are accepted, before anything is drafted.
  OnlineLogistic<kUndraftedWeights> lookups;
  // By how much the value of a drafting cycle exceeds that of the best one without a draft, beside
  // what typical_gain() and the passes of a usual draft let expect at the present costs.
  OnlineLinear<kAdvantageWeights> advantage;

  // After a draft: the survivals of its best candidates, descending.
  void count_survivals(const double* survivals, int64_t count);
  // What verifying the best candidates of so many usual drafts, at most `most_rows`, gains over
  // plain decoding, were their passes free. `row_tokens(r)` is what the seconds of verifying r rows
  // beside the roots yield at the rate.
  template <class RowTokens>
  double typical_gain(int64_t drafts, int64_t most_rows, const RowTokens& row_tokens) const {
    const int64_t count = std::min(drafts * int64_t(survivals_.size()), most_rows);
    const double plain = row_tokens(0);
    double length = 0.0, best = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      length += survivals_[i / drafts];
      best = std::max(best, length - (row_tokens(i + 1) - plain));
    }
    return best;
  }
  // Mean survivals of a draft's candidates, best first.
  const std::array<double, kSurvivals>& survivals() const { return survivals_; }

  // After a cycle that drafted: its tokens, and how many had been expected.
  void count_expected(double tokens, double expected);
  // Mean difference between the two.
  double bias() const { return bias_; }
  // After a draft: its rounds after the first, in passes of as many slots as the first.
  void count_rounds(double rounds) { rounds_ += kNewestRounds * (rounds - rounds_); }
  // Mean number of rounds after a draft's first.
  double rounds() const { return rounds_; }
  // Number of such cycles, at most 1,000.
  double drafts() const { return expectations_; }

  // After a draft whose first pass read `rows` more tokens than usual, in so much more time than
  // usual, beside the verification of a row.
  void count_catch_up(double rows, double cost);
  // What a further token costs the first pass, beside the verification of a row.
  double catch_up() const { return catch_up_; }

  // Trials of drafts, and of what costs are not known. Each has a budget of its own: drafts, which
  // cost little, would otherwise leave nothing for the others.
  TrialBudget draft_trials{0.0015, 4.0};
  TrialBudget cost_trials{0.002, 9.0};
  void earn(double tokens) {
    draft_trials.earn(tokens);
    cost_trials.earn(tokens);
  }

 private:
  static constexpr double kNewestRounds = 0.02;

  double bias_ = 0.0;
  double rounds_ = 1.0;
  double expectations_ = 0.0;
  double catch_up_;
  std::array<double, kSurvivals> survivals_;
  double survivals_weight_;
};

}  // namespace eaglerl
