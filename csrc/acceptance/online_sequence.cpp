#include "acceptance/online_sequence.h"

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
// About the mean of log_match().
constexpr double kMeanLogMatch = 1.4;

double log_match(int64_t length) { return std::log1p(double(std::min(length, kLongestMatch))); }

// A candidate's confidence: the logit of the draft's own probability. A weight of 1 and no offset
// therefore mean that the draft is believed.
double confidence(double score) {
  const double below = std::min(score, -1e-4);
  return std::clamp(below - std::log1p(-std::exp(below)), -12.0, 8.0);
}

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

OnlineSequence::OnlineSequence(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes)
    : shared_(std::move(shared)), sizes_(sizes) {
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
  best_.reserve(pool + sizes.lookup_tokens);
  reset();
}

void OnlineSequence::reset() {
  success_ = kFirstSuccess;
  lookups_ = 0;
  begin();
}

void OnlineSequence::look_up(const LookupView& lookup, int64_t most) {
  match_ = lookup.match_length;
  offered_ = match_ > 0 ? std::min(lookup.tokens, sizes_.lookup_tokens) : 0;
  most = std::min(most, sizes_.max_rows - 1);
  const double match = log_match(match_) - kMeanLogMatch;
  double reached = 1.0;
  best_.clear();
  first_survival_ = 0.0;
  for (int64_t level = 0; level < offered_; ++level) {
    const double log_level = std::log1p(double(level));
    auto& x = undrafted_inputs_[level];
    x = {1.0,
         match,
         success_,
         double(std::min(lookups_, kManyLookups)) / kManyLookups,
         double(level == 0),
         log_level,
         match * log_level};
    reached *= shared_->choice.lookups.predict(x);
    if (level == 0) first_survival_ = reached;
    if (level < most) best_.push_back(reached);
  }
}

void OnlineSequence::score(const DraftView& draft) {
  check_numbers(draft.scores, sizes_.pool_size(draft.depth));
  check_lookup_nodes(sizes_, draft);
  const int64_t next = known_ + 1;
  known_ = -1;  // stays so if a step below throws
  match_ = draft.match_length;
  offered_ = std::min(draft.lookup_length, sizes_.lookup_tokens);
  lookup_nodes_.clear();
  if (draft.lookup_nodes) {
    lookup_nodes_.assign(draft.lookup_nodes, draft.lookup_nodes + draft.depth + 1);
  }
  for (int64_t level = next; level <= draft.depth; ++level) score_level(draft, level);
  score_lookup(draft);
  if (sizes_.chains) {
    rank_chain(draft.depth + 1);
  } else {
    rank(sizes_.pool_size(draft.depth));
  }
  known_ = draft.depth;
}

void OnlineSequence::score_level(const DraftView& draft, int64_t level) {
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

void OnlineSequence::score_lookup(const DraftView& draft) {
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

void OnlineSequence::rank(int64_t pool) {
  order_.clear();
  for (int64_t i = 0; i < pool; ++i) order_.push_back({survival_[i], i});
  for (int64_t i = inside_; i < offered_; ++i) order_.push_back({looked_up_[i], pool + i});
  const int64_t count = std::min(int64_t(order_.size()), sizes_.max_rows - 1);
  // Among equals the earlier: a parent before its children.
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(),
                    [](const Ranked& a, const Ranked& b) {
                      return a.survival != b.survival ? a.survival > b.survival : a.index < b.index;
                    });
  best_.clear();
  for (int64_t i = 0; i < count; ++i) best_.push_back(order_[i].survival);
}

// After the tokens that both share, those of the chain that is worth more. Survivals descend along
// a chain.
void OnlineSequence::rank_chain(int64_t drafted) {
  const int64_t looked_up = std::max(offered_ - inside_, int64_t(0));
  drafted_value_ = chain_value(survival_.data() + inside_, drafted - inside_);
  looked_up_value_ = chain_value(looked_up_.data() + inside_, looked_up);
  order_.clear();
  for (int64_t i = 0; i < inside_; ++i) order_.push_back({survival_[i], i});
  if (looked_up_value_ > drafted_value_) {
    for (int64_t i = inside_; i < offered_; ++i) order_.push_back({looked_up_[i], drafted + i});
  } else {
    for (int64_t i = inside_; i < drafted; ++i) order_.push_back({survival_[i], i});
  }
  const int64_t count = std::min(int64_t(order_.size()), sizes_.max_rows - 1);
  best_.clear();
  for (int64_t i = 0; i < count; ++i) best_.push_back(order_[i].survival);
}

double OnlineSequence::chain_value(const double* survivals, int64_t count) const {
  double value = 0.0;
  for (int64_t i = 0; i < count; ++i) value += std::max(survivals[i] - row_price_, 0.0);
  return value;
}

void OnlineSequence::choose(int64_t count) {
  const int64_t pool = sizes_.pool_size(known_);
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

double OnlineSequence::expected_tokens() const {
  double expected = 1.0;
  for (const int64_t node : nodes_) expected += survival_[node];
  for (int64_t level = inside_; level < lookup_; ++level) expected += looked_up_[level];
  return expected;
}

double OnlineSequence::ratio_at(int64_t level) const {
  const double* now = top(level);
  const double* before = now - sizes_.top_k;
  const double last = std::accumulate(now, now + sizes_.top_k, 0.0);
  return last / std::max(std::accumulate(before, before + sizes_.top_k, 0.0), 1e-3);
}

void OnlineSequence::observe(const int64_t* rows, int64_t count) {
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
}

// Whether all looked-up tokens that the draft proposed too were accepted.
bool OnlineSequence::lookup_reached() const {
  if (inside_ == 0) return true;
  const int64_t last = lookup_nodes_[inside_ - 1];
  const auto place = std::lower_bound(nodes_.begin(), nodes_.end(), last);
  return place != nodes_.end() && *place == last && accepted_[1 + (place - nodes_.begin())];
}

void OnlineSequence::observe_chains(int64_t drafted_equal, int64_t looked_up_equal,
                                    int64_t tokens) {
  for (int64_t level = 0; level <= known_; ++level) {
    // Nothing is known of what would have followed the emitted tokens.
    if (level >= tokens && drafted_equal >= tokens) break;
    shared_->nodes.update(inputs_[level], level < drafted_equal);
  }
  if (looked_up_equal < inside_) return;
  for (int64_t level = inside_; level < std::min(offered_, tokens); ++level) {
    shared_->lookups.update(lookup_inputs_[level], level < looked_up_equal);
    if (level >= looked_up_equal) break;
  }
}

void OnlineSequence::observe_lookup(int64_t equal, int64_t tokens) {
  for (int64_t level = 0; level < std::min(offered_, tokens); ++level) {
    shared_->choice.lookups.update(undrafted_inputs_[level], level < equal);
    if (level >= equal) break;
  }
}

void OnlineSequence::count_lookup(bool first_accepted) {
  success_ += kNewestLookup * (double(first_accepted) - success_);
  ++lookups_;
}

double OnlineSequence::match_input(int64_t length) const { return log_match(length); }

void OnlineSequence::write_lookup_rule(const SelectionSizes& sizes, int32_t* words) const {
  const auto& weights = shared_->lookups.mean();
  const double many = double(std::min(lookups_, kManyLookups)) / kManyLookups;
  words[RuleLayout::kTailInside] = term_of(weights[7]);
  words[RuleLayout::kTailScore] = word_of(weights[8], kLogitBits, -kMostSlope, kMostSlope);
  for (int32_t length = 0; length <= kLongestRuleMatch; ++length) {
    const double match = log_match(length) - kMeanLogMatch;
    for (int32_t level = 0; level < sizes.lookup; ++level) {
      const double log_level = std::log1p(double(level));
      const double logit = weights[0] + weights[1] * match + weights[2] * success_ +
                           weights[3] * many + weights[4] * (level == 0) + weights[5] * log_level +
                           weights[6] * match * log_level;
      words[RuleLayout::kTail + length * sizes.lookup + level] = term_of(logit);
    }
  }
}

}  // namespace eaglerl
