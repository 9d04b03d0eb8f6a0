// What an OnlineBatch knows, as the rule by which a device chooses without it.
#include <cmath>

#include "acceptance/online_batch.h"
#include "acceptance/selection_rules.h"

namespace eaglerl {
namespace {

int32_t slope_of(double value) { return word_of(value, kLogitBits, -kMostSlope, kMostSlope); }
int32_t tokens_of(double value) { return word_of(value, kSurvivalBits, 0, kMostPrice); }

}  // namespace

void OnlineBatch::write_rule(int64_t slot, const SelectionSizes& sizes, int32_t* words) const {
  using Layout = RuleLayout;
  const OnlineSequence& sequence = slots_[slot].sequence;
  const auto& node = shared_->nodes.mean();
  words[Layout::kBias] = term_of(node[0]);
  words[Layout::kConfidence] = slope_of(node[1]);
  words[Layout::kSurplus] = slope_of(node[8]);
  words[Layout::kLevel] = term_of(node[9]);
  const int64_t room = slots_[slot].room;
  words[Layout::kMostLevels] = int32_t(std::clamp<int64_t>(room, 1, INT32_MAX));
  for (int32_t match = 0; match <= kLongestRuleMatch; ++match) {
    const double length = sequence.match_input(match), success = sequence.lookup_success();
    words[Layout::kAgree + match] = term_of(node[2] + node[3] * length + node[4] * success);
    words[Layout::kDisagree + match] = term_of(node[5] + node[6] * length + node[7] * success);
  }
  sequence.write_lookup_rule(sizes, words);
  for (int32_t row = 0; row < sizes.rows; ++row) {
    const int64_t known = std::min<int64_t>(row + 1, limits_.max_rows);
    words[Layout::price(sizes) + row] = tokens_of(row_tokens(known));
  }
  const double pass = rate() * costs_.later_seconds(1, context_);
  for (int32_t level = 0; level < sizes.depth; ++level) {
    words[Layout::pass_price(sizes) + level] = tokens_of(pass);
    const int64_t next = std::min<int64_t>(level + 1, shared_->max_depth());
    words[Layout::ratio(sizes) + level] =
        word_of(shared_->ratio(next), kRatioBits, 0, 1 << kRatioBits);
    words[Layout::gain(sizes) + level] =
        word_of(shared_->gain_factor(next), kRatioBits, 0, kMostGain);
  }
}

}  // namespace eaglerl
