// Learns, while a text is decoded, what the passes of draft and target cost.
// docs/policies.md says how; tests/cost/test_online_cost.py computes it again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "acceptance/change_detector.h"
#include "common/checks.h"

namespace eaglerl {

// The size of a draft's pass: `above` of the way, in logarithms, from a width to the next one.
struct PassSize {
  int64_t width;  // its index
  double above = 0.0;
};

// What a cycle measured. Seconds of 0 were not measured.
struct CycleTimes {
  // Passes of one size: how many are a draft's first one, and how many are later ones.
  struct Passes {
    PassSize size;
    double first;
    double later;
  };

  int64_t rows;
  double context_length;
  double verify_seconds;
  std::vector<Passes> passes;
  double draft_seconds;
};

// A belief about logarithms of seconds, updated with every cycle's times (an extended Kalman
// filter): the verification of one row, which is the machine's speed; that of other row counts
// beside it, at knots; its growth with the context; and the passes of each width beside it. What
// slows all of a cycle alike moves the speed alone.
class OnlineCost : public PythonObject {
 public:
  // `widths` are rows of the draft's passes, ascending.
  OnlineCost(int64_t max_rows, std::vector<int64_t> widths);

  void observe(const CycleTimes& times);

  // The unit of all other costs: about the seconds of verifying one row without context.
  double speed() const;
  // Seconds beside speed(): of verifying r + 1 rows without context, never falling with r.
  const std::vector<double>& verify() const { return verify_; }
  // What a token of context adds to a verification without context.
  double context_growth() const;
  double first_pass(const PassSize& size) const { return std::exp(log_pass(size, 0)); }
  double later_pass(const PassSize& size) const { return std::exp(log_pass(size, 1)); }
  // The standard deviations of their logarithms.
  double first_deviation(const PassSize& size) const { return pass_deviation(size, 0); }
  double later_deviation(const PassSize& size) const { return pass_deviation(size, 1); }
  // The size of a pass of so many rows, at least the smallest width and at most the largest.
  PassSize pass_size(int64_t rows) const;
  // The standard deviation of the logarithm of verify()[r], beside the row count verified last.
  const std::vector<double>& deviation() const { return deviation_; }
  // The same for trials: more where the machine has changed since about so many rows were verified.
  double trial_deviation(int64_t r) const;

  int64_t max_rows() const { return int64_t(verify_.size()); }
  const std::vector<int64_t>& widths() const { return widths_; }
  int64_t cycles() const { return cycles_; }
  const std::vector<int64_t>& knots() const { return knots_; }

  // The belief: (1 + knots - 1 + 1 + 2 widths) means and their standard deviations.
  const std::vector<double>& mean() const { return mean_; }
  std::vector<double> spread() const;
  // Replaces the belief; the correlations are those of the beginning. `spread` is positive.
  void restore(const double* mean, const double* spread, int64_t cycles);

 private:
  using Vector = std::vector<double>;

  // A number of rows between two knots. The knot of one row adds nothing to the speed.
  struct Between {
    size_t left, right;
    double left_weight, right_weight;
  };

  // Of about as many rows as at a knot.
  struct Verified {
    int64_t cycle = 0;      // the last in which they took as long as was believed
    int64_t surprises = 0;  // since, in a row and in the same direction, negative for too fast
  };

  // Neighbouring knots that are believed to cost the same.
  struct Pooled {
    double mean;
    double weight;
    size_t knots;
  };

  struct Observed {
    double surprise;    // logarithm of found over expected seconds
    double deviations;  // the same in standard deviations, at most 3
    bool clipped;
  };

  size_t size() const { return mean_.size(); }
  double deviation_of(size_t i) const { return std::sqrt(std::max(covariance(i, i), 0.0)); }
  size_t context_index() const { return knots_.size(); }
  size_t first_index(int64_t width) const { return knots_.size() + 1 + 2 * size_t(width); }
  // Of a first (0) or later (1) pass.
  double log_pass(const PassSize& size, size_t later) const;
  double pass_deviation(const PassSize& size, size_t later) const;
  int64_t next_width(const PassSize& size) const {
    return std::min(size.width + 1, int64_t(widths_.size()) - 1);
  }
  double& covariance(size_t i, size_t j) { return covariance_[i * size() + j]; }
  double covariance(size_t i, size_t j) const { return covariance_[i * size() + j]; }
  void begin_belief();
  // The sum of both weights' knots, by the belief's means.
  double growth(const Between& between) const;
  Observed learn(double surprise);
  Observed learn_passes(const CycleTimes& times);
  size_t nearest_knot(int64_t rows) const;
  // Finds changes of what rows cost where not all cycles verify as many.
  void detect_change(int64_t rows, const Observed& verify);
  void widen_rows();
  void widen_after(const Observed& verify, const Observed* draft);
  Between find_between(int64_t rows) const;
  // Computes verify() and deviation() anew.
  void refresh(int64_t rows);
  // Computes the ascending costs at the knots.
  void ascend();

  std::vector<int64_t> widths_;
  int64_t cycles_ = 0;
  int64_t unsure_ = 3;  // cycles at the beginning that may have been stalls
  // Cycles in a row whose verification was off in the same direction, negative for too fast, and
  // those whose draft was as well.
  int64_t surprises_ = 0;
  int64_t all_surprises_ = 0;
  std::vector<Verified> verified_;  // of each knot
  ChangeDetector changes_;
  int64_t last_change_ = 0;  // the cycle
  std::vector<int64_t> knots_;
  std::vector<Between> between_;  // of each number of rows
  Vector mean_;
  Vector covariance_;
  Vector gradient_;
  Vector toward_;
  Vector verify_;
  Vector deviation_;
  std::vector<Pooled> pooled_;
  Vector ascending_;  // of the knots
};

}  // namespace eaglerl
