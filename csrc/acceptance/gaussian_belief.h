// What the online regressions believe of their weights.
#pragma once

#include <algorithm>
#include <array>

namespace eaglerl {

// A Gaussian belief about weights, which begin as independent of each other.
template <int kInputs>
class GaussianBelief {
 public:
  using Vector = std::array<double, kInputs>;

  GaussianBelief(const Vector& mean, const Vector& deviation) : mean_(mean) {
    for (int i = 0; i < kInputs; ++i) {
      prior_[i] = deviation[i] * deviation[i];
      covariance_[i].fill(0.0);
      covariance_[i][i] = prior_[i];
    }
  }

  const Vector& mean() const { return mean_; }

 protected:
  double sum(const Vector& x) const {
    double sum = 0.0;
    for (int i = 0; i < kInputs; ++i) sum += mean_[i] * x[i];
    return sum;
  }

  // The variance of sum(x); `toward` is the covariance times x.
  double spread(const Vector& x, Vector& toward) const {
    double spread = 0.0;
    for (int i = 0; i < kInputs; ++i) {
      toward[i] = 0.0;
      for (int j = 0; j < kInputs; ++j) toward[i] += covariance_[i][j] * x[j];
      spread += toward[i] * x[i];
    }
    return spread;
  }

  void move(const Vector& toward, double step, double shrink) {
    for (int i = 0; i < kInputs; ++i) {
      mean_[i] += toward[i] * step;
      for (int j = 0; j < kInputs; ++j) covariance_[i][j] -= toward[i] * toward[j] * shrink;
    }
  }

  // Lets what is known fade: what is not seen again is as uncertain as at first after 1 / `share`
  // calls.
  void fade(double share) {
    for (int i = 0; i < kInputs; ++i) {
      covariance_[i][i] = std::min(covariance_[i][i] + share * prior_[i], prior_[i]);
    }
  }

 private:
  Vector mean_;
  Vector prior_;
  std::array<Vector, kInputs> covariance_;
};

}  // namespace eaglerl
