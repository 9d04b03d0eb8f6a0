#include "acceptance/online_batch.h"

#include <algorithm>
#include <cmath>

#include "acceptance/trial_limits.h"

namespace eaglerl {
namespace {

// The price of a row is the mean one up to so many rows of every slot.
constexpr int64_t kPricedRows = 3;

}  // namespace

OnlineBatch::OnlineBatch(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
                         const BatchLimits& limits, OnlineCosts costs)
    : shared_(std::move(shared)), sizes_(sizes), limits_(limits), costs_(std::move(costs)) {
  reserve();
}

OnlineBatch::OnlineBatch(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
                         const BatchLimits& limits, std::shared_ptr<OnlineCost> learned,
                         std::vector<PassSize> passes)
    : shared_(std::move(shared)),
      sizes_(sizes),
      limits_(limits),
      learned_(std::move(learned)),
      pass_sizes_(std::move(passes)) {
  costs_.base.resize(size_t(limits.max_rows));
  costs_.slope.resize(size_t(limits.max_rows));
  costs_.first_pass.resize(size_t(limits.slots));
  costs_.later_pass.resize(size_t(limits.slots));
  costs_.draft_slope = 0.0;
  reserve();
}

void OnlineBatch::reserve() {
  slots_.reserve(size_t(limits_.slots));
  for (int64_t slot = 0; slot < limits_.slots; ++slot) {
    slots_.emplace_back(OnlineSequence(shared_, sizes_));
  }
  counts_.resize(size_t(limits_.slots));
  hopes_.resize(size_t(limits_.slots * sizes_.top_k));
}

void OnlineBatch::join(int64_t slot) {
  slots_[slot].sequence.reset();
  slots_[slot].recent = 0.0;
  slots_[slot].idle = 0;
  // The rate of other texts is that of all of them.
  if (limits_.slots == 1) recent_tokens_ = recent_seconds_ = 0.0;
}

void OnlineBatch::limit(const DraftSizes& sizes, const PassSize& pass) {
  sizes_ = sizes;
  for (Slot& slot : slots_) slot.sequence.limit(sizes);
  if (learned_) pass_sizes_[0] = pass;
}

void OnlineBatch::begin(const std::vector<BatchEntry>& entries) {
  for (const int64_t slot : cycle_) slots_[slot].present = false;
  cycle_.clear();
  for (const BatchEntry& entry : entries) {
    cycle_.push_back(entry.slot);
    Slot& slot = slots_[entry.slot];
    slot.sequence.begin();
    slot.present = slot.drafts = true;
    slot.selected = false;
    slot.undrafted = 0;
    slot.context = entry.context_length;
    slot.unread = entry.unread;
    slot.room = entry.room;
  }
  planned_ = chosen_ = false;
  shared_->rate_of(roots());
  find_context();
  if (!learned_) find_row_price();
  tokens_ = 0.0;
  expected_ = -1.0;
}

void OnlineBatch::find_row_price() {
  const int64_t most = std::min(limits_.max_rows, kPricedRows * roots());
  const int64_t rows = most - roots();
  row_price_ = rows > 0 ? (row_tokens(most) - row_tokens(roots())) / double(rows) : 0.0;
}

void OnlineBatch::find_context() {
  double sum = 0.0;
  for (const int64_t slot : cycle_) sum += double(slots_[slot].context);
  context_ = sum / double(roots());
}

void OnlineBatch::score(int64_t slot, const DraftView& draft) {
  Slot& scored = slots_[slot];
  scored.drafts = true;
  chosen_ = false;
  if (scored.sequence.known_depth() < 0) expected_ = -1.0;
  if (scored.context != draft.context_length) {
    scored.context = draft.context_length;
    find_context();
  }
  scored.sequence.set_row_price(row_price_);
  scored.sequence.score(draft);
}

void OnlineBatch::begin_rows(int64_t fixed, double sure, int64_t slots) {
  rows_.clear();
  fixed_ = fixed;
  sure_ = sure;
  most_ = std::min(limits_.max_rows - fixed, slots * (sizes_.max_rows - 1));
}

void OnlineBatch::add_rows(std::vector<Row>& rows, const double* survivals, int64_t count,
                           int64_t slot) const {
  const auto known = ptrdiff_t(rows.size());
  for (int64_t i = 0; i < count; ++i) rows.push_back({survivals[i], slot});
  std::inplace_merge(rows.begin(), rows.begin() + known, rows.end(),
                     [](const Row& a, const Row& b) { return a.survival > b.survival; });
  if (int64_t(rows.size()) > most_) rows.resize(size_t(std::max<int64_t>(most_, 0)));
}

// The largest expected number of tokens less what its seconds could yield, over all numbers of
// rows.
double OnlineBatch::best_value(const std::vector<Row>& rows, int64_t* chosen) const {
  const double rate = this->rate();
  double length = sure_, best = length - rate * costs_.verify_seconds(fixed_, context_);
  *chosen = 0;
  for (int64_t i = 0; i < int64_t(rows.size()); ++i) {
    length += rows[i].survival;
    const double value = length - rate * costs_.verify_seconds(fixed_ + i + 1, context_);
    if (value > best) {
      best = value;
      *chosen = i + 1;
    }
  }
  return best;
}

// A number of rows that might, for all that is known of their cost, be worth more than the best, if
// trying it is affordable.
int64_t OnlineBatch::try_rows(int64_t chosen, double best) {
  trial_loss_ = 0.0;
  if (!learned_ || !planned_) return chosen;
  double length = sure_, most = best, cheapest = 0.0;
  for (int64_t i = 0; i <= int64_t(rows_.size()); ++i) {
    if (i > 0) length += rows_[i - 1].survival;
    const double deviation = learned_->trial_deviation(fixed_ + i - 1);
    const double cost = row_tokens(fixed_ + i);
    if (deviation <= kKnownCost) {
      cheapest = cost;
      continue;
    }
    // No less than what fewer rows are known to cost.
    const double hoped =
        length - std::max(cost * std::exp(-kHopedDeviations * deviation), cheapest);
    const double loss = best - (length - cost);
    if (hoped > most && shared_->choice.cost_trials.affords(per_slot(loss))) {
      most = hoped;
      chosen = i;
      trial_loss_ = loss;
    }
  }
  return chosen;
}

void OnlineBatch::count_rows(int64_t chosen) {
  std::fill(counts_.begin(), counts_.end(), 0);
  for (int64_t i = 0; i < chosen; ++i) {
    if (rows_[i].slot >= 0) ++counts_[rows_[i].slot];
  }
}

// Divides the value of a choice among the slots: each pays the mean price of a row for its own.
void OnlineBatch::share_value(int64_t chosen, double value, double Slot::* share) {
  if (roots() == 1) {
    slots_[cycle_[0]].*share = value;
    return;
  }
  const double plain = plain_value();
  for (const int64_t slot : cycle_) slots_[slot].*share = plain;
  const int64_t added = fixed_ - roots() + chosen;
  if (added == 0) return;
  const double price = (row_tokens(roots() + added) - row_tokens(roots())) / double(added);
  for (int64_t i = 0; i < chosen; ++i) slots_[rows_[i].slot].*share += rows_[i].survival - price;
}

void OnlineBatch::gather_drafts() {
  int64_t fixed = roots(), drafting = 0;
  double sure = double(roots());
  for (const int64_t at : cycle_) {
    const Slot& slot = slots_[at];
    drafting += slot.drafts;
    if (slot.drafts) continue;
    fixed += slot.undrafted;
    for (int64_t i = 0; i < slot.undrafted; ++i) sure += slot.sequence.best()[size_t(i)];
  }
  begin_rows(fixed, sure, drafting);
  for (const int64_t at : cycle_) {
    const Slot& slot = slots_[at];
    if (!slot.drafts || slot.sequence.known_depth() < 0) continue;
    const std::vector<double>& best = slot.sequence.best();
    add_rows(rows_, best.data(), int64_t(best.size()), at);
  }
}

// Compares the best trees of what there is with those of what another round would add, were its
// best candidates to survive as often, beside those of the round before, as they did so far.
const std::vector<int64_t>& OnlineBatch::decide() {
  going_.clear();
  int64_t depth = -1, chosen = 0;
  for (const int64_t slot : cycle_) {
    if (slots_[slot].drafts) depth = std::max(depth, slots_[slot].sequence.known_depth());
  }
  if (depth < 0) return going_;
  gather_drafts();
  const double value = best_value(rows_, &chosen);
  learn_round(depth, value);
  value_ = value;
  expected_ = -1.0;
  find_next(depth, value);
  const Round round = sizes_.chains ? chain_round(depth) : best_round(depth, value);
  for (int64_t i = 0; i < round.slots; ++i) going_.push_back(next_[size_t(i)].slot);
  return going_;
}

void OnlineBatch::learn_round(int64_t depth, double value) {
  if (depth == 0 || expected_ < 0.0) return;
  for (const int64_t at : cycle_) {
    const Slot& slot = slots_[at];
    if (slot.drafts && slot.sequence.known_depth() == depth) {
      shared_->learn_ratio(depth, slot.sequence.ratio_at(depth));
    }
  }
  shared_->learn_gain(depth, expected_, value - value_);
}

// The slots that may go on, those first whose next level would add most.
void OnlineBatch::find_next(int64_t depth, double value) {
  next_.clear();
  for (const int64_t at : cycle_) {
    const Slot& slot = slots_[at];
    if (!slot.drafts || slot.sequence.known_depth() != depth) continue;
    if (depth >= std::min(sizes_.max_depth, slot.room - 1)) continue;
    double* hopes = hopes_.data() + at * sizes_.top_k;
    const double* top = slot.sequence.top(depth);
    for (int64_t i = 0; i < sizes_.top_k; ++i) hopes[i] = top[i] * shared_->ratio(depth + 1);
    next_.push_back({0.0, at});
  }
  if (sizes_.chains || next_.size() < 2) return;
  for (Next& next : next_) {
    int64_t chosen = 0;
    more_ = rows_;
    add_rows(more_, hopes_.data() + next.slot * sizes_.top_k, sizes_.top_k, next.slot);
    next.gain = best_value(more_, &chosen) - value;
  }
  std::stable_sort(next_.begin(), next_.end(),
                   [](const Next& a, const Next& b) { return a.gain > b.gain; });
}

OnlineBatch::Round OnlineBatch::best_round(int64_t depth, double value) {
  Round best, tried;
  double tried_gain = 0.0;
  more_ = rows_;
  for (int64_t slots = 1; slots <= int64_t(next_.size()); ++slots) {
    const int64_t slot = next_[size_t(slots - 1)].slot;
    add_rows(more_, hopes_.data() + slot * sizes_.top_k, sizes_.top_k, slot);
    int64_t chosen = 0;
    const double expected = std::max(best_value(more_, &chosen) - value, 0.0);
    const double gain = expected * shared_->gain_factor(depth + 1);
    const double cost = rate() * costs_.later_seconds(slots, context_);
    if (slots == 1 || gain - cost > best.gain - best.cost) best = {slots, expected, gain, cost};
    if (!learned_ || !planned_) continue;
    const double deviation = learned_->later_deviation(pass_sizes_[size_t(slots - 1)]);
    const double hoped = gain - cost * std::exp(-kHopedDeviations * deviation);
    if (deviation > kKnownCost && hoped > tried_gain) {
      tried_gain = hoped;
      tried = {slots, expected, gain, cost};
    }
  }
  if (best.slots == 0) return best;
  look_further(depth, value, best);
  return afford(best, tried);
}

// The best number of further levels for all slots, each of which verifies the better of its chains.
OnlineBatch::Round OnlineBatch::chain_round(int64_t depth) {
  Round best, tried;
  if (next_.empty()) return best;
  int64_t drafting = 0;
  for (const int64_t at : cycle_) drafting += slots_[at].drafts;
  const double factor = shared_->gain_factor(depth + 1);
  const double cost = rate() * costs_.later_seconds(drafting, context_);
  for (Next& next : next_) next.gain = slots_[next.slot].sequence.drafted_value();
  for (int64_t levels = 1; depth + levels <= sizes_.max_depth; ++levels) {
    double expected = 0.0;
    for (Next& next : next_) {
      const Slot& slot = slots_[next.slot];
      double& hope = hopes_[size_t(next.slot)];
      if (levels > 1) hope *= shared_->ratio(depth + levels);
      if (depth + levels < slot.room) next.gain += std::max(hope - row_price_, 0.0);
      const double looked_up = slot.sequence.looked_up_value();
      expected +=
          std::max(next.gain, looked_up) - std::max(slot.sequence.drafted_value(), looked_up);
    }
    const double gain = expected * factor, passes = double(levels) * cost;
    if (levels == 1) tried = {int64_t(next_.size()), expected, gain, passes};
    if (levels == 1 || gain - passes > best.gain - best.cost) {
      best = {int64_t(next_.size()), tried.expected, gain, passes};
    }
  }
  const double deviation =
      learned_ && planned_ ? learned_->later_deviation(pass_sizes_[size_t(drafting - 1)]) : 0.0;
  const bool unknown =
      deviation > kKnownCost && tried.gain > tried.cost * std::exp(-kHopedDeviations * deviation);
  return afford(best, unknown ? tried : Round{});
}

OnlineBatch::Round OnlineBatch::afford(const Round& best, const Round& tried) {
  expected_ = best.expected;
  if (best.gain > best.cost) return best;
  // Another pass that seems too expensive might, for all that is known, pay.
  const double loss = tried.cost - tried.gain;
  if (tried.slots == 0 || !shared_->choice.cost_trials.affords(per_slot(pass_loss_ + loss)))
    return {};
  expected_ = tried.expected;
  pass_loss_ += loss;
  return tried;
}

// Compares with more rounds of all slots. One level of several slots may not fill a block of rows
// that two of them fill: without this, four slots on a kernel with blocks of rows stopped after one
// or two passes in half of the cycles, and were up to 6 % slower. One slot looks one level ahead.
void OnlineBatch::look_further(int64_t depth, double value, Round& best) {
  const int64_t slots = int64_t(next_.size());
  if (slots < 2) return;
  const double factor = shared_->gain_factor(depth + 1);
  const double cost = rate() * costs_.later_seconds(slots, context_);
  int64_t chosen = 0;
  // more_ has the next level of all slots.
  const double expected = std::max(best_value(more_, &chosen) - value, 0.0);
  for (int64_t levels = 2; depth + levels <= sizes_.max_depth; ++levels) {
    for (const Next& next : next_) {
      double* hopes = hopes_.data() + next.slot * sizes_.top_k;
      for (int64_t i = 0; i < sizes_.top_k; ++i) hopes[i] *= shared_->ratio(depth + levels);
      add_rows(more_, hopes, sizes_.top_k, next.slot);
    }
    const double gain = (best_value(more_, &chosen) - value) * factor;
    if (gain - double(levels) * cost > best.gain - best.cost) {
      best = {slots, expected, gain, double(levels) * cost};
    }
  }
}

void OnlineBatch::select() {
  if (cycle_.empty()) return;
  gather_drafts();
  int64_t chosen = 0;
  const double value = best_value(rows_, &chosen);
  if (planned_) share_value(chosen, value, &Slot::value);
  count_rows(try_rows(chosen, value));
  for (const int64_t at : cycle_) {
    Slot& slot = slots_[at];
    if (slot.drafts && slot.sequence.known_depth() >= 0) slot.sequence.choose(counts_[at]);
  }
  chosen_ = true;
}

}  // namespace eaglerl
