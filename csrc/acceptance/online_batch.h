// Decides, while texts are decoded together, what each cycle drafts and verifies.
// docs/policies.md says how; tests/policies/test_batch_auto.py computes the choice of rows again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "acceptance/online_acceptance.h"
#include "acceptance/online_cost.h"
#include "acceptance/online_costs.h"
#include "acceptance/online_sequence.h"
#include "acceptance/selection_rules.h"
#include "common/checks.h"

namespace eaglerl {

// A sequence's part in a cycle.
struct BatchEntry {
  int64_t slot;
  int64_t context_length;
  LookupView lookup;
  int64_t unread;  // tokens that the draft's first pass would read
  int64_t room;    // most tokens that the cycle may emit beside the bonus token
};

struct BatchLimits {
  int64_t slots;
  int64_t max_rows;  // of all trees of a cycle
};

// Every decision is one of all slots: tokens of the whole cycle are weighed against its seconds.
class OnlineBatch : public PythonObject {
 public:
  OnlineBatch(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
              const BatchLimits& limits, OnlineCosts costs);
  // Costs are those that `learned` learns, from the next plan() on. `passes` are the sizes of
  // passes of one slot, of two, ...
  OnlineBatch(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
              const BatchLimits& limits, std::shared_ptr<OnlineCost> learned,
              std::vector<PassSize> passes);

  // Begins a sequence.
  void join(int64_t slot);
  // Makes the drafts of further cycles smaller, within the sizes that it was made with. `pass` is
  // the size of a pass of one slot.
  void limit(const DraftSizes& sizes, const PassSize& pass);
  // Begins a cycle in which all of these draft.
  void begin(const std::vector<BatchEntry>& entries);
  // Begins a cycle and decides which of these draft, and how many looked-up tokens the others
  // verify.
  void plan(const std::vector<BatchEntry>& entries);
  bool drafts(int64_t slot) const { return slots_[slot].drafts; }
  int64_t undrafted_tokens(int64_t slot) const { return slots_[slot].undrafted; }

  // After a pass: for each of its slots, whether or not it was to draft.
  void score(int64_t slot, const DraftView& draft);
  // Then, once: the slots that go on. None if the draft ends.
  const std::vector<int64_t>& decide();
  // Chooses the rows of all slots.
  void select();
  // The rule by which a device chooses for a slot of this cycle: RuleLayout::words() of them.
  void write_rule(int64_t slot, const SelectionSizes& sizes, int32_t* words) const;
  // Whether it has since the last score().
  bool chosen() const { return chosen_; }
  // The slot's chosen tree is what the cycle verifies.
  void mark_selected(int64_t slot) { slots_[slot].selected = true; }
  bool selected(int64_t slot) const { return slots_[slot].selected; }

  // After the cycle, for each slot: see OnlineSequence::observe_chains.
  void observe_chains(int64_t slot, int64_t drafted_equal, int64_t looked_up_equal, int64_t tokens);
  // After the cycle, for each slot: see OnlineSequence::observe. `tokens` is the number of emitted
  // ones; the rows count where the tree was selected.
  void observe(int64_t slot, const int64_t* rows, int64_t count, int64_t tokens);
  // Then, once. Learns the costs from its times; seconds of 0 were not measured.
  void end_cycle(int64_t rows, double verify_seconds, double draft_seconds);

  // Tokens per second here: of this batch's last cycles, with those of all cycles of as many slots
  // as prior. The tokens of a text are given: one that is emitted now saves the seconds that its
  // own neighbours take, and not those of an average text.
  double rate() const;
  // Of all cycles of as many slots as the last one.
  double mean_rate() const { return shared_->rate(std::max<int64_t>(roots(), 1)); }
  OnlineSequence& sequence(int64_t slot) { return slots_[slot].sequence; }
  const OnlineSequence& sequence(int64_t slot) const { return slots_[slot].sequence; }
  // Whether the slot is part of the present cycle.
  bool present(int64_t slot) const { return slots_[slot].present; }
  bool planned() const { return planned_; }
  const DraftSizes& sizes() const { return sizes_; }
  const BatchLimits& limits() const { return limits_; }
  // Null if costs are given.
  const OnlineCost* learned() const { return learned_.get(); }

 private:
  struct Slot {
    explicit Slot(OnlineSequence of) : sequence(std::move(of)) {}

    OnlineSequence sequence;
    double recent = 0.0;  // running advantage of this sequence's drafts
    int64_t idle = 0;     // cycles since its last draft

    // Of the cycle.
    bool present = false;
    bool drafts = false;
    bool selected = false;
    int64_t undrafted = 0;  // looked-up tokens to verify without a draft
    int64_t context = 0;
    int64_t unread = 0;
    int64_t room = 0;
    OnlineLinear<kAdvantageWeights>::Vector input = {};
    double promise = 0.0;          // by how much its draft is expected to exceed a usual one
    double undrafted_value = 0.0;  // its share of the value without any draft
    double value = 0.0;            // its share of the value of what was chosen
  };

  // A candidate or a looked-up token.
  struct Row {
    double survival;
    int64_t slot;
  };

  // A number of drafting slots, what they are worth more than none, and how much of that beside
  // usual drafts.
  struct Drafts {
    int64_t slots = 0;
    double advantage = 0.0;
    double hoped = 0.0;  // the advantage, were they better than they seem
    double promised = 0.0;
  };

  // A slot that may go on, and what its next level would add alone.
  struct Next {
    double gain;
    int64_t slot;
  };

  // Another round of so many slots, in tokens.
  struct Round {
    int64_t slots = 0;
    double expected = 0.0;
    double gain = 0.0;  // what will come true of it
    double cost = 0.0;
  };

  void reserve();
  void refresh_costs();
  void find_context();
  void find_row_price();
  int64_t roots() const { return int64_t(cycle_.size()); }
  // What the seconds of verifying so many rows yield at the rate.
  double row_tokens(int64_t rows) const { return rate() * costs_.verify_seconds(rows, context_); }
  // Trials of a cycle are paid by all of its slots.
  double per_slot(double tokens) const { return tokens / double(roots()); }
  // A slot's share of the value of plain decoding.
  double plain_value() const { return 1.0 - row_tokens(roots()) / double(roots()); }

  // Begins a choice among rows of so many slots, beside `fixed` rows from which `sure` tokens are
  // expected.
  void begin_rows(int64_t fixed, double sure, int64_t slots);
  // Merges rows of a slot, given by their survivals, descending. Among equals those that were added
  // before come first.
  void add_rows(std::vector<Row>& rows, const double* survivals, int64_t count, int64_t slot) const;
  double best_value(const std::vector<Row>& rows, int64_t* chosen) const;
  int64_t try_rows(int64_t chosen, double best);
  void count_rows(int64_t chosen);
  void share_value(int64_t chosen, double value, double Slot::* share);
  void gather_drafts();

  // Before a draft.
  void look_up(const std::vector<BatchEntry>& entries);
  void predict_advantage();
  double typical_gain(int64_t drafting) const;
  double typical_passes(int64_t drafting) const;
  double advantage_of(int64_t drafting, double promised) const;
  Drafts best_drafts(bool first) const;
  int64_t choose_drafts();
  bool try_undrafted(double advantage);
  int64_t try_slots(const Drafts& best);
  double reading_loss(const Slot& slot) const;
  void divide_lookups(int64_t drafting);

  // Between its passes.
  void learn_round(int64_t depth, double value);
  void find_next(int64_t depth, double value);
  Round best_round(int64_t depth, double value);
  Round chain_round(int64_t depth);
  Round afford(const Round& best, const Round& tried);
  void look_further(int64_t depth, double value, Round& best);

  // After the cycle.
  void learn_advantage(Slot& slot, double tokens);
  // A slot's share of the seconds of its passes.
  double passes_of(const Slot& slot) const;
  int64_t slots_of_pass(int64_t depth) const;
  void count_passes();
  void learn_cycle();
  void count_rate();
  // Seconds of the cycle's passes, were there nothing more to read than usual.
  double usual_passes() const;
  void observe_times(int64_t rows, double verify_seconds, double draft_seconds);

  std::shared_ptr<OnlineAcceptance> shared_;
  DraftSizes sizes_;
  BatchLimits limits_;
  OnlineCosts costs_;
  std::shared_ptr<OnlineCost> learned_;  // null: costs are given
  std::vector<PassSize> pass_sizes_;
  std::vector<Slot> slots_;
  double recent_tokens_ = 0.0;
  double recent_seconds_ = 0.0;

  // Of the cycle.
  bool planned_ = false;
  bool chosen_ = false;
  bool all_tried_next_ = false;
  std::vector<int64_t> cycle_;  // its slots
  double context_ = 0.0;        // their mean
  double row_price_ = 0.0;      // tokens that one of the next rows costs
  std::vector<int64_t> order_;  // slots that may draft, the most promising first
  double undrafted_ = 0.0;      // value without a draft
  int64_t undrafted_rows_ = 0;  // of looked-up tokens
  double typical_ = 0.0;        // what each of its drafts gains if it is a usual one
  double trial_loss_ = 0.0;     // what the chosen number of rows is worth less than the best
  double pass_loss_ = 0.0;      // what passes of the draft cost more than they promised
  double value_ = 0.0;          // of the best trees so far
  double expected_ = -1.0;      // gain of the next round; negative before there is one
  double tokens_ = 0.0;         // emitted
  std::vector<int64_t> going_;

  // Of a choice of rows.
  int64_t fixed_ = 1;
  double sure_ = 1.0;
  int64_t most_ = 0;             // rows beside the fixed ones
  std::vector<Row> rows_;        // at most so many, descending
  std::vector<Row> more_;        // the same with those of another round
  std::vector<int64_t> counts_;  // of each slot
  std::vector<Next> next_;
  std::vector<double> hopes_;  // (slots, top_k) survivals of a next level
  DraftPasses passes_;
  CycleTimes times_;
};

}  // namespace eaglerl
