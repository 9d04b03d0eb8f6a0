// Bindings of the choice of nodes.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "acceptance/node_selection.h"
#include "acceptance/online_bindings.h"
#include "acceptance/selection_checks.h"
#include "common/checks.h"
#include "common/slots.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

void check_words(const char* name, const int32_t* words, int32_t count, int32_t least,
                 int32_t most) {
  for (int32_t i = 0; i < count; ++i) check_between(name, words[i], least, most);
}

// Numbers outside these limits would overflow.
void check_rule(const SelectionSizes& sizes, const int32_t* rule) {
  using Layout = RuleLayout;
  for (const int32_t slope : {Layout::kConfidence, Layout::kSurplus, Layout::kTailScore}) {
    check_words("a slope of rule", rule + slope, 1, -kMostSlope, kMostSlope);
  }
  for (const int32_t term : {Layout::kBias, Layout::kLevel, Layout::kTailInside}) {
    check_words("a term of rule", rule + term, 1, -kMostTerm, kMostTerm);
  }
  check_words("most_levels of rule", rule + Layout::kMostLevels, 1, 1, INT32_MAX);
  check_words("a term of rule", rule + Layout::kAgree, Layout::price(sizes) - Layout::kAgree,
              -kMostTerm, kMostTerm);
  check_words("a price of rule", rule + Layout::price(sizes), sizes.rows + sizes.depth, 0,
              kMostPrice);
  check_words("a ratio of rule", rule + Layout::ratio(sizes), sizes.depth, 0, 1 << kRatioBits);
  check_words("a gain of rule", rule + Layout::gain(sizes), sizes.depth, 0, kMostGain);
}

// `state`, `out` and `drafted` are addresses in the order of SelectionState, of SelectionRows, and
// of roots, token_ids, log_probs, matches, looked_up, lookup_ids. `limits` is 0 for none.
void bind_select_draft_nodes(const std::array<int32_t, 4>& given, int64_t slots, uintptr_t rule,
                             int32_t level, const std::array<uintptr_t, 7>& state,
                             const std::array<uintptr_t, 6>& out,
                             const std::array<uintptr_t, 6>& drafted, uintptr_t limits) {
  const SelectionSizes sizes = read_selection_sizes(given);
  check_between("slots", slots, 0, kLargestCount);
  check_between("level", level, 0, sizes.depth);
  const int64_t pool = sizes.pool(), rows = sizes.rows, width = sizes.top_k;
  const Slots<const int32_t> rules("rule", rule, slots, RuleLayout::words(sizes));
  const Slots<int32_t> record("record", state[0], slots, kSelectionWords);
  const Slots<float> scores("scores", state[1], slots, pool);
  const Slots<int64_t> pool_ids("pool_ids", state[2], slots, pool);
  const Slots<int32_t> pool_parents("pool_parents", state[3], slots, pool);
  const Slots<int32_t> logits("logits", state[4], slots, pool);
  const Slots<int32_t> lookup_nodes("lookup_nodes", state[5], slots, sizes.depth + 1);
  const Slots<int64_t> frontier("frontier", state[6], slots, 3 * width);
  const Slots<int64_t> row_ids("row_ids", out[0], slots, rows);
  const Slots<int64_t> parents("parents", out[1], slots, rows);
  const Slots<int64_t> levels("levels", out[2], slots, rows);
  const Slots<int32_t> nodes("nodes", out[3], slots, rows);
  const Slots<uint8_t> ancestors("ancestors", out[4], slots, rows * rows);
  const Slots<uint8_t> enabled("enabled", out[5], slots, rows);
  const int64_t count = sizes.level_count(level);
  const Slots<const int64_t> roots("roots", drafted[0], slots, 1);
  const Slots<const int64_t> token_ids("token_ids", drafted[1], slots, count);
  const Slots<const float> log_probs("log_probs", drafted[2], slots, count);
  const Slots<const int64_t> matches("matches", drafted[3], slots, 1);
  const Slots<const int64_t> looked_up("looked_up", drafted[4], slots, 1);
  const Slots<const int64_t> lookup_ids("lookup_ids", drafted[5], slots, sizes.lookup);
  const Slots<const int32_t> limit("limits", limits, limits ? slots : 0, kActionColumns);
  for (int64_t slot = 0; slot < slots; ++slot) {
    check_rule(sizes, rules[slot]);
    const int32_t* words = record[slot];
    if (level > 0 && words[kStopped] == 0 && words[kLevels] != level) {
      throw std::invalid_argument("level must be " + std::to_string(words[kLevels]) +
                                  ", the next of slot " + std::to_string(slot) + ", got " +
                                  std::to_string(level));
    }
  }
  for (int64_t slot = 0; slot < slots; ++slot) {
    const DraftedLevel pass = {level,          *roots[slot],     token_ids[slot], log_probs[slot],
                               *matches[slot], *looked_up[slot], lookup_ids[slot]};
    select_draft_nodes(
        sizes, rules[slot], read_limits(sizes, limits ? limit[slot] : nullptr), pass,
        {record[slot], scores[slot], pool_ids[slot], pool_parents[slot], logits[slot],
         lookup_nodes[slot], frontier[slot]},
        {row_ids[slot], parents[slot], levels[slot], nodes[slot], ancestors[slot], enabled[slot]});
  }
}

py::dict rule_layout(const std::array<int32_t, 4>& given) {
  const SelectionSizes sizes = read_selection_sizes(given);
  py::dict layout;
  layout["bias"] = RuleLayout::kBias;
  layout["confidence"] = RuleLayout::kConfidence;
  layout["surplus"] = RuleLayout::kSurplus;
  layout["level"] = RuleLayout::kLevel;
  layout["tail_inside"] = RuleLayout::kTailInside;
  layout["tail_score"] = RuleLayout::kTailScore;
  layout["most_levels"] = RuleLayout::kMostLevels;
  layout["agree"] = RuleLayout::kAgree;
  layout["disagree"] = RuleLayout::kDisagree;
  layout["tail"] = RuleLayout::kTail;
  layout["price"] = RuleLayout::price(sizes);
  layout["pass_price"] = RuleLayout::pass_price(sizes);
  layout["ratio"] = RuleLayout::ratio(sizes);
  layout["gain"] = RuleLayout::gain(sizes);
  layout["words"] = RuleLayout::words(sizes);
  return layout;
}

py::dict selection_constants() {
  py::dict constants;
  constants["survival_bits"] = kSurvivalBits;
  constants["logit_bits"] = kLogitBits;
  constants["ratio_bits"] = kRatioBits;
  constants["most_slope"] = kMostSlope;
  constants["most_term"] = kMostTerm;
  constants["most_price"] = kMostPrice;
  constants["most_gain"] = kMostGain;
  constants["longest_match"] = kLongestRuleMatch;
  constants["record_words"] = int32_t(kSelectionWords);
  constants["levels_word"] = int32_t(kLevels);
  constants["stopped_word"] = int32_t(kStopped);
  constants["nodes_word"] = int32_t(kNodes);
  constants["added_word"] = int32_t(kAdded);
  constants["inside_word"] = int32_t(kInside);
  constants["expected_word"] = int32_t(kExpected);
  constants["promised_word"] = int32_t(kPromised);
  constants["pass_cost_word"] = int32_t(kPassCost);
  constants["least_score_bits"] = kLeastScoreBits;
  constants["most_score_bits"] = kMostScoreBits;
  constants["score_step_bits"] = kScoreStepBits;
  constants["score_fraction_bits"] = kScoreFractionBits;
  constants["least_logit"] = kLeastLogit;
  constants["most_logit"] = kMostLogitWord;
  constants["survival_step_bits"] = kSurvivalStepBits;
  constants["most_top_k"] = kMostWidth;
  constants["most_depth"] = kMostDepth;
  constants["most_rows"] = kMostRuleRows;
  constants["most_lookup"] = kMostLookup;
  return constants;
}

// Confidences, then survivals.
py::tuple tables() {
  const SelectionTables& made = selection_tables();
  return py::make_tuple(py::array_t<int32_t>(kConfidenceEntries, made.confidence),
                        py::array_t<int32_t>(kSurvivalEntries, made.survival));
}

}  // namespace

void bind_selection(py::module_& module) {
  module.def("select_draft_nodes", &bind_select_draft_nodes);
  module.def("selection_rule_layout", &rule_layout);
  module.def("selection_tables", &tables);
  module.attr("selection_constants") = selection_constants();
}

}  // namespace eaglerl
