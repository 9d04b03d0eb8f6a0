#include "acceptance/online_cost.h"

#include <algorithm>
#include <cmath>

namespace eaglerl {
namespace {

// Before the first cycle: 7 % for every further row, within a random walk over the logarithm of the
// rows whose standard deviation is 0.35 for e times as many; passes of the draft that take 15 % and
// 6 % of a row's verification, and 0.03 % for a token of context, each within a factor of e. Wider
// passes cost more as more rows do.
constexpr double kFirstGrowth = 0.07;
constexpr double kGrowthSpread = 0.35;
constexpr double kFirstPass = 0.15, kLaterPass = 0.06, kContextGrowth = 3e-4;
constexpr double kFirstSpread = 1.0;
// The first cycle of a process can be an exception; the speed is not taken from it alone.
constexpr double kSpeedSpread = 0.5;
// A verification that takes a quarter of what the first three cycles let expect means that those
// were stalls, and the belief begins anew.
constexpr double kFirstStall = 1.386;
// Times of equal cycles differ by 5 %. The machine's speed drifts by 1 % a cycle, all else by
// 0.03 %, which is 3 % in 10,000 cycles.
constexpr double kNoise = 0.05, kSpeedDrift = 0.01, kDrift = 3e-4;
// A time off by more than 3 standard deviations counts as one off by 3. After four cycles in a row
// the machine has changed: what rows cost may be off by 0.1 as above, and, where drafts were off as
// well, its speed by a factor of 2.
constexpr double kMostSurprise = 3.0;
constexpr double kStall = 0.25;
constexpr int64_t kSurprises = 4;
// No cost is known better than to 0.3 %.
constexpr double kLeast = 3e-3;
// What rows cost may have changed by so much since they were last verified, if the machine has
// changed since, or after so many cycles.
constexpr double kTrialDeviation = 0.15;
constexpr int64_t kLongAgo = 2000;
constexpr double kChangedSpeed = 0.5, kChangedGrowth = 0.01;

std::vector<int64_t> knots_to(int64_t max_rows) {
  // Kernels take rows in blocks of 4, 8 and 16, so that a row more may cost a block.
  std::vector<int64_t> knots = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 17, 20, 24, 32};
  // 48, 64, 96, 128, ...
  while (knots.back() < max_rows) knots.push_back(2 * knots[knots.size() - 2]);
  return knots;
}

double square(double x) { return x * x; }

}  // namespace

OnlineCost::OnlineCost(int64_t max_rows, std::vector<int64_t> widths)
    : widths_(std::move(widths)), knots_(knots_to(max_rows)) {
  const size_t size = knots_.size() + 1 + 2 * widths_.size();
  mean_.assign(size, 0.0);
  gradient_.resize(size);
  toward_.resize(size);
  verify_.resize(size_t(max_rows));
  deviation_.resize(size_t(max_rows));
  pooled_.resize(knots_.size());
  verified_.resize(knots_.size());
  ascending_.resize(knots_.size());
  between_.reserve(size_t(max_rows));
  for (int64_t rows = 1; rows <= max_rows; ++rows) between_.push_back(find_between(rows));
  begin_belief();
  refresh(1);
}

// The belief without its speed, which the first cycle gives.
void OnlineCost::begin_belief() {
  covariance_.assign(size() * size(), 0.0);
  covariance(0, 0) = square(kSpeedSpread);
  for (size_t i = 1; i < knots_.size(); ++i) {
    mean_[i] = std::log1p(kFirstGrowth * double(knots_[i] - 1));
    for (size_t j = 1; j < knots_.size(); ++j) {
      const double common = std::log(double(std::min(knots_[i], knots_[j])));
      covariance(i, j) = square(kGrowthSpread) * common;
    }
  }
  mean_[context_index()] = std::log(kContextGrowth);
  covariance(context_index(), context_index()) = square(kFirstSpread);
  const auto growth = [](int64_t rows) { return std::log1p(kFirstGrowth * double(rows - 1)); };
  for (size_t a = 0; a < widths_.size(); ++a) {
    const size_t first = first_index(int64_t(a));
    const double dearer = growth(widths_[a]) - growth(widths_[0]);
    mean_[first] = std::log(kFirstPass) + dearer;
    mean_[first + 1] = std::log(kLaterPass) + dearer;
    for (size_t b = 0; b < widths_.size(); ++b) {
      const double wider = double(widths_[std::min(a, b)]) / double(widths_[0]);
      const double common = square(kFirstSpread) + square(kGrowthSpread) * std::log(wider);
      for (size_t later : {0, 1})
        covariance(first + later, first_index(int64_t(b)) + later) = common;
    }
  }
}

OnlineCost::Between OnlineCost::find_between(int64_t rows) const {
  const auto above = std::upper_bound(knots_.begin() + 1, knots_.end() - 1, rows);
  const size_t right = size_t(above - knots_.begin()), left = right - 1;
  const double share = double(rows - knots_[left]) / double(knots_[right] - knots_[left]);
  return {left, right, left == 0 ? 0.0 : 1.0 - share, share};
}

double OnlineCost::growth(const Between& between) const {
  return between.left_weight * mean_[between.left] + between.right_weight * mean_[between.right];
}

double OnlineCost::speed() const { return std::exp(mean_[0]); }
double OnlineCost::context_growth() const { return std::exp(mean_[context_index()]); }

PassSize OnlineCost::pass_size(int64_t rows) const {
  const auto above = std::upper_bound(widths_.begin(), widths_.end(), rows);
  const int64_t width = std::max<int64_t>(above - widths_.begin() - 1, 0);
  if (above == widths_.end() || rows <= widths_[width]) return {width};
  const double from = double(widths_[width]);
  return {width, std::log(double(rows) / from) / std::log(double(*above) / from)};
}

double OnlineCost::log_pass(const PassSize& size, size_t later) const {
  return (1.0 - size.above) * mean_[first_index(size.width) + later] +
         size.above * mean_[first_index(next_width(size)) + later];
}

double OnlineCost::pass_deviation(const PassSize& size, size_t later) const {
  const size_t at = first_index(size.width) + later, next = first_index(next_width(size)) + later;
  const double below = 1.0 - size.above;
  const double variance = below * below * covariance(at, at) +
                          2.0 * below * size.above * covariance(at, next) +
                          size.above * size.above * covariance(next, next);
  return std::sqrt(std::max(variance, 0.0));
}

void OnlineCost::observe(const CycleTimes& times) {
  for (size_t i = 0; i < size(); ++i) covariance(i, i) += square(i == 0 ? kSpeedDrift : kDrift);

  const Between& between = between_[times.rows - 1];
  std::fill(gradient_.begin(), gradient_.end(), 0.0);
  gradient_[between.left] = between.left_weight;
  gradient_[between.right] = between.right_weight;
  const double longer = context_growth() * times.context_length;
  const double expected = growth(between) + std::log1p(longer);
  const double found = std::log(times.verify_seconds);
  if (cycles_ > 0 && cycles_ <= unsure_ && found - expected - mean_[0] < -kFirstStall) {
    begin_belief();
    verified_.assign(knots_.size(), {});
    changes_ = {};
    cycles_ = surprises_ = all_surprises_ = 0;
    return observe(times);
  }
  if (cycles_++ == 0) mean_[0] = found - expected;
  gradient_[0] = 1.0;
  gradient_[context_index()] = longer / (1.0 + longer);
  const Observed verify = learn(found - expected - mean_[0]);
  detect_change(times.rows, verify);
  if (times.draft_seconds > 0.0 && !times.passes.empty()) {
    const Observed draft = learn_passes(times);
    widen_after(verify, &draft);
  } else {
    widen_after(verify, nullptr);
  }
  refresh(times.rows);
}

OnlineCost::Observed OnlineCost::learn_passes(const CycleTimes& times) {
  double sum = 0.0;
  for (const CycleTimes::Passes& passes : times.passes) {
    sum += passes.first * first_pass(passes.size);
    sum += passes.later * later_pass(passes.size);
  }
  std::fill(gradient_.begin(), gradient_.end(), 0.0);
  gradient_[0] = 1.0;
  for (const auto& [size, first, later] : times.passes) {
    const double shares[] = {first * first_pass(size) / sum, later * later_pass(size) / sum};
    for (size_t i : {0, 1}) {
      gradient_[first_index(size.width) + i] += (1.0 - size.above) * shares[i];
      gradient_[first_index(next_width(size)) + i] += size.above * shares[i];
    }
  }
  return learn(std::log(times.draft_seconds) - std::log(sum) - mean_[0]);
}

// One step with `gradient_`, given the logarithm of found over expected seconds.
OnlineCost::Observed OnlineCost::learn(double surprise) {
  const size_t n = size();
  // A time far above what was expected may be a stall, even where little is known: it is believed
  // within a quarter of the surprise, so that it is measured again.
  const double stalled = std::max(surprise - kMostSurprise * kNoise, 0.0);
  double variance = square(kNoise) + square(kStall * stalled);
  for (size_t i = 0; i < n; ++i) {
    double sum = 0.0;
    for (size_t j = 0; j < n; ++j) sum += covariance(i, j) * gradient_[j];
    toward_[i] = sum;
  }
  for (size_t i = 0; i < n; ++i) variance += toward_[i] * gradient_[i];
  const double most = kMostSurprise * std::sqrt(variance);
  const bool clipped = std::abs(surprise) > most;
  // What is clipped tells as much less as it is believed less.
  const double trust = clipped ? most / std::abs(surprise) : 1.0;
  for (size_t i = 0; i < n; ++i) {
    const double gain = trust * toward_[i] / variance;
    mean_[i] += gain * surprise;
    for (size_t j = 0; j < n; ++j) covariance(i, j) -= gain * toward_[j];
  }
  const double deviations = surprise / std::sqrt(variance);
  return {surprise, std::clamp(deviations, -kMostSurprise, kMostSurprise), clipped};
}

void OnlineCost::widen_after(const Observed& verify, const Observed* draft) {
  const int64_t sign = !verify.clipped ? 0 : verify.surprise > 0 ? 1 : -1;
  const bool all =
      draft == nullptr || (draft->clipped && (draft->surprise > 0) == (verify.surprise > 0));
  const auto count = [](int64_t& in_a_row, int64_t with) {
    in_a_row = with == 0 ? 0 : in_a_row * with > 0 ? in_a_row + with : with;
  };
  count(surprises_, sign);
  count(all_surprises_, all ? sign : 0);
  if (std::abs(surprises_) < kSurprises) return;
  // Where the draft takes as long as it did, only what rows cost has changed.
  if (std::abs(all_surprises_) >= kSurprises) covariance(0, 0) += kChangedSpeed;
  surprises_ = all_surprises_ = 0;
  widen_rows();
}

void OnlineCost::widen_rows() {
  for (size_t i = 1; i < knots_.size(); ++i) {
    for (size_t j = 1; j < knots_.size(); ++j) {
      covariance(i, j) += kChangedGrowth * std::log(double(std::min(knots_[i], knots_[j])));
    }
  }
}

size_t OnlineCost::nearest_knot(int64_t rows) const {
  const Between& between = between_[rows - 1];
  return between.right_weight > 0.5 ? between.right : between.left;
}

double OnlineCost::trial_deviation(int64_t r) const {
  const int64_t cycle = verified_[nearest_knot(r + 1)].cycle;
  const bool outdated = cycle < std::max(last_change_, cycles_ - kLongAgo);
  return outdated ? std::max(deviation_[r], kTrialDeviation) : deviation_[r];
}

void OnlineCost::detect_change(int64_t rows, const Observed& verify) {
  if (changes_.add(verify.deviations)) last_change_ = cycles_;
  Verified& verified = verified_[nearest_knot(rows)];
  if (!verify.clipped) {
    verified = {cycles_, 0};
    return;
  }
  const int64_t sign = verify.surprise > 0.0 ? 1 : -1;
  verified.surprises = verified.surprises * sign > 0 ? verified.surprises + sign : sign;
  if (std::abs(verified.surprises) < kSurprises) return;
  verified.surprises = 0;
  widen_rows();
}

void OnlineCost::refresh(int64_t rows) {
  const Between& last = between_[rows - 1];
  for (size_t r = 0; r < between_.size(); ++r) {
    const Between& between = between_[r];
    const size_t at[] = {between.left, between.right, last.left, last.right};
    const double weights[] = {between.left_weight, between.right_weight, -last.left_weight,
                              -last.right_weight};
    double variance = 0.0;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) variance += weights[i] * weights[j] * covariance(at[i], at[j]);
    }
    deviation_[r] = std::sqrt(std::max(variance, 0.0));
  }
  ascend();
  for (size_t r = 0; r < between_.size(); ++r) {
    const Between& between = between_[r];
    const double left = ascending_[between.left], right = ascending_[between.right];
    const double share = between.right_weight;
    verify_[r] = std::exp(left + share * (right - left));
  }
}

// More rows never cost less: the ascending costs at the knots that are nearest to the believed
// ones, each weighted by how well it is known (pool adjacent violators: Barlow et al. 1972).
void OnlineCost::ascend() {
  size_t blocks = 0;
  for (size_t i = 0; i < knots_.size(); ++i) {
    const size_t row = std::min(size_t(knots_[i]), deviation_.size()) - 1;
    pooled_[blocks++] = {i == 0 ? 0.0 : mean_[i], 1.0 / (square(deviation_[row]) + square(kLeast)),
                         1};
    while (blocks > 1 && pooled_[blocks - 2].mean > pooled_[blocks - 1].mean) {
      Pooled& into = pooled_[blocks - 2];
      const Pooled& from = pooled_[--blocks];
      const double weight = into.weight + from.weight;
      into.mean += (from.mean - into.mean) * from.weight / weight;
      into.weight = weight;
      into.knots += from.knots;
    }
  }
  size_t i = 0;
  for (size_t block = 0; block < blocks; ++block) {
    for (size_t k = 0; k < pooled_[block].knots; ++k) ascending_[i++] = pooled_[block].mean;
  }
}

std::vector<double> OnlineCost::spread() const {
  Vector spread(size());
  for (size_t i = 0; i < size(); ++i) spread[i] = deviation_of(i);
  return spread;
}

void OnlineCost::restore(const double* mean, const double* spread, int64_t cycles) {
  begin_belief();
  const Vector first = this->spread();
  for (size_t i = 0; i < size(); ++i) {
    for (size_t j = 0; j < size(); ++j)
      covariance(i, j) *= spread[i] * spread[j] / first[i] / first[j];
  }
  mean_.assign(mean, mean + size());
  cycles_ = cycles;
  unsure_ = 0;
  surprises_ = all_surprises_ = 0;
  for (Verified& verified : verified_) verified = {cycles_, 0};
  refresh(1);
}

}  // namespace eaglerl
