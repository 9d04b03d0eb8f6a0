// When what costs are not known is worth a trial.
#pragma once

namespace eaglerl {

// Costs known to 3 % are known well enough.
constexpr double kKnownCost = 0.03;
// Row counts may cost much less than their neighbours say: kernels take rows in blocks.
constexpr double kHopedDeviations = 3.0;

}  // namespace eaglerl
