// Logistic regression that learns label by label.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

namespace eaglerl {

// A Gaussian belief about the weights, updated with every label as an extended Kalman filter does:
// one Newton step on the log-likelihood of that label, with the belief as prior.
template <int kInputs>
class OnlineLogistic {
 public:
  using Vector = std::array<double, kInputs>;

  OnlineLogistic(const Vector& mean, const Vector& deviation) : mean_(mean) {
    for (int i = 0; i < kInputs; ++i) {
      prior_[i] = deviation[i] * deviation[i];
      covariance_[i].fill(0.0);
      covariance_[i][i] = prior_[i];
    }
  }

  double predict(const Vector& x) const {
    double sum = 0.0;
    for (int i = 0; i < kInputs; ++i) sum += mean_[i] * x[i];
    return 1.0 / (1.0 + std::exp(-std::clamp(sum, -kMostLogit, kMostLogit)));
  }

  void update(const Vector& x, bool label) {
    const double found = predict(x);
    // A label that was all but certain still tells a little, should it turn out otherwise.
    const double information = std::max(found * (1.0 - found), kLeastInformation);
    Vector toward = {};
    double spread = 0.0;
    for (int i = 0; i < kInputs; ++i) {
      for (int j = 0; j < kInputs; ++j) toward[i] += covariance_[i][j] * x[j];
      spread += toward[i] * x[i];
    }
    const double step = (double(label) - found) / (1.0 + information * spread);
    const double shrink = 1.0 / (1.0 / information + spread);
    for (int i = 0; i < kInputs; ++i) {
      mean_[i] += toward[i] * step;
      for (int j = 0; j < kInputs; ++j) covariance_[i][j] -= toward[i] * toward[j] * shrink;
      // Old labels fade, since texts differ: what is not seen again is as uncertain as at first
      // after 100,000 labels.
      covariance_[i][i] = std::min(covariance_[i][i] + kForgotten * prior_[i], prior_[i]);
    }
  }

  const Vector& mean() const { return mean_; }

 private:
  static constexpr double kMostLogit = 30.0;
  static constexpr double kLeastInformation = 1e-3;
  static constexpr double kForgotten = 1e-5;

  Vector mean_;
  Vector prior_;
  std::array<Vector, kInputs> covariance_;
};

}  // namespace eaglerl
