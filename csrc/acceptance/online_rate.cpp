#include "acceptance/online_rate.h"

#include <algorithm>

namespace eaglerl {
namespace {

constexpr double kFirstTokens = 20.0;
constexpr double kFirstGain = 1.3;
constexpr double kMemory = 0.999;

}  // namespace

OnlineRate::OnlineRate(int64_t slots, double plain_seconds)
    : slots_(slots),
      tokens_(kFirstTokens),
      seconds_(kFirstTokens * plain_seconds / kFirstGain),
      first_tokens_(kFirstTokens),
      first_passes_(size_t(slots)),
      later_passes_(size_t(slots)) {}

void OnlineRate::count(double tokens, double seconds) {
  tokens_ = tokens_ * kMemory + tokens;
  seconds_ = seconds_ * kMemory + seconds;
}

void OnlineRate::count(double tokens, int64_t rows, double context_length,
                       const DraftPasses& passes) {
  if (int64_t(verified_.size()) < rows) verified_.resize(size_t(rows));
  for (Verified& each : verified_) {
    each.cycles *= kMemory;
    each.context *= kMemory;
  }
  for (double& each : first_passes_) each *= kMemory;
  for (double& each : later_passes_) each *= kMemory;
  verified_[rows - 1].cycles += 1.0;
  verified_[rows - 1].context += context_length;
  if (passes.first > 0) first_passes_[passes.first - 1] += 1.0;
  for (const DraftPasses::Run& run : passes.later) {
    later_passes_[run.slots - 1] += double(run.passes);
  }
  tokens_ = tokens_ * kMemory + tokens;
  first_tokens_ *= kMemory;
}

void OnlineRate::reprice(const OnlineCosts& costs) {
  seconds_ = first_tokens_ * costs.base[slots_ - 1] / double(slots_) / kFirstGain;
  for (int64_t i = 0; i < slots_; ++i) {
    seconds_ += first_passes_[i] * costs.first_pass[i];
    seconds_ += later_passes_[i] * costs.later_pass[i];
  }
  const size_t known = std::min(verified_.size(), costs.base.size());
  for (size_t r = 0; r < known; ++r) {
    seconds_ += verified_[r].cycles * costs.base[r] + verified_[r].context * costs.slope[r];
  }
}

}  // namespace eaglerl
