// Learns, while texts are decoded, which candidates the target accepts.
// docs/policies.md says what is learned; tests/policies/online_reference.py computes it again.
#pragma once

#include <cstdint>
#include <vector>

#include "acceptance/draft_choice.h"
#include "acceptance/online_costs.h"
#include "acceptance/online_logistic.h"
#include "acceptance/online_rate.h"
#include "common/checks.h"

namespace eaglerl {

constexpr int kNodeWeights = 10;
constexpr int kLookupWeights = 9;

// What all sequences share.
class OnlineAcceptance : public PythonObject {
 public:
  // `plain_seconds` is the duration of decoding one token without drafts.
  OnlineAcceptance(int64_t max_depth, double plain_seconds);

  // The rate of cycles of so many sequences, of at most those that rate_of() was called for.
  double rate(int64_t slots = 1) const { return rates_[slots - 1].rate(); }
  OnlineRate& rate_of(int64_t slots);

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
  double plain_seconds_;
  // Of cycles of one sequence, of two, ...: what is worth its seconds beside others is not worth
  // them alone.
  std::vector<OnlineRate> rates_;
  std::vector<double> ratio_;
  std::vector<double> expected_gain_;
  std::vector<double> found_gain_;
};

}  // namespace eaglerl
