// What an OnlineBatch decides before a cycle, and learns for that after it.
#include <algorithm>
#include <cmath>

#include "acceptance/online_batch.h"
#include "acceptance/trial_limits.h"

namespace eaglerl {
namespace {

// Weight of a cycle's newest advantage in the running one of its sequence.
constexpr double kNewestAdvantage = 0.3;
// The recent rate is that of the last 10 cycles, with the weight of five plain ones for that of
// all.
constexpr double kRecentMemory = 0.9, kRecentPrior = 5.0;
// Drafts are thought to be worth half a standard deviation more than is believed, and two at first:
// what is not drafted is not learned, so that too low a belief would stay.
constexpr double kHopedAdvantage = 0.5, kFirstHopes = 2.0;
// A first pass over up to so many tokens of a slot is a usual one: those that a cycle emits.
constexpr int64_t kUsualTokens = 8;
// So many drafts are made where a draft might pay, whatever the budget of trials.
constexpr double kFirstDrafts = 80.0;
// Share of a token for each that the draft reads late, beside that budget.
constexpr double kFreeReading = 0.005;
// A trial of all slots that costs more tokens of each is none.
constexpr double kMostLoss = 1.0;

}  // namespace

// Costs beside the verification of a row: what slows everything alike changes no decision.
void OnlineBatch::refresh_costs() {
  const double growth = learned_->context_growth();
  for (size_t r = 0; r < costs_.base.size(); ++r) {
    costs_.base[r] = learned_->verify()[r];
    costs_.slope[r] = costs_.base[r] * growth;
  }
  for (size_t i = 0; i < cycle_.size(); ++i) {
    costs_.first_pass[i] = learned_->first_pass(pass_sizes_[i]);
    costs_.later_pass[i] = learned_->later_pass(pass_sizes_[i]);
  }
  shared_->rate_of(roots()).reprice(costs_);
}

double OnlineBatch::rate() const {
  const int64_t slots = std::max<int64_t>(roots(), 1);
  const double prior = kRecentPrior * costs_.base[size_t(slots - 1)];
  return (recent_tokens_ + prior * shared_->rate(slots)) / (recent_seconds_ + prior);
}

void OnlineBatch::plan(const std::vector<BatchEntry>& entries) {
  begin(entries);
  planned_ = true;
  trial_loss_ = pass_loss_ = 0.0;
  if (learned_) refresh_costs();
  find_row_price();
  look_up(entries);
  predict_advantage();
  const int64_t drafting = choose_drafts();
  for (const int64_t slot : cycle_) slots_[slot].drafts = false;
  for (int64_t i = 0; i < drafting; ++i) slots_[order_[size_t(i)]].drafts = true;
  if (drafting > 0) {
    typical_ = (typical_gain(drafting) - typical_passes(drafting)) / double(drafting);
  }
  divide_lookups(drafting);
}

// The best cycle that verifies looked-up tokens alone.
void OnlineBatch::look_up(const std::vector<BatchEntry>& entries) {
  begin_rows(roots(), double(roots()), roots());
  for (const BatchEntry& entry : entries) {
    OnlineSequence& sequence = slots_[entry.slot].sequence;
    sequence.look_up(entry.lookup, entry.room);
    add_rows(rows_, sequence.best().data(), int64_t(sequence.best().size()), entry.slot);
  }
  undrafted_ = best_value(rows_, &undrafted_rows_);
  share_value(undrafted_rows_, undrafted_, &Slot::undrafted_value);
  count_rows(undrafted_rows_);
  for (const int64_t slot : cycle_) slots_[slot].undrafted = counts_[slot];
}

void OnlineBatch::predict_advantage() {
  const double plain = plain_value();
  order_.clear();
  for (const int64_t at : cycle_) {
    Slot& slot = slots_[at];
    slot.input = {1.0, slot.sequence.first_survival(), slot.undrafted_value - plain, slot.recent};
    slot.promise = shared_->choice.advantage.predict(slot.input);
    if (slot.room > 0) order_.push_back(at);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return slots_[a].promise > slots_[b].promise; });
}

double OnlineBatch::typical_gain(int64_t drafting) const {
  const double rate = this->rate();
  const int64_t most = std::min(limits_.max_rows - roots(), drafting * (sizes_.max_rows - 1));
  return shared_->choice.typical_gain(drafting, most, [&](int64_t rows) {
    return rate * costs_.verify_seconds(roots() + rows, context_);
  });
}

// What the seconds of a usual draft's passes yield at the rate.
double OnlineBatch::typical_passes(int64_t drafting) const {
  return rate() * costs_.passes_seconds(drafting, shared_->choice.rounds(), context_);
}

// What drafts of so many slots are expected to be worth more than none.
double OnlineBatch::advantage_of(int64_t drafting, double promised) const {
  return typical_gain(drafting) + promised - typical_passes(drafting);
}

// The number of drafts, at least one, of the most promising slots, which is best if they are better
// than they seem. `first` hopes for more, and for cheaper passes.
OnlineBatch::Drafts OnlineBatch::best_drafts(bool first) const {
  Drafts best;
  double promised = 0.0;
  OnlineLinear<kAdvantageWeights>::Vector inputs = {};
  for (int64_t drafting = 1; drafting <= int64_t(order_.size()); ++drafting) {
    const Slot& slot = slots_[order_[size_t(drafting - 1)]];
    promised += slot.promise;
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] += slot.input[i];
    // A pass has the rows of all slots.
    if (sizes_.chains && drafting < int64_t(order_.size())) continue;
    const double advantage = advantage_of(drafting, promised);
    double hoped = advantage + (first ? kFirstHopes : kHopedAdvantage) *
                                   shared_->choice.advantage.deviation(inputs) /
                                   (first ? 1.0 : double(drafting));
    if (first && learned_) {
      const double deviation = learned_->first_deviation(pass_sizes_[size_t(drafting - 1)]);
      hoped += rate() * costs_.first_pass[size_t(drafting - 1)] *
               (1.0 - std::exp(-kHopedDeviations * deviation));
    }
    if (best.slots == 0 || hoped > best.hoped) best = {drafting, advantage, hoped, promised};
  }
  return best;
}

// How many of `order_` draft, the first ones.
int64_t OnlineBatch::choose_drafts() {
  Drafts best = best_drafts(false);
  if (best.hoped > 0.0) {
    if (try_undrafted(best.advantage)) return 0;
  } else {
    best = {};
  }
  // The first drafts are needed to know what drafts are worth.
  if (shared_->choice.drafts() < kFirstDrafts) {
    const Drafts hoped = best_drafts(true);
    if (hoped.hoped > 0.0) return hoped.slots;
  }
  return best.slots + try_slots(best);
}

// Were it as cheap as it might be, would the cycle be better off without a draft?
bool OnlineBatch::try_undrafted(double advantage) {
  if (!learned_) return false;
  const int64_t rows = roots() + undrafted_rows_;
  const double deviation = learned_->deviation()[size_t(rows - 1)];
  const double saved = row_tokens(rows) * (1.0 - std::exp(-deviation));
  return deviation > kKnownCost && saved > advantage &&
         shared_->choice.cost_trials.spend(per_slot(advantage));
}

// How many of the other slots draft as well for what that teaches: in turn, that one which has not
// drafted for longest, if its draft is affordable, and all of them, since one alone fills few rows.
int64_t OnlineBatch::try_slots(const Drafts& best) {
  TrialBudget& budget = shared_->choice.draft_trials;
  const auto others = order_.begin() + ptrdiff_t(best.slots);
  const int64_t count = order_.end() - others;
  if (count > 0 && (sizes_.chains || (count > 1 && all_tried_next_))) {
    double promised = best.promised, reading = 0.0;
    for (auto at = others; at != order_.end(); ++at) {
      promised += slots_[*at].promise;
      reading += reading_loss(slots_[*at]);
    }
    const double advantage = advantage_of(int64_t(order_.size()), promised);
    const double loss = per_slot(reading - (advantage - best.advantage));
    if (loss < kMostLoss) {
      if (!budget.spend(loss)) return 0;
      all_tried_next_ = false;
      return count;
    }
    if (sizes_.chains) return 0;
  }
  std::stable_sort(others, order_.end(),
                   [&](int64_t a, int64_t b) { return slots_[a].idle > slots_[b].idle; });
  for (auto at = others; at != order_.end(); ++at) {
    const double advantage = advantage_of(best.slots + 1, best.promised + slots_[*at].promise);
    const double loss = reading_loss(slots_[*at]) - (advantage - best.advantage);
    if (budget.spend(per_slot(loss))) {
      std::iter_swap(others, at);
      all_tried_next_ = true;
      return 1;
    }
  }
  return 0;
}

// What the draft reads late it reads once: up to half a percent of a token each is not counted.
double OnlineBatch::reading_loss(const Slot& slot) const {
  const double behind = double(std::max<int64_t>(slot.unread - kUsualTokens, 0));
  return behind * std::max(rate() * shared_->choice.catch_up() - kFreeReading, 0.0);
}

// How many looked-up tokens are verified in the slots that draft nothing, beside as many usual
// drafts.
void OnlineBatch::divide_lookups(int64_t drafting) {
  if (drafting == roots()) return;
  int64_t chosen = undrafted_rows_;
  if (drafting == 0) {
    chosen = try_rows(chosen, undrafted_);
  } else {
    begin_rows(roots(), double(roots()), roots());
    const int64_t usual = std::min<int64_t>(kSurvivals, sizes_.max_rows - 1);
    for (const int64_t at : cycle_) {
      const Slot& slot = slots_[at];
      const std::vector<double>& best = slot.sequence.best();
      if (slot.drafts) {
        add_rows(rows_, shared_->choice.survivals().data(), usual, -1);
      } else {
        add_rows(rows_, best.data(), int64_t(best.size()), at);
      }
    }
    best_value(rows_, &chosen);
  }
  count_rows(chosen);
  for (const int64_t at : cycle_) {
    if (!slots_[at].drafts) slots_[at].undrafted = counts_[at];
  }
}

void OnlineBatch::observe(int64_t slot, const int64_t* rows, int64_t count, int64_t tokens) {
  tokens_ += double(tokens);
  Slot& observed = slots_[slot];
  if (!observed.selected) return;
  observed.sequence.observe(rows, count);
  if (planned_) learn_advantage(observed, double(tokens));
}

void OnlineBatch::observe_chains(int64_t slot, int64_t drafted_equal, int64_t looked_up_equal,
                                 int64_t tokens) {
  tokens_ += double(tokens);
  Slot& observed = slots_[slot];
  if (!observed.selected) return;
  observed.sequence.observe_chains(drafted_equal, looked_up_equal, tokens);
  if (planned_) learn_advantage(observed, double(tokens));
}

void OnlineBatch::learn_advantage(Slot& slot, double tokens) {
  DraftChoice& choice = shared_->choice;
  choice.count_expected(tokens, slot.sequence.expected_tokens());
  const double value = slot.value + choice.bias() - rate() * passes_of(slot);
  choice.advantage.update(slot.input, value - slot.undrafted_value - typical_);
  const std::vector<double>& best = slot.sequence.best();
  choice.count_survivals(best.data(), int64_t(best.size()));
  // Without prices, which may change before the next draft.
  slot.recent += kNewestAdvantage * (value - plain_value() - typical_ - slot.recent);
}

int64_t OnlineBatch::slots_of_pass(int64_t depth) const {
  int64_t slots = 0;
  for (const int64_t at : cycle_) {
    slots += slots_[at].selected && slots_[at].sequence.known_depth() >= depth;
  }
  return slots;
}

double OnlineBatch::passes_of(const Slot& slot) const {
  double seconds = 0.0;
  for (int64_t depth = 0; depth <= slot.sequence.known_depth(); ++depth) {
    const int64_t slots = slots_of_pass(depth);
    const double pass = depth == 0 ? costs_.passes_seconds(slots, 0.0, context_)
                                   : costs_.later_seconds(slots, context_);
    seconds += pass / double(slots);
  }
  return seconds;
}

void OnlineBatch::end_cycle(int64_t rows, double verify_seconds, double draft_seconds) {
  if (tokens_ > 0.0) {
    count_passes();
    if (planned_) learn_cycle();
    count_rate();
    observe_times(rows, verify_seconds, draft_seconds);
  }
  for (const int64_t at : cycle_) {
    Slot& slot = slots_[at];
    slot.idle = slot.selected ? 0 : slot.idle + 1;
    slot.selected = false;
    slot.sequence.begin();
  }
  tokens_ = 0.0;
}

void OnlineBatch::count_passes() {
  passes_.clear();
  for (int64_t depth = 0; depth <= sizes_.max_depth; ++depth) {
    const int64_t slots = slots_of_pass(depth);
    if (slots == 0) return;
    passes_.add(slots);
  }
}

void OnlineBatch::learn_cycle() {
  DraftChoice& choice = shared_->choice;
  choice.earn(per_slot(tokens_));
  choice.cost_trials.charge(per_slot(trial_loss_ + pass_loss_));
  if (passes_.first == 0) {
    choice.advantage.age();
    return;
  }
  double rounds = 0.0;
  for (const DraftPasses::Run& run : passes_.later) {
    const double first = costs_.later_pass[passes_.first - 1];
    const double share =
        run.slots == passes_.first ? 1.0 : costs_.later_pass[run.slots - 1] / first;
    rounds += double(run.passes) * share;
  }
  choice.count_rounds(rounds);
}

void OnlineBatch::count_rate() {
  int64_t rows = 0;
  for (const int64_t at : cycle_) {
    const Slot& slot = slots_[at];
    rows += slot.selected ? slot.sequence.tree_rows() : 1 + slot.undrafted;
  }
  rows = std::min(rows, limits_.max_rows);
  const double seconds = costs_.verify_seconds(rows, context_) + usual_passes();
  recent_tokens_ = recent_tokens_ * kRecentMemory + tokens_;
  recent_seconds_ = recent_seconds_ * kRecentMemory + seconds;
  OnlineRate& rate = shared_->rate_of(roots());
  if (learned_) {
    rate.count(tokens_, rows, context_, passes_);
  } else {
    rate.count(tokens_, seconds);
  }
}

double OnlineBatch::usual_passes() const {
  if (passes_.first == 0) return 0.0;
  double seconds = costs_.first_pass[passes_.first - 1], rounds = 0.0;
  for (const DraftPasses::Run& run : passes_.later) {
    seconds += double(run.passes) * costs_.later_pass[run.slots - 1];
    rounds += double(run.passes);
  }
  return seconds + (1.0 + rounds) * context_ * costs_.draft_slope;
}

void OnlineBatch::observe_times(int64_t rows, double verify_seconds, double draft_seconds) {
  if (!learned_ || !(verify_seconds > 0.0) || rows > limits_.max_rows) return;
  int64_t behind = 0;
  for (const int64_t at : cycle_) {
    if (slots_[at].selected) behind += std::max<int64_t>(slots_[at].unread - kUsualTokens, 0);
  }
  times_.rows = rows;
  times_.context_length = context_;
  times_.verify_seconds = verify_seconds;
  times_.draft_seconds = behind > 0 ? 0.0 : draft_seconds;
  times_.passes.clear();
  if (passes_.first > 0) times_.passes.push_back({pass_sizes_[passes_.first - 1], 1.0, 0.0});
  for (const DraftPasses::Run& run : passes_.later) {
    if (run.slots == passes_.first) {
      times_.passes[0].later += double(run.passes);
    } else {
      times_.passes.push_back({pass_sizes_[run.slots - 1], 0.0, double(run.passes)});
    }
  }
  learned_->observe(times_);
  if (behind > 0 && draft_seconds > 0.0) {
    shared_->choice.count_catch_up(double(behind),
                                   draft_seconds / learned_->speed() - usual_passes());
  }
}

}  // namespace eaglerl
