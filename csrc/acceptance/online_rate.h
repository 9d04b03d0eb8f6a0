// Tokens per second of recent cycles.
#pragma once

#include <cstdint>
#include <vector>

#include "acceptance/online_costs.h"

namespace eaglerl {

// Of cycles that decode as many sequences. It starts at 1.3 times the rate of plain decoding, with
// the weight of 20 tokens, and remembers the last 1,000 cycles.
class OnlineRate {
 public:
  // `plain_seconds` is the duration of a token that is decoded plainly.
  OnlineRate(int64_t slots, double plain_seconds);

  double rate() const { return tokens_ / seconds_; }

  void count(double tokens, double seconds);
  // The same for costs that change: the rate is what all recent cycles would reach at the present
  // costs.
  void count(double tokens, int64_t rows, double context_length, const DraftPasses& passes);
  void reprice(const OnlineCosts& costs);

 private:
  struct Verified {
    double cycles = 0.0;
    double context = 0.0;
  };

  int64_t slots_;
  double tokens_;
  double seconds_;
  double first_tokens_;  // of the rate at the beginning
  // Cycles by their number of rows, and the draft's passes of all of them by their slots.
  std::vector<Verified> verified_;
  std::vector<double> first_passes_;
  std::vector<double> later_passes_;
};

}  // namespace eaglerl
