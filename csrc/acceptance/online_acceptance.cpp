#include "acceptance/online_acceptance.h"

#include <algorithm>

namespace eaglerl {
namespace {

// A level's best candidates survive 0.75 times as often as those of the level before, until it is
// known better; 2 % of each new ratio count.
constexpr double kFirstRatio = 0.75;
constexpr double kNewestRatio = 0.02;
// Gains of about 100 rounds are compared with what was expected of them, after 5 tokens of prior.
constexpr double kGainMemory = 0.99;
constexpr double kFirstTokensGained = 5.0;
constexpr double kLeastFactor = 0.3, kMostFactor = 3.0;

// The believed weights at first, and their standard deviations.
constexpr std::array<double, kNodeWeights> kNodePrior = {0.0, 1.0};
constexpr std::array<double, kNodeWeights> kNodeSpread = {0.5, 0.2, 0.5, 0.5, 0.5,
                                                          0.5, 0.5, 0.5, 0.5, 0.3};
constexpr std::array<double, kLookupWeights> kLookupPrior = {};
constexpr std::array<double, kLookupWeights> kLookupSpread = {1.0, 1.0, 1.0, 1.0, 1.0,
                                                              1.0, 1.0, 1.0, 1.0};

}  // namespace

OnlineAcceptance::OnlineAcceptance(int64_t max_depth, double plain_seconds)
    : nodes(kNodePrior, kNodeSpread),
      lookups(kLookupPrior, kLookupSpread),
      plain_seconds_(plain_seconds),
      ratio_(size_t(max_depth) + 1, kFirstRatio),
      expected_gain_(size_t(max_depth) + 1, kFirstTokensGained),
      found_gain_(size_t(max_depth) + 1, kFirstTokensGained) {
  rate_of(1);
}

OnlineRate& OnlineAcceptance::rate_of(int64_t slots) {
  while (int64_t(rates_.size()) < slots) {
    rates_.emplace_back(int64_t(rates_.size()) + 1, plain_seconds_);
  }
  return rates_[slots - 1];
}

void OnlineAcceptance::learn_ratio(int64_t depth, double ratio) {
  ratio_[depth] += kNewestRatio * (ratio - ratio_[depth]);
}

void OnlineAcceptance::learn_gain(int64_t depth, double expected, double found) {
  expected_gain_[depth] = expected_gain_[depth] * kGainMemory + expected;
  found_gain_[depth] = found_gain_[depth] * kGainMemory + found;
}

double OnlineAcceptance::gain_factor(int64_t depth) const {
  const double factor = found_gain_[depth] / std::max(expected_gain_[depth], 1e-6);
  return std::clamp(factor, kLeastFactor, kMostFactor);
}

}  // namespace eaglerl
