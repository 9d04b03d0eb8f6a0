// Logistic regression that learns label by label.
#pragma once

#include <algorithm>
#include <cmath>

#include "acceptance/gaussian_belief.h"

namespace eaglerl {

// The belief is updated with every label as an extended Kalman filter does: one Newton step on the
// log-likelihood of that label, with the belief as prior.
template <int kInputs>
class OnlineLogistic : public GaussianBelief<kInputs> {
 public:
  using GaussianBelief<kInputs>::GaussianBelief;
  using typename GaussianBelief<kInputs>::Vector;

  double predict(const Vector& x) const {
    return 1.0 / (1.0 + std::exp(-std::clamp(this->sum(x), -kMostLogit, kMostLogit)));
  }

  void update(const Vector& x, bool label) {
    const double found = predict(x);
    // A label that was all but certain still tells a little, should it turn out otherwise.
    const double information = std::max(found * (1.0 - found), kLeastInformation);
    Vector toward;
    const double spread = this->spread(x, toward);
    this->move(toward, (double(label) - found) / (1.0 + information * spread),
               1.0 / (1.0 / information + spread));
    // Old labels fade, since texts differ, in 100,000 labels.
    this->fade(1e-5);
  }

 private:
  static constexpr double kMostLogit = 30.0;
  static constexpr double kLeastInformation = 1e-3;
};

}  // namespace eaglerl
