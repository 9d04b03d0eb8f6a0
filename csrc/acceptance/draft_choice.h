// Learns, while a text is decoded, whether a cycle should draft at all.
#pragma once

#include <array>
#include <cstdint>

#include "acceptance/online_linear.h"
#include "acceptance/online_logistic.h"

namespace eaglerl {

constexpr int kUndraftedWeights = 7;
constexpr int kAdvantageWeights = 4;

// What all sequences share. Values are tokens: what a cycle is expected to emit less what its
// seconds yield at the rate.
class DraftChoice {
 public:
  DraftChoice();

  // Survival of a looked-up token whose predecessors are accepted, before anything is drafted.
  OnlineLogistic<kUndraftedWeights> lookups;
  // By how much the value of a drafting cycle, but for its passes of the draft, exceeds that of the
  // best one without a draft.
  OnlineLinear<kAdvantageWeights> advantage;

  // After a cycle that drafted: its tokens, and how many had been expected.
  void count_expected(double tokens, double expected);
  // Mean difference between the two.
  double bias() const { return bias_; }
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

  // Choices that seem worse are tried for what can be learned from them, within a share of all
  // tokens.
  void earn(double tokens);
  bool spend(double tokens);
  void charge(double tokens) { budget_ -= tokens; }
  bool affords(double tokens) const { return tokens <= budget_; }

 private:
  static constexpr double kNewestRounds = 0.02;

  double bias_ = 0.0;
  double rounds_ = 1.0;
  double expectations_ = 0.0;
  double catch_up_;
  double budget_;
};

}  // namespace eaglerl
