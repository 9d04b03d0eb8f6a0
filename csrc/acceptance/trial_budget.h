// What may be lost by choices that seem worse, for what they teach.
#pragma once

#include <algorithm>

namespace eaglerl {

// A share of all tokens. What is not spent is kept, within a limit.
class TrialBudget {
 public:
  // `share` of the tokens that are decoded, and `first` tokens at first.
  TrialBudget(double share, double first) : share_(share), left_(first) {}

  void earn(double tokens) { left_ = std::min(left_ + share_ * tokens, kMost); }
  bool affords(double tokens) const { return tokens <= left_; }
  // `tokens` below 0, of a choice that turned out to be no worse, cost nothing.
  void charge(double tokens) { left_ -= std::max(tokens, 0.0); }
  bool spend(double tokens) {
    if (!affords(tokens)) return false;
    charge(tokens);
    return true;
  }

 private:
  static constexpr double kMost = 15.0;

  double share_;
  double left_;
};

}  // namespace eaglerl
