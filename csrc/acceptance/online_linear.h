// Linear regression that learns value by value.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

namespace eaglerl {

// A Gaussian belief about the weights, updated with every value as a Kalman filter does. The
// variance of the values about the line is learned beside it.
template <int kInputs>
class OnlineLinear {
 public:
  using Vector = std::array<double, kInputs>;

  OnlineLinear(const Vector& mean, const Vector& deviation) : mean_(mean) {
    for (int i = 0; i < kInputs; ++i) {
      prior_[i] = deviation[i] * deviation[i];
      covariance_[i].fill(0.0);
      covariance_[i][i] = prior_[i];
    }
  }

  double predict(const Vector& x) const {
    double sum = 0.0;
    for (int i = 0; i < kInputs; ++i) sum += mean_[i] * x[i];
    return sum;
  }

  // The standard deviation of what predict() believes.
  double deviation(const Vector& x) const {
    double spread = 0.0;
    for (int i = 0; i < kInputs; ++i) {
      for (int j = 0; j < kInputs; ++j) spread += x[i] * covariance_[i][j] * x[j];
    }
    return std::sqrt(std::max(spread, 0.0));
  }

  // Lets what is known fade: what is not seen again is as uncertain as at first after 2,000 calls.
  void age() {
    for (int i = 0; i < kInputs; ++i) {
      covariance_[i][i] = std::min(covariance_[i][i] + kForgotten * prior_[i], prior_[i]);
    }
  }

  void update(const Vector& x, double value) {
    const double surprise = value - predict(x);
    Vector toward = {};
    double spread = 0.0;
    for (int i = 0; i < kInputs; ++i) {
      for (int j = 0; j < kInputs; ++j) toward[i] += covariance_[i][j] * x[j];
      spread += toward[i] * x[i];
    }
    const double variance = noise_ + spread;
    for (int i = 0; i < kInputs; ++i) {
      mean_[i] += toward[i] * surprise / variance;
      for (int j = 0; j < kInputs; ++j) covariance_[i][j] -= toward[i] * toward[j] / variance;
    }
    age();
    noise_ += kNewestNoise * (surprise * surprise - noise_);
  }

 private:
  static constexpr double kForgotten = 5e-4;
  static constexpr double kNewestNoise = 0.02;

  Vector mean_;
  Vector prior_;
  std::array<Vector, kInputs> covariance_;
  double noise_ = 1.0;
};

}  // namespace eaglerl
