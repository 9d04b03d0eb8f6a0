// Decides for one sequence: a batch of one.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "acceptance/online_batch.h"
#include "common/checks.h"

namespace eaglerl {

// What a cycle begins with: a draft, or looked-up tokens alone, or neither.
struct CyclePlan {
  bool drafts;
  int64_t lookup_tokens;
};

class OnlineCycle : public PythonObject {
 public:
  OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes, OnlineCosts costs)
      : largest_(sizes), batch_(std::move(shared), sizes, {1, sizes.max_rows}, std::move(costs)) {
    reset();
  }
  // Costs are those that `learned` learns, of one of its widths, from the next plan() on.
  OnlineCycle(std::shared_ptr<OnlineAcceptance> shared, const DraftSizes& sizes,
              std::shared_ptr<OnlineCost> learned, int64_t width)
      : largest_(sizes),
        batch_(std::move(shared), sizes, {1, sizes.max_rows}, std::move(learned), {{width}}) {
    reset();
  }

  // Begins a sequence.
  void reset() {
    batch_.join(0);
    begin();
  }
  // Makes the drafts of further cycles smaller, within `largest()`; their passes have the width of
  // this index. Begins a cycle.
  void limit(const DraftSizes& sizes, int64_t width) {
    batch_.limit(sizes, {width});
    begin();
  }
  // Begins a cycle, whose first score() has depth 0.
  void begin() { batch_.begin({{0, 0, {}, 0, kAnyRoom}}); }
  // Begins a cycle and decides whether it drafts. `unread` is the number of tokens that the
  // draft's first pass would read.
  CyclePlan plan(int64_t context_length, const LookupView& lookup, int64_t unread) {
    batch_.plan({{0, context_length, lookup, unread, kAnyRoom}});
    const bool drafts = batch_.drafts(0);
    return {drafts, drafts ? sizes().lookup_tokens : batch_.undrafted_tokens(0)};
  }
  // Scores the levels that are new since the last call, and plans over all of them.
  void score(const DraftView& draft) {
    batch_.score(0, draft);
    should_continue_ = !batch_.decide().empty();
    batch_.select();
  }
  bool should_continue() const { return should_continue_; }
  // Whether what score() chose last is what the cycle verifies.
  void mark_selected() { batch_.mark_selected(0); }
  bool selected() const { return batch_.selected(0); }
  // Learns from a cycle. `rows` are the accepted rows of the tree that was selected, if one was,
  // without the root; `tokens` the number of emitted ones.
  void observe(const int64_t* rows, int64_t count, int64_t tokens) {
    batch_.observe(0, rows, count, tokens);
  }
  // Then learns the costs from its times; seconds of 0 were not measured.
  void end(int64_t rows, double verify_seconds, double draft_seconds) {
    batch_.end_cycle(rows, verify_seconds, draft_seconds);
  }

  // The rule by which a device chooses in this cycle.
  void write_rule(const SelectionSizes& sizes, int32_t* words) const {
    batch_.write_rule(0, sizes, words);
  }

  bool planned() const { return batch_.planned(); }
  OnlineSequence& sequence() { return batch_.sequence(0); }
  const OnlineSequence& sequence() const { return batch_.sequence(0); }
  const DraftSizes& sizes() const { return batch_.sizes(); }
  // What it was made with.
  const DraftSizes& largest() const { return largest_; }
  const OnlineCost* learned() const { return batch_.learned(); }

 private:
  static constexpr int64_t kAnyRoom = std::numeric_limits<int64_t>::max();

  DraftSizes largest_;
  OnlineBatch batch_;
  bool should_continue_ = false;
};

}  // namespace eaglerl
