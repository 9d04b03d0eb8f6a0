// Linear regression that learns value by value.
#pragma once

#include <algorithm>
#include <cmath>

#include "acceptance/gaussian_belief.h"

namespace eaglerl {

// The belief is updated with every value as a Kalman filter does. The variance of the values about
// the line is learned beside it.
template <int kInputs>
class OnlineLinear : public GaussianBelief<kInputs> {
 public:
  using GaussianBelief<kInputs>::GaussianBelief;
  using typename GaussianBelief<kInputs>::Vector;

  double predict(const Vector& x) const { return this->sum(x); }

  // The standard deviation of what predict() believes.
  double deviation(const Vector& x) const {
    Vector toward;
    return std::sqrt(std::max(this->spread(x, toward), 0.0));
  }

  // Values of long ago fade, in 10,000 calls.
  void age() { this->fade(1e-4); }

  void update(const Vector& x, double value) {
    const double surprise = value - predict(x);
    Vector toward;
    const double variance = noise_ + this->spread(x, toward);
    this->move(toward, surprise / variance, 1.0 / variance);
    age();
    noise_ += kNewestNoise * (surprise * surprise - noise_);
  }

 private:
  static constexpr double kNewestNoise = 0.02;

  double noise_ = 1.0;
};

}  // namespace eaglerl
