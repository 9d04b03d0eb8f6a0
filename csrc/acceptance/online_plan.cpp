// What an OnlineCycle decides before a cycle, and learns for that after it.
#include <algorithm>
#include <cmath>

#include "acceptance/online_acceptance.h"

namespace eaglerl {
namespace {

// Weight of a cycle's newest advantage in the running one of its sequence.
constexpr double kNewestAdvantage = 0.3;
// The rate of a sequence is that of its last 10 cycles, with the weight of five rows' verification
// for that of all sequences.
constexpr double kLocalMemory = 0.9, kLocalPrior = 5.0;
// Drafts are worth half a standard deviation more than what is believed: what is not drafted is not
// learned, so that too low a belief would stay.
constexpr double kHopedAdvantage = 0.5;
// A first pass over up to so many tokens is a usual one: those that a cycle emits.
constexpr int64_t kUsualTokens = 8;
// So many drafts are made where a draft might pay, whatever the budget of trials.
constexpr double kFirstDrafts = 80.0;
// Share of a token for each that the draft reads late, beside that budget.
constexpr double kFreeReading = 0.005;
// Costs known to 3 % are known well enough.
constexpr double kKnown = 0.03;
// Row counts may cost much less than their neighbours say: kernels take rows in blocks.
constexpr double kHopedDeviations = 3.0;

}  // namespace

// Costs beside the verification of a row: what slows everything alike changes no decision.
void OnlineCycle::refresh_costs() {
  const double growth = learned_->context_growth();
  for (size_t r = 0; r < costs_.base.size(); ++r) {
    costs_.base[r] = learned_->verify()[r];
    costs_.slope[r] = costs_.base[r] * growth;
  }
  costs_.first_pass = learned_->first_pass(width_);
  costs_.later_pass = learned_->later_pass(width_);
  costs_.draft_slope = 0.0;
  shared_->reprice(costs_);
}

void OnlineCycle::count_cycle(double tokens, int64_t rows, int64_t rounds) {
  const double seconds = verify_seconds(rows) + (rounds < 0 ? 0.0 : passes_seconds(double(rounds)));
  tokens_ = tokens_ * kLocalMemory + tokens;
  seconds_ = seconds_ * kLocalMemory + seconds;
  if (learned_) {
    shared_->count(tokens, rows, double(context_), rounds);
  } else {
    shared_->count(tokens, seconds);
  }
}

double OnlineCycle::rate() const {
  const double prior = kLocalPrior * costs_.base[0];
  return (tokens_ + prior * shared_->rate()) / (seconds_ + prior);
}

CyclePlan OnlineCycle::plan(int64_t context_length, const LookupView& lookup, int64_t unread) {
  begin();
  planned_ = true;
  pass_loss_ = 0.0;
  unread_ = unread;
  context_ = context_length;
  match_ = lookup.match_length;
  offered_ = match_ > 0 ? std::min(lookup.tokens, sizes_.lookup_tokens) : 0;
  if (learned_) refresh_costs();
  int64_t tokens = 0;
  undrafted_ = undrafted_value(&tokens);
  const double plain = 1.0 - rate() * verify_seconds(1);
  choice_input_ = {1.0, first_survival_, undrafted_ - plain, recent_};
  typical_ = shared_->choice.typical_gain(
      sizes_.max_rows, [&](int64_t rows) { return rate() * verify_seconds(rows); });
  typical_ -= rate() * passes_seconds(shared_->choice.rounds());
  const double advantage = typical_ + shared_->choice.advantage.predict(choice_input_);
  undrafted_tokens_ = tokens;
  if (worth_drafting(advantage, tokens, unread)) return {true, sizes_.lookup_tokens};
  undrafted_tokens_ = try_rows(tokens, undrafted_);
  return {false, undrafted_tokens_};
}

// The largest value of a cycle that verifies looked-up tokens alone, and their number.
double OnlineCycle::undrafted_value(int64_t* tokens) {
  const double rate = this->rate();
  const double match = log_match(match_) - kMeanLogMatch;
  double length = 1.0, best = length - rate * verify_seconds(1), reached = 1.0;
  *tokens = 0;
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
    length += reached;
    if (level + 2 > sizes_.max_rows) continue;
    best_.push_back(reached);
    const double value = length - rate * verify_seconds(level + 2);
    if (value > best) {
      best = value;
      *tokens = level + 1;
    }
  }
  return best;
}

bool OnlineCycle::worth_drafting(double advantage, int64_t tokens, int64_t unread) {
  DraftChoice& choice = shared_->choice;
  if (advantage + kHopedAdvantage * choice.advantage.deviation(choice_input_) > 0.0) {
    if (!learned_) return true;
    // Were it as cheap as it might be, would the cycle be better off without a draft?
    const double deviation = learned_->deviation()[size_t(tokens)];
    const double saved = rate() * verify_seconds(tokens + 1) * (1.0 - std::exp(-deviation));
    return !(deviation > kKnown && saved > advantage && choice.cost_trials.spend(advantage));
  }
  // The first drafts are needed to know what drafts are worth.
  double hoped = advantage + 2.0 * choice.advantage.deviation(choice_input_);
  if (learned_) {
    const double deviation = learned_->first_deviation(width_);
    hoped += rate() * costs_.first_pass * (1.0 - std::exp(-kHopedDeviations * deviation));
  }
  if (hoped > 0.0 && choice.drafts() < kFirstDrafts) return true;
  // What the draft reads late it reads once: up to half a percent of a token each is not counted.
  const double behind = double(std::max<int64_t>(unread - kUsualTokens, 0));
  const double reading = std::max(rate() * choice.catch_up() - kFreeReading, 0.0);
  return choice.draft_trials.spend(behind * reading - advantage);
}

// A number of candidates whose rows might, for all that is known of their cost, be worth more than
// the best, if trying it is affordable.
int64_t OnlineCycle::try_rows(int64_t chosen, double best) {
  trial_loss_ = 0.0;
  if (!learned_ || !planned_) return chosen;
  const double rate = this->rate();
  const int64_t count = std::min(int64_t(best_.size()), sizes_.max_rows - 1);
  double length = 1.0, most = best, cheapest = 0.0;
  for (int64_t i = 0; i <= count; ++i) {
    if (i > 0) length += best_[i - 1];
    const double deviation = learned_->trial_deviation(i);
    const double cost = rate * verify_seconds(i + 1);
    if (deviation <= kKnown) {
      cheapest = cost;
      continue;
    }
    // No less than what fewer rows are known to cost.
    const double hoped =
        length - std::max(cost * std::exp(-kHopedDeviations * deviation), cheapest);
    const double loss = best - (length - cost);
    if (hoped > most && shared_->choice.cost_trials.affords(loss)) {
      most = hoped;
      chosen = i;
      trial_loss_ = loss;
    }
  }
  return chosen;
}

// Whether another pass that seems too expensive might, for all that is known, pay.
bool OnlineCycle::try_pass(double gain, double cost) {
  if (!learned_ || !planned_) return false;
  const double deviation = learned_->later_deviation(width_);
  if (deviation <= kKnown || gain <= cost * std::exp(-kHopedDeviations * deviation)) return false;
  if (!shared_->choice.cost_trials.affords(pass_loss_ + cost - gain)) return false;
  pass_loss_ += cost - gain;
  return true;
}

double OnlineCycle::passes_seconds(double rounds) const {
  return costs_.first_pass + rounds * costs_.later_pass +
         (1.0 + rounds) * double(context_) * costs_.draft_slope;
}

void OnlineCycle::observe_undrafted(int64_t tokens) {
  count_cycle(double(tokens), 1 + undrafted_tokens_, -1);
  shared_->choice.earn(double(tokens));
  shared_->choice.cost_trials.charge(trial_loss_);
  shared_->choice.advantage.age();
}

void OnlineCycle::observe_lookup(int64_t equal, int64_t tokens) {
  for (int64_t level = 0; level < std::min(offered_, tokens); ++level) {
    shared_->choice.lookups.update(undrafted_inputs_[level], level < equal);
    if (level >= equal) break;
  }
}

// After observe() of a cycle that drafted `rounds` rounds after the first.
void OnlineCycle::learn_advantage(double tokens) {
  DraftChoice& choice = shared_->choice;
  double expected = 1.0;
  for (const int64_t node : nodes_) expected += survival_[node];
  for (int64_t level = inside_; level < lookup_; ++level) expected += looked_up_[level];
  choice.count_expected(tokens, expected);
  choice.count_rounds(double(known_));
  const double value = value_ + choice.bias() - rate() * passes_seconds(double(known_));
  const double plain = 1.0 - rate() * verify_seconds(1);
  choice.advantage.update(choice_input_, value - undrafted_ - typical_);
  take_best();
  choice.count_survivals(best_.data(), int64_t(best_.size()));
  // Without prices, which may change before the next draft.
  recent_ += kNewestAdvantage * (value - plain - typical_ - recent_);
  choice.earn(tokens);
  choice.cost_trials.charge(trial_loss_ + pass_loss_);
}

void OnlineCycle::observe_times(int64_t rows, double verify_seconds, double draft_seconds) {
  if (!learned_ || !(verify_seconds > 0.0)) return;
  const int64_t behind = unread_ - kUsualTokens;
  CycleTimes times = {rows, context_, verify_seconds, width_, drafted_depth_, draft_seconds};
  if (behind > 0) times.draft_seconds = 0.0;
  learned_->observe(times);
  if (behind > 0 && draft_seconds > 0.0) {
    const double usual = passes_seconds(double(drafted_depth_));
    shared_->choice.count_catch_up(double(behind), draft_seconds / learned_->speed() - usual);
  }
}

}  // namespace eaglerl
