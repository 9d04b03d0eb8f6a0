#include "common/thread_chooser.h"

#include <algorithm>
#include <cmath>

namespace eaglerl {
namespace {

// Seconds that may be lost before the limit is lowered. On virtual machines a core is taken away
// for up to 70 ms now and then, which is no reason.
constexpr double kTolerated = 0.1;
// Seconds that a trial may lose. It passes when as many have been gained as are missing here, or
// after a while if regions are short and rare.
constexpr double kTrialLoss = 0.015;
constexpr double kTrialWait = 2.0;
constexpr int kTrialRegions = 100;
// The first trial comes soon, in case the disturbance was short. A failed one costs up to 50 ms;
// one that costs more, since it ends with a region, is repeated later.
constexpr double kFirstInterval = 0.1;
constexpr double kUsualInterval = 4.0;
constexpr double kLongestInterval = 30.0;
constexpr double kSecondsPerLost = 40.0;

int fewer_than(int threads) { return threads - std::max(1, threads / 4); }

}  // namespace

int ThreadChooser::choose(int wanted, double now) {
  wanted_ = std::max(wanted_, wanted);
  if (wanted > limit_ && !trial_ && now >= next_trial_) {
    held_ = limit_;
    limit_ += (wanted_ - limit_ + 1) / 2;
    trial_ = true;
    trial_began_ = now;
    trial_regions_ = 0;
    trial_lost_ = kTolerated - kTrialLoss;
  }
  return std::min(wanted, limit_);
}

void ThreadChooser::observe(int threads, double now, const RegionTimes& times) {
  if (threads <= 1 || threads > limit_) return;  // more: it began before the limit was lowered
  const double gained = times.seconds * (1.0 - double(fewer_than(threads)) / threads);
  const double lost = std::min(times.stalled, times.seconds) - gained;
  if (trial_ && threads > held_) {
    trial_lost_ = std::max(0.0, trial_lost_ + lost);
    ++trial_regions_;
    const bool long_enough = now - trial_began_ >= kTrialWait && trial_regions_ >= kTrialRegions;
    if (trial_lost_ > kTolerated) {
      fail_trial(now);
    } else if (trial_lost_ == 0.0 || long_enough) {
      pass_trial();
    }
    return;
  }
  if (lost_ == 0.0) most_ = 0;
  most_ = std::max(most_, threads);
  lost_ = std::max(0.0, lost_ + lost);
  if (lost_ > kTolerated) lower(now);
}

void ThreadChooser::lower(double now) {
  limit_ = fewer_than(most_);
  trial_ = false;
  failures_ = 0;
  lost_ = 0.0;
  next_trial_ = now + kFirstInterval;
}

void ThreadChooser::fail_trial(double now) {
  limit_ = held_;
  trial_ = false;
  ++failures_;
  const double usual =
      std::min(kFirstInterval * std::exp2(std::min(failures_, 30)), kUsualInterval);
  const double cost = trial_lost_ - (kTolerated - kTrialLoss);
  next_trial_ = now + std::min(std::max(usual, kSecondsPerLost * cost), kLongestInterval);
}

void ThreadChooser::pass_trial() {
  if (limit_ >= wanted_) limit_ = kNoLimit;
  trial_ = false;
  failures_ = 0;
  next_trial_ = 0.0;
}

}  // namespace eaglerl
