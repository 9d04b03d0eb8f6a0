#include "acceptance/node_selection.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace eaglerl {
namespace {

template <size_t kEntries>
using Table = std::array<int32_t, kEntries>;

Table<kConfidenceEntries> make_confidence() {
  Table<kConfidenceEntries> table;
  for (int32_t i = 0; i < kConfidenceEntries; ++i) {
    const int32_t bits = kLeastScoreBits + (i << kScoreStepBits);
    float below;
    std::memcpy(&below, &bits, sizeof below);
    const double logit = -double(below) - std::log1p(-std::exp(-double(below)));
    table[i] = int32_t(std::lround(std::clamp(logit, -12.0, 8.0) * (1 << kLogitBits)));
  }
  return table;
}

Table<kSurvivalEntries> make_survival() {
  Table<kSurvivalEntries> table;
  for (int32_t i = 0; i < kSurvivalEntries; ++i) {
    const double logit = double(kLeastLogit + (i << kSurvivalStepBits)) / (1 << kLogitBits);
    table[i] = int32_t(std::lround(kSureSurvival / (1.0 + std::exp(-logit))));
  }
  return table;
}

// A candidate, or a looked-up token, whose index lies behind all candidates.
struct Ranked {
  int32_t survival;
  int32_t index;
};

bool ranks_before(const Ranked& a, const Ranked& b) {
  return a.survival != b.survival ? a.survival > b.survival : a.index < b.index;
}

class LevelSelection {
 public:
  LevelSelection(const SelectionSizes& sizes, const int32_t* rule, const SelectionLimits& limits,
                 const DraftedLevel& drafted, const SelectionState& state, const SelectionRows& out)
      : sizes_(sizes), rule_(rule), limits_(limits), drafted_(drafted), state_(state), out_(out) {
    match_ = int32_t(std::clamp<int64_t>(drafted.match, 0, kLongestRuleMatch));
    offered_ = match_ > 0 ? int32_t(std::clamp<int64_t>(drafted.looked_up, 0, limits.lookup)) : 0;
  }

  void run() {
    int32_t* record = state_.record;
    if (drafted_.level == 0) std::fill(record, record + kSelectionWords, 0);
    if (record[kStopped] != 0) return;
    record[kLevels] = drafted_.level + 1;
    add_level();
    rank();
    choose();
    write_rows();
    expand_best();
    decide();
  }

 private:
  int32_t level() const { return drafted_.level; }

  // The state lies in tensors that anyone may write to: what is read there leads to no other
  // memory.
  int32_t expanded(int32_t place) const {
    if (level() == 0) return -1;
    const int64_t begin = sizes_.level_begin(level() - 1);
    const int64_t last = sizes_.level_begin(level()) - 1;
    return int32_t(std::clamp(state_.frontier[place], begin, last));
  }
  // Whether the child at a place of a level is one of the best of a node that is expanded within
  // the limits.
  bool is_candidate(int32_t place) const {
    if (limits_.top_k == sizes_.top_k) return true;
    return place % sizes_.top_k < limits_.top_k && place / sizes_.top_k < limits_.top_k;
  }
  int32_t lookup_node(int32_t at) const {
    return clamp_word(state_.lookup_nodes[at], -1, sizes_.pool() - 1);
  }

  void add_level() {
    const int32_t begin = sizes_.level_begin(level()), count = sizes_.level_count(level());
    const int32_t above = level() == 0 ? -1 : lookup_node(level() - 1);
    const bool reached = level() < offered_ && (level() == 0 || above >= 0);
    int32_t found = -1;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t node = begin + i;
      const int32_t parent = expanded(i / sizes_.top_k);
      const float score =
          level() == 0 ? drafted_.log_probs[i] : state_.scores[parent] + drafted_.log_probs[i];
      const int64_t token = drafted_.token_ids[i];
      const bool agrees = reached && found < 0 && parent == above && is_candidate(i) &&
                          token == drafted_.lookup_ids[level()];
      if (agrees) found = node;
      int32_t text = 0;
      if (match_ > 0) text = rule_[(agrees ? RuleLayout::kAgree : RuleLayout::kDisagree) + match_];
      const int32_t confidence = confidence_of(selection_tables().confidence, score);
      int32_t logit = candidate_logit(rule_, confidence, level(), text);
      logit = is_candidate(i) ? clamp_word(logit, kLeastLogit, kMostLogitWord) : kLeastLogit;
      if (parent >= 0) logit = std::min(logit, state_.logits[parent]);
      state_.scores[node] = score;
      state_.token_ids[node] = token;
      state_.parents[node] = parent;
      state_.logits[node] = logit;
    }
    state_.lookup_nodes[level()] = found;
  }

  int32_t survival(int32_t node) const {
    return survival_of(selection_tables().survival, state_.logits[node]);
  }

  void rank() {
    for (int32_t above = 0; above <= level(); ++above) {
      const int32_t begin = sizes_.level_begin(above), count = sizes_.level_count(above);
      for (int32_t i = 0; i < count; ++i) {
        if (is_candidate(i)) ranked_.push_back({survival(begin + i), begin + i});
      }
    }
    inside_ = 0;
    while (inside_ <= level() && inside_ < offered_ && lookup_node(inside_) >= 0) ++inside_;
    int64_t reached = inside_ > 0 ? survival(lookup_node(inside_ - 1)) : kSureSurvival;
    const int32_t score = score_word(state_.scores[0]);
    const int32_t end = std::min(offered_, rule_[RuleLayout::kMostLevels]);
    for (int32_t i = inside_; i < end; ++i) {
      int32_t logit = rule_[RuleLayout::kTail + match_ * sizes_.lookup + i];
      if (inside_ > 0) logit += rule_[RuleLayout::kTailInside];
      if (i == inside_) logit += (rule_[RuleLayout::kTailScore] * score) >> kLogitBits;
      const int64_t next = survival_of(selection_tables().survival, logit);
      reached = (reached * next) >> kSurvivalBits;
      ranked_.push_back({int32_t(reached), sizes_.pool() + i});
    }
    const size_t most = std::min(ranked_.size(), size_t(limits_.rows - 1));
    std::partial_sort(ranked_.begin(), ranked_.begin() + most, ranked_.end(), ranks_before);
    ranked_.resize(most);
  }

  // As many of the best as are worth most, beside the price of their rows.
  void choose() {
    const int32_t* price = rule_ + RuleLayout::price(sizes_);
    int32_t sum = 0, best = -price[0];
    chosen_ = expected_ = 0;
    for (int32_t i = 0; i < int32_t(ranked_.size()); ++i) {
      sum += ranked_[i].survival;
      if (sum - price[i + 1] > best) {
        best = sum - price[i + 1];
        chosen_ = i + 1;
        expected_ = sum;
      }
    }
    worst_ = chosen_ > 0 ? ranked_[chosen_ - 1].survival : kSureSurvival;
  }

  void write_rows() {
    std::vector<int32_t> order;
    for (int32_t i = 0; i < chosen_; ++i) order.push_back(ranked_[i].index);
    std::sort(order.begin(), order.end());
    const auto row_of = [&](int32_t index) {
      return index < 0
                 ? 0
                 : int32_t(std::lower_bound(order.begin(), order.end(), index) - order.begin()) + 1;
    };
    const int32_t rows = sizes_.rows, pool = sizes_.pool();
    std::fill(out_.ancestors, out_.ancestors + size_t(rows) * rows, uint8_t(0));
    int32_t added = 0;
    for (int32_t row = 0; row < rows; ++row) {
      const int32_t index = row > 0 && row <= chosen_ ? order[row - 1] : -1;
      int32_t parent = -1, at = row > chosen_;  // unused rows lie below the root
      int64_t token = drafted_.root;
      if (index >= pool) {
        const int32_t looked_up = index - pool;
        const int32_t drafted = inside_ > 0 ? lookup_node(inside_ - 1) : -1;
        parent = looked_up == inside_ ? drafted : index - 1;
        token = drafted_.lookup_ids[looked_up];
        at = looked_up + 1;
        ++added;
      } else if (index >= 0) {
        parent = state_.parents[index];
        token = state_.token_ids[index];
        at = index < sizes_.top_k ? 1 : 2 + (index - sizes_.top_k) / (sizes_.top_k * sizes_.top_k);
      }
      out_.token_ids[row] = token;
      out_.parents[row] = row == 0 ? 0 : std::min(row_of(parent), row - 1);
      out_.levels[row] = at;
      out_.nodes[row] = index;
      out_.enabled[row] = row <= chosen_;
      uint8_t* ancestors = out_.ancestors + size_t(row) * rows;
      if (row > 0) {
        const uint8_t* above = out_.ancestors + size_t(out_.parents[row]) * rows;
        std::copy(above, above + rows, ancestors);
      }
      ancestors[row] = 1;
    }
    state_.record[kNodes] = chosen_ - added;
    state_.record[kAdded] = added;
    state_.record[kInside] = inside_;
    state_.record[kExpected] = expected_;
  }

  // The next pass expands the candidates of this level that the draft itself holds most probable,
  // the last of them again in places behind the limit.
  void expand_best() {
    const int32_t begin = sizes_.level_begin(level()), count = sizes_.level_count(level());
    std::vector<int32_t> order;
    for (int32_t i = 0; i < count; ++i) {
      if (is_candidate(i)) order.push_back(i);
    }
    const auto before = [&](int32_t a, int32_t b) {
      const int32_t first = score_order(state_.scores[begin + a]);
      const int32_t second = score_order(state_.scores[begin + b]);
      return first != second ? first > second : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + limits_.top_k, order.end(), before);
    for (int32_t i = 0; i < sizes_.top_k; ++i) {
      const int32_t child = order[std::min(i, limits_.top_k - 1)];
      state_.frontier[i] = begin + child;
      state_.frontier[sizes_.top_k + i] = state_.token_ids[begin + child];
      state_.frontier[2 * sizes_.top_k + i] = child / sizes_.top_k;
    }
  }

  // Were the best candidates of the next levels to survive as often, beside those of this one, as
  // they did so far: what those worth more than a row would add, beside what the passes cost.
  void decide() {
    const int32_t* price = rule_ + RuleLayout::price(sizes_);
    const int32_t* passes = rule_ + RuleLayout::pass_price(sizes_);
    const int32_t* ratios = rule_ + RuleLayout::ratio(sizes_);
    const int32_t gain = level() < sizes_.depth ? rule_[RuleLayout::gain(sizes_) + level()] : 0;
    const int32_t last = std::min(limits_.passes, rule_[RuleLayout::kMostLevels] - 1);
    const int32_t more = std::min(chosen_ + limits_.top_k, limits_.rows - 1);
    // Where no row is left, a candidate takes the place of the worst.
    int32_t row_price = worst_;
    if (more > chosen_) {
      row_price = std::max(price[more] - price[chosen_], 0) / (more - chosen_);
    }
    std::vector<int32_t> best;
    const int32_t begin = sizes_.level_begin(level()), count = sizes_.level_count(level());
    for (int32_t i = 0; i < count; ++i) {
      if (is_candidate(i)) best.push_back(survival(begin + i));
    }
    std::partial_sort(best.begin(), best.begin() + limits_.top_k, best.end(), std::greater<>());
    int64_t promised = 0, cost = 0, most = 0, cost_of_most = 0;
    int32_t ratio = 1 << kRatioBits;
    bool pays = false;
    for (int32_t next = level(); next < last; ++next) {
      ratio = (ratio * ratios[next]) >> kRatioBits;
      for (int32_t i = 0; i < limits_.top_k; ++i) {
        const int32_t hope = int32_t((int64_t(best[i]) * ratio) >> kRatioBits);
        promised += std::max(hope - row_price, 0);
      }
      cost += passes[next];
      const int64_t value = (promised * gain) >> kRatioBits;
      if (next == level() || value - cost > most - cost_of_most) {
        most = value;
        cost_of_most = cost;
      }
      pays = pays || value > cost;
    }
    const int64_t largest = INT32_MAX;
    state_.record[kPromised] = int32_t(std::min(most, largest));
    state_.record[kPassCost] = int32_t(std::min(cost_of_most, largest));
    state_.record[kStopped] = !pays;
  }

  const SelectionSizes& sizes_;
  const int32_t* rule_;
  const SelectionLimits& limits_;
  const DraftedLevel& drafted_;
  const SelectionState& state_;
  const SelectionRows& out_;
  int32_t match_, offered_, inside_ = 0, chosen_ = 0, expected_ = 0, worst_ = 0;
  std::vector<Ranked> ranked_;
};

}  // namespace

const SelectionTables& selection_tables() {
  static const Table<kConfidenceEntries> confidence = make_confidence();
  static const Table<kSurvivalEntries> survival = make_survival();
  static const SelectionTables tables = {confidence.data(), survival.data()};
  return tables;
}

SelectionLimits read_limits(const SelectionSizes& sizes, const int32_t* limits) {
  if (limits == nullptr) return {sizes.rows, sizes.depth, sizes.top_k, sizes.lookup};
  return {clamp_word(limits[kTotalTokensColumn], 1, sizes.rows),
          clamp_word(limits[kDepthColumn], 0, sizes.depth),
          clamp_word(limits[kTopKColumn], 1, sizes.top_k),
          clamp_word(limits[kLookupTokensColumn], 0, sizes.lookup)};
}

void select_draft_nodes(const SelectionSizes& sizes, const int32_t* rule,
                        const SelectionLimits& limits, const DraftedLevel& drafted,
                        const SelectionState& state, const SelectionRows& out) {
  LevelSelection(sizes, rule, limits, drafted, state, out).run();
}

}  // namespace eaglerl
