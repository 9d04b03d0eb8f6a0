// Bindings of the decisions for sequences that are decoded together.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "acceptance/online_batch.h"
#include "acceptance/online_bindings.h"
#include "acceptance/online_checks.h"
#include "acceptance/read_arrays.h"
#include "common/binding_methods.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

constexpr int64_t kMostSlots = 1024;

std::unique_ptr<OnlineBatch> make_batch(std::shared_ptr<OnlineAcceptance> shared, int64_t top_k,
                                        int64_t max_depth, int64_t slot_rows, int64_t lookup_tokens,
                                        std::shared_ptr<OnlineCost> cost, int64_t slots,
                                        int64_t max_rows, bool chains) {
  if (cost == nullptr) throw py::type_error("cost must be an OnlineCost, got None");
  cost->check_usable();
  DraftSizes sizes = check_sizes(shared, top_k, max_depth, slot_rows, lookup_tokens);
  if (chains) check_between("top_k", top_k, 1, 1);
  sizes.chains = chains;
  check_between("max_rows", max_rows, 1, cost->max_rows());
  check_between("slots", slots, 1, std::min(max_rows, kMostSlots));
  check_product("the candidates of all slots", {slots, max_depth + 1, top_k, top_k}, kMostScored);
  check_product("the looked-up tokens of all slots", {slots, lookup_tokens}, kMostScored);
  std::vector<PassSize> passes;
  for (int64_t i = 1; i <= slots; ++i) passes.push_back(cost->pass_size(i * top_k));
  return std::make_unique<OnlineBatch>(std::move(shared), sizes, BatchLimits{slots, max_rows},
                                       std::move(cost), std::move(passes));
}

int64_t check_slot(const OnlineBatch& batch, int64_t slot) {
  batch.check_usable();
  return check_between("slot", slot, 0, batch.limits().slots - 1);
}

int64_t check_present(const OnlineBatch& batch, int64_t slot) {
  check_slot(batch, slot);
  if (!batch.present(slot)) {
    throw py::value_error("slot " + std::to_string(slot) + " is not part of this cycle");
  }
  return slot;
}

void check_chosen(const OnlineBatch& batch, int64_t slot) {
  check_present(batch, slot);
  check_scored(batch.sequence(slot));
  if (!batch.chosen()) throw py::value_error("select() must be called first");
}

void join(OnlineBatch& batch, int64_t slot) { batch.join(check_slot(batch, slot)); }

// Of each slot: its number, context_length, match_length, lookup_length, unread and room. Returns,
// for each, -1 if it drafts, else the number of looked-up tokens that it verifies.
std::vector<int64_t> plan(OnlineBatch& batch, const std::vector<std::array<int64_t, 6>>& slots) {
  batch.check_usable();
  check_between("the number of slots", int64_t(slots.size()), 1, batch.limits().slots);
  std::vector<bool> seen(size_t(batch.limits().slots));
  std::vector<BatchEntry> entries;
  for (const auto& [slot, context_length, match_length, lookup_length, unread, room] : slots) {
    check_slot(batch, slot);
    if (seen[size_t(slot)]) {
      throw py::value_error("slot " + std::to_string(slot) + " occurs twice");
    }
    seen[size_t(slot)] = true;
    check_draft(batch.sizes(), 0, context_length, match_length, lookup_length);
    check_between("unread", unread, 0, kLargestCount);
    check_between("room", room, 0, kLargestCount);
    entries.push_back({slot, context_length, {match_length, lookup_length}, unread, room});
  }
  batch.plan(entries);
  std::vector<int64_t> plans;
  for (const BatchEntry& entry : entries) {
    plans.push_back(batch.drafts(entry.slot) ? -1 : batch.undrafted_tokens(entry.slot));
  }
  return plans;
}

void score(OnlineBatch& batch, int64_t slot, const py::object& scores, int64_t depth,
           int64_t context_length, int64_t match_length, int64_t lookup_length,
           const py::object& nodes) {
  check_present(batch, slot);
  check_draft(batch.sizes(), depth, context_length, match_length, lookup_length);
  batch.score(slot, read_draft(batch.sizes(), scores, depth, context_length, match_length,
                               lookup_length, nodes));
}

// score() of what a builder holds.
void look(OnlineBatch& batch, int64_t slot, const DraftTreeBuilder& builder, int64_t context_length,
          int64_t match_length, const std::vector<int64_t>& looked_up) {
  check_present(batch, slot);
  batch.score(slot,
              view_of(batch.sequence(slot), builder, context_length, match_length, looked_up));
}

std::vector<int64_t> decide(OnlineBatch& batch) {
  batch.check_usable();
  return batch.decide();
}

py::tuple survival(const OnlineBatch& batch, int64_t slot) {
  return survivals_of(batch.sequence(check_slot(batch, slot)));
}

// What select() chose of a slot, which the cycle then verifies.
py::tuple selection(OnlineBatch& batch, int64_t slot) {
  check_chosen(batch, slot);
  batch.mark_selected(slot);
  return selection_of(batch.sequence(slot));
}

// The same in the builder.
py::tuple select_in(OnlineBatch& batch, int64_t slot, DraftTreeBuilder& builder,
                    const std::vector<int64_t>& looked_up) {
  check_chosen(batch, slot);
  const py::tuple rows = select_chosen(batch.sequence(slot), builder, looked_up);
  batch.mark_selected(slot);
  return rows;
}

void observe(OnlineBatch& batch, int64_t slot, const std::vector<int64_t>& accepted_rows,
             const std::vector<int64_t>& token_ids, const std::vector<int64_t>& looked_up) {
  check_present(batch, slot);
  const int64_t tokens = check_between("token_ids", int64_t(token_ids.size()), 1, kLargestCount);
  if (batch.selected(slot)) {
    check_scored(batch.sequence(slot));
    check_accepted(batch.sequence(slot), accepted_rows);
  }
  batch.observe(slot, accepted_rows.data(), int64_t(accepted_rows.size()), tokens);
  observe_looked_up(batch.sequence(slot), looked_up, token_ids);
}

int64_t equal_tokens(const std::vector<int64_t>& chain, const std::vector<int64_t>& token_ids) {
  const auto end = chain.begin() + ptrdiff_t(std::min(chain.size(), token_ids.size()));
  return std::mismatch(chain.begin(), end, token_ids.begin()).first - chain.begin();
}

// The drafted tokens are all of the slot's passes, whether or not they were verified.
void observe_chains(OnlineBatch& batch, int64_t slot, const std::vector<int64_t>& drafted,
                    const std::vector<int64_t>& looked_up, const std::vector<int64_t>& token_ids) {
  check_present(batch, slot);
  if (!batch.sizes().chains) throw py::value_error("the batch was not made for chains");
  const int64_t tokens = check_between("token_ids", int64_t(token_ids.size()), 1, kLargestCount);
  OnlineSequence& sequence = batch.sequence(slot);
  if (batch.selected(slot)) {
    check_scored(sequence);
    const int64_t passes = sequence.known_depth() + 1;
    check_between("the number of drafted tokens", int64_t(drafted.size()), passes, passes);
  }
  batch.observe_chains(slot, equal_tokens(drafted, token_ids), equal_tokens(looked_up, token_ids),
                       tokens);
  observe_looked_up(sequence, looked_up, token_ids);
}

void end_cycle(OnlineBatch& batch, int64_t rows, double verify_seconds, double draft_seconds) {
  batch.check_usable();
  check_between("rows", rows, 1, kLargestCount);
  check_seconds("verify_seconds", verify_seconds, 0.0);
  check_seconds("draft_seconds", draft_seconds, 0.0);
  batch.end_cycle(rows, verify_seconds, draft_seconds);
}

}  // namespace

void bind_batch(py::module_& module) {
  py::class_<OnlineBatch>(module, "OnlineBatch")
      .def(py::init(&make_batch))
      .def_property_readonly("rate", usable(&OnlineBatch::rate))
      .def_property_readonly("mean_rate", usable(&OnlineBatch::mean_rate))
      .def("join", &join)
      .def("plan", &plan)
      .def("score", &score)
      .def("look", &look)
      .def("decide", &decide)
      .def("select", usable(&OnlineBatch::select))
      .def("survival", &survival)
      .def("selection", &selection)
      .def("select_in", &select_in)
      .def("observe", &observe)
      .def("observe_chains", &observe_chains)
      .def("end_cycle", &end_cycle);
}

}  // namespace eaglerl
