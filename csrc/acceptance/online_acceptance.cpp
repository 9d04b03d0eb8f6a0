#include "acceptance/online_acceptance.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

namespace eaglerl {
namespace {

// Weight of a cycle's newest lookup in the running success, and success before the first one.
constexpr double kNewestLookup = 0.2;
constexpr double kFirstSuccess = 0.5;
// The rate starts at 1.3 times that of plain decoding, with the weight of 20 tokens, and remembers
// the last 1,000 cycles.
constexpr double kFirstTokens = 20.0;
constexpr double kFirstGain = 1.3;
constexpr double kRateMemory = 0.999;
// A level's best candidates survive 0.75 times as often as those of the level before, until it is
// known better; 2 % of each new ratio count.
constexpr double kFirstRatio = 0.75;
constexpr double kNewestRatio = 0.02;
// Gains of about 100 rounds are compared with what was expected of them, after 5 tokens of prior.
constexpr double kGainMemory = 0.99;
constexpr double kFirstTokensGained = 5.0;
constexpr double kLeastFactor = 0.3, kMostFactor = 3.0;

// A candidate's confidence: the logit of the draft's own probability. A weight of 1 and no offset
// therefore mean that the draft is believed.
double confidence(double score) {
  const double below = std::min(score, -1e-4);
  return std::clamp(below - std::log1p(-std::exp(below)), -12.0, 8.0);
}

// The believed weights at first, and their standard deviations.
constexpr std::array<double, kNodeWeights> kNodePrior = {0.0, 1.0};
constexpr std::array<double, kNodeWeights> kNodeSpread = {0.5, 0.2, 0.5, 0.5, 0.5,
                                                          0.5, 0.5, 0.5, 0.5, 0.3};
constexpr std::array<double, kLookupWeights> kLookupPrior = {};
constexpr std::array<double, kLookupWeights> kLookupSpread = {1.0, 1.0, 1.0, 1.0, 1.0,
                                                              1.0, 1.0, 1.0, 1.0};

// Sorting needs an order, which NaN has not.
void check_numbers(const float* scores, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(scores[i])) {
      throw std::invalid_argument("scores must be numbers, scores[" + std::to_string(i) +
                                  "] is NaN");
    }
  }
}

}  // namespace

OnlineAcceptance::OnlineAcceptance(int64_t max_depth, double plain_seconds)
    : nodes(kNodePrior, kNodeSpread),
      lookups(kLookupPrior, kLookupSpread),
      tokens_(kFirstTokens),
      seconds_(kFirstTokens * plain_seconds / kFirstGain),
      first_tokens_(kFirstTokens),
      ratio_(size_t(max_depth) + 1, kFirstRatio),
      expected_gain_(size_t(max_depth) + 1, kFirstTokensGained),
      found_gain_(size_t(max_depth) + 1, kFirstTokensGained) {}

void OnlineAcceptance::count(double tokens, double seconds) {
  tokens_ = tokens_ * kRateMemory + tokens;
  seconds_ = seconds_ * kRateMemory + seconds;
}

void OnlineAcceptance::count(double tokens, int64_t rows, double context_length, int64_t rounds) {
  if (int64_t(verified_.size()) < rows) verified_.resize(size_t(rows));
  for (Verified& each : verified_) {
    each.cycles *= kRateMemory;
    each.context *= kRateMemory;
  }
  verified_[rows - 1].cycles += 1.0;
  verified_[rows - 1].context += context_length;
  first_passes_ = first_passes_ * kRateMemory + double(rounds >= 0);
  later_passes_ = later_passes_ * kRateMemory + double(std::max<int64_t>(rounds, 0));
  tokens_ = tokens_ * kRateMemory + tokens;
  first_tokens_ *= kRateMemory;
}

void OnlineAcceptance::reprice(const OnlineCosts& costs) {
  seconds_ = first_tokens_ * costs.base[0] / kFirstGain + first_passes_ * costs.first_pass +
             later_passes_ * costs.later_pass;
  const size_t known = std::min(verified_.size(), costs.base.size());
  for (size_t r = 0; r < known; ++r) {
    seconds_ += verified_[r].cycles * costs.base[r] + verified_[r].context * costs.slope[r];
  }
}

void OnlineAcceptance::learn_ratio(int64_t depth, double ratio) {
  ratio_[depth] += kNewestRatio * (ratio - ratio_[depth]);
}

void OnlineAcceptance::learn_gain(int64_t depth, double expected, double found) {
  expected_gain_[depth] = expected_gain_[depth] * kGainMemory + expected;
  found_gain_[depth] = found_gain_[depth] * kGainMemory + found;
}

double OnlineAcceptance::gain_factor(int64_t depth) const {
  const double factor = found_gain_[depth] / std::max(expected_gain_[depth], 1e-6);
  return std::clamp(factor, kLeastFactor, kMostFactor);
}

OnlineCycle::OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
                         OnlineCosts costs)
    : shared_(std::move(shared)), sizes_(sizes), costs_(std::move(costs)) {
  reserve();
}

OnlineCycle::OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
                         std::shared_ptr<OnlineCost> learned, int64_t width)
    : shared_(std::move(shared)), sizes_(sizes), learned_(std::move(learned)), width_(width) {
  costs_.base.resize(size_t(sizes.max_rows));
  costs_.slope.resize(size_t(sizes.max_rows));
  refresh_costs();
  reserve();
}

void OnlineCycle::reserve() {
  const DraftSizes& sizes = sizes_;
  const int64_t pool = sizes.pool_size(sizes.max_depth);
  survival_.resize(pool);
  inputs_.resize(pool);
  looked_up_.resize(sizes.lookup_tokens);
  lookup_inputs_.resize(sizes.lookup_tokens);
  undrafted_inputs_.resize(sizes.lookup_tokens);
  tops_.resize((sizes.max_depth + 1) * sizes.top_k);
  parents_.resize(sizes.top_k);
  lookup_nodes_.reserve(sizes.max_depth + 1);
  order_.reserve(pool + sizes.lookup_tokens);
  best_.reserve(pool + sizes.lookup_tokens + sizes.top_k);
  reset();
}

void OnlineCycle::reset() {
  success_ = kFirstSuccess;
  lookups_ = 0;
  begin();
  planned_ = false;
  recent_ = tokens_ = seconds_ = 0.0;
}

void OnlineCycle::score(const DraftView& draft) {
  check_numbers(draft.scores, sizes_.pool_size(draft.depth));
  check_lookup_nodes(sizes_, draft);
  const int64_t next = known_ + 1;
  if (next == 0) expected_ = -1.0;
  known_ = -1;  // stays so if a step below throws
  context_ = draft.context_length;
  match_ = draft.match_length;
  offered_ = std::min(draft.lookup_length, sizes_.lookup_tokens);
  lookup_nodes_.clear();
  if (draft.lookup_nodes) {
    lookup_nodes_.assign(draft.lookup_nodes, draft.lookup_nodes + draft.depth + 1);
  }
  for (int64_t level = next; level <= draft.depth; ++level) score_level(draft, level);
  score_lookup(draft);
  rank(draft);
  known_ = draft.depth;
}

void OnlineCycle::score_level(const DraftView& draft, int64_t level) {
  const int64_t width = sizes_.top_k, begin = sizes_.level_begin(level),
                end = sizes_.pool_size(level);
  const auto higher = [&](int64_t a, int64_t b) {
    return draft.scores[a] != draft.scores[b] ? draft.scores[a] > draft.scores[b] : a < b;
  };
  if (level > 0) {
    // The nodes that were expanded: the last level's best by score, each with top_k children.
    level_.resize(begin - sizes_.level_begin(level - 1));
    std::iota(level_.begin(), level_.end(), sizes_.level_begin(level - 1));
    std::partial_sort_copy(level_.begin(), level_.end(), parents_.begin(), parents_.end(), higher);
  }
  const double match = match_ > 0 ? log_match(match_) : 0.0;
  const int64_t looked_up = lookup_nodes_.empty() ? -1 : lookup_nodes_[level];
  for (int64_t node = begin; node < end; ++node) {
    auto& x = inputs_[node];
    x.fill(0.0);
    x[0] = 1.0;
    x[1] = confidence(draft.scores[node]);
    // A head for another model can be sure and wrong: above even chances the slope is its own.
    x[8] = std::max(x[1], 0.0);
    // What the draft believes too much of each token, it believes of a path once for each level.
    x[9] = double(level);
    if (match_ > 0) {
      // A lookup that proposes another token is evidence against the candidate.
      const int at = node == looked_up ? 2 : 5;
      x[at] = 1.0;
      x[at + 1] = match;
      x[at + 2] = success_;
    }
    const double above = level == 0 ? 1.0 : survival_[parents_[(node - begin) / width]];
    survival_[node] = std::min(shared_->nodes.predict(x), above);
  }
  double* top = tops_.data() + level * width;
  std::partial_sort_copy(survival_.begin() + begin, survival_.begin() + end, top, top + width,
                         std::greater<>());
}

void OnlineCycle::score_lookup(const DraftView& draft) {
  inside_ = 0;
  while (inside_ < int64_t(lookup_nodes_.size()) && lookup_nodes_[inside_] >= 0) ++inside_;
  std::fill(looked_up_.begin(), looked_up_.end(), 0.0);
  if (match_ <= 0) return;
  const double match = log_match(match_) - kMeanLogMatch;
  double reached = inside_ > 0 ? survival_[lookup_nodes_[inside_ - 1]] : 1.0;
  for (int64_t level = inside_; level < offered_; ++level) {
    const double log_level = std::log1p(double(level));
    auto& x = lookup_inputs_[level];
    x[0] = 1.0;
    x[1] = match;
    x[2] = success_;
    x[3] = double(std::min(lookups_, kManyLookups)) / kManyLookups;
    x[4] = level == 0;
    x[5] = log_level;
    x[6] = match * log_level;
    x[7] = inside_ > 0;
    // Where lookup and draft part, the draft's own confidence in its best token speaks against it.
    x[8] = level == inside_ ? draft.scores[0] : 0.0;
    reached *= shared_->lookups.predict(x);
    looked_up_[level] = reached;
  }
}

// The largest expected number of tokens less what its seconds could yield, over all numbers of
// candidates.
double OnlineCycle::best_value(int64_t* chosen) const {
  const double rate = this->rate();
  const int64_t count = std::min(int64_t(best_.size()), sizes_.max_rows - 1);
  double length = 1.0, best = length - rate * verify_seconds(1);
  *chosen = 0;
  for (int64_t i = 0; i < count; ++i) {
    length += best_[i];
    const double value = length - rate * verify_seconds(i + 2);
    if (value > best) {
      best = value;
      *chosen = i + 1;
    }
  }
  return best;
}

void OnlineCycle::rank(const DraftView& draft) {
  const int64_t pool = sizes_.pool_size(draft.depth);
  order_.clear();
  for (int64_t i = 0; i < pool; ++i) order_.push_back({survival_[i], i});
  for (int64_t i = inside_; i < offered_; ++i) order_.push_back({looked_up_[i], pool + i});
  const int64_t count = std::min(int64_t(order_.size()), sizes_.max_rows - 1);
  // Among equals the earlier: a parent before its children.
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(),
                    [](const Ranked& a, const Ranked& b) {
                      return a.survival != b.survival ? a.survival > b.survival : a.index < b.index;
                    });
  take_best();
  int64_t chosen = 0;
  const double value = best_value(&chosen);
  choose(try_rows(chosen, value), pool);
  should_continue_ = decide(draft.depth, value);
}

void OnlineCycle::take_best() {
  const int64_t count = std::min(int64_t(order_.size()), sizes_.max_rows - 1);
  best_.clear();
  for (int64_t i = 0; i < count; ++i) best_.push_back(order_[i].survival);
}

void OnlineCycle::choose(int64_t count, int64_t pool) {
  nodes_.clear();
  lookup_ = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = order_[i].index;
    if (index < pool) {
      nodes_.push_back(index);
    } else {
      lookup_ = std::max(lookup_, index - pool + 1);
    }
  }
  std::sort(nodes_.begin(), nodes_.end());
}

// Compares the best tree of what there is with that of what another round would add, were its best
// candidates to survive as often, beside those of the round before, as they did so far.
bool OnlineCycle::decide(int64_t depth, double value) {
  const double* top = tops_.data() + depth * sizes_.top_k;
  if (depth > 0 && expected_ >= 0.0) {
    const double* before = top - sizes_.top_k;
    const double last = std::accumulate(top, top + sizes_.top_k, 0.0);
    shared_->learn_ratio(
        depth, last / std::max(std::accumulate(before, before + sizes_.top_k, 0.0), 1e-3));
    shared_->learn_gain(depth, expected_, value - value_);
  }
  value_ = value;
  expected_ = -1.0;
  if (depth >= sizes_.max_depth) return false;
  const int64_t known = int64_t(best_.size());
  for (int64_t i = 0; i < sizes_.top_k; ++i) {
    best_.push_back(top[i] * shared_->ratio(depth + 1));
  }
  std::inplace_merge(best_.begin(), best_.begin() + known, best_.end(), std::greater<>());
  int64_t chosen = 0;
  expected_ = std::max(best_value(&chosen) - value, 0.0);
  const double seconds = costs_.later_pass + double(context_) * costs_.draft_slope;
  const double gain = expected_ * shared_->gain_factor(depth + 1);
  return gain > rate() * seconds || try_pass(gain, rate() * seconds);
}

void OnlineCycle::observe(const int64_t* rows, int64_t count, int64_t tokens) {
  const int64_t drafted = int64_t(nodes_.size());
  const int64_t added = std::max<int64_t>(0, lookup_ - inside_);
  accepted_.assign(size_t(1 + drafted + added), false);
  for (int64_t i = 0; i < count; ++i) accepted_[rows[i]] = true;
  for (int64_t i = 0; i < drafted; ++i) {
    shared_->nodes.update(inputs_[nodes_[i]], accepted_[1 + i]);
  }
  if (added > 0 && lookup_reached()) {
    for (int64_t i = 0; i < added; ++i) {
      const bool accepted = accepted_[1 + drafted + i];
      shared_->lookups.update(lookup_inputs_[inside_ + i], accepted);
      // Nothing is known of a token whose predecessor was rejected.
      if (!accepted) break;
    }
  }
  if (planned_) learn_advantage(double(tokens));
  count_cycle(double(tokens), 1 + drafted + added, known_);
  drafted_depth_ = known_;
  begin();
}

// Whether all looked-up tokens that the draft proposed too were accepted.
bool OnlineCycle::lookup_reached() const {
  if (inside_ == 0) return true;
  const int64_t last = lookup_nodes_[inside_ - 1];
  const auto place = std::lower_bound(nodes_.begin(), nodes_.end(), last);
  return place != nodes_.end() && *place == last && accepted_[1 + (place - nodes_.begin())];
}

void OnlineCycle::count_lookup(bool first_accepted) {
  success_ += kNewestLookup * (double(first_accepted) - success_);
  ++lookups_;
}

}  // namespace eaglerl
