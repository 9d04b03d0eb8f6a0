// Bindings of the decisions for one sequence.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <vector>

#include "acceptance/online_bindings.h"
#include "acceptance/online_checks.h"
#include "acceptance/online_cycle.h"
#include "acceptance/read_arrays.h"
#include "acceptance/selection_checks.h"
#include "common/binding_methods.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

std::vector<double> read_seconds(const char* name, const py::object& value, int64_t rows,
                                 double lowest) {
  const double* seconds = read_weights<double>(name, "float64", value, {rows});
  for (int64_t i = 0; i < rows; ++i) check_seconds(name, seconds[i], lowest);
  return {seconds, seconds + rows};
}

OnlineCosts read_costs(int64_t max_rows, const py::object& base, const py::object& slope,
                       double first_pass, double later_pass, double draft_slope) {
  return {read_seconds("base", base, max_rows, kLeastSeconds),
          read_seconds("slope", slope, max_rows, 0.0),
          {check_seconds("first_pass", first_pass, 0.0)},
          {check_seconds("later_pass", later_pass, 0.0)},
          check_seconds("draft_slope", draft_slope, 0.0)};
}

std::unique_ptr<OnlineCycle> make_cycle(std::shared_ptr<OnlineAcceptance> shared, int64_t top_k,
                                        int64_t max_depth, int64_t max_rows, int64_t lookup_tokens,
                                        const py::object& base, const py::object& slope,
                                        double first_pass, double later_pass, double draft_slope) {
  const DraftSizes sizes = check_sizes(shared, top_k, max_depth, max_rows, lookup_tokens);
  return std::make_unique<OnlineCycle>(
      std::move(shared), sizes,
      read_costs(max_rows, base, slope, first_pass, later_pass, draft_slope));
}

std::unique_ptr<OnlineCycle> make_learning_cycle(std::shared_ptr<OnlineAcceptance> shared,
                                                 int64_t top_k, int64_t max_depth, int64_t max_rows,
                                                 int64_t lookup_tokens,
                                                 std::shared_ptr<OnlineCost> cost, int64_t width) {
  if (cost == nullptr) throw py::type_error("cost must be an OnlineCost, got None");
  cost->check_usable();
  check_between("width", width, 0, int64_t(cost->widths().size()) - 1);
  const DraftSizes sizes = check_sizes(shared, top_k, max_depth, max_rows, lookup_tokens);
  check_between("max_rows", max_rows, 1, cost->max_rows());
  return std::make_unique<OnlineCycle>(std::move(shared), sizes, std::move(cost), width);
}

bool score(OnlineCycle& cycle, const py::object& scores, int64_t depth, int64_t context_length,
           int64_t match_length, int64_t lookup_length, const py::object& nodes) {
  cycle.check_usable();
  check_draft(cycle.sizes(), depth, context_length, match_length, lookup_length);
  cycle.score(
      read_draft(cycle.sizes(), scores, depth, context_length, match_length, lookup_length, nodes));
  return cycle.should_continue();
}

// From the next plan() or begin() on.
void limit(OnlineCycle& cycle, int64_t top_k, int64_t max_depth, int64_t max_rows,
           int64_t lookup_tokens, int64_t width) {
  cycle.check_usable();
  const DraftSizes& most = cycle.largest();
  check_between("top_k", top_k, 1, most.top_k);
  check_between("max_depth", max_depth, 0, most.max_depth);
  check_between("max_rows", max_rows, 1, most.max_rows);
  check_between("lookup_tokens", lookup_tokens, 0, most.lookup_tokens);
  const OnlineCost* learned = cycle.learned();
  check_between("width", width, 0, learned == nullptr ? 0 : int64_t(learned->widths().size()) - 1);
  cycle.limit({top_k, max_depth, max_rows, lookup_tokens}, width);
}

// score() of what a builder holds: one call after every pass of the draft.
bool look(OnlineCycle& cycle, const DraftTreeBuilder& builder, int64_t context_length,
          int64_t match_length, const std::vector<int64_t>& looked_up) {
  cycle.check_usable();
  cycle.score(view_of(cycle.sequence(), builder, context_length, match_length, looked_up));
  return cycle.should_continue();
}

// Selects, in the builder, what look() chose last.
py::tuple select_in(OnlineCycle& cycle, DraftTreeBuilder& builder,
                    const std::vector<int64_t>& looked_up) {
  cycle.check_usable();
  check_scored(cycle.sequence());
  const py::tuple rows = select_chosen(cycle.sequence(), builder, looked_up);
  cycle.mark_selected();
  return rows;
}

py::tuple select(OnlineCycle& cycle) {
  cycle.check_usable();
  check_scored(cycle.sequence());
  cycle.mark_selected();
  return selection_of(cycle.sequence());
}

py::tuple survival(const OnlineCycle& cycle) {
  cycle.check_usable();
  return survivals_of(cycle.sequence());
}

void observe(OnlineCycle& cycle, const std::vector<int64_t>& rows, int64_t tokens) {
  cycle.check_usable();
  check_scored(cycle.sequence());
  check_accepted(cycle.sequence(), rows);
  check_between("tokens", tokens, 1, kLargestCount);
  cycle.mark_selected();
  cycle.observe(rows.data(), int64_t(rows.size()), tokens);
  cycle.end(1, 0.0, 0.0);
}

py::tuple plan(OnlineCycle& cycle, int64_t context_length, int64_t match_length,
               int64_t lookup_length, int64_t unread) {
  cycle.check_usable();
  check_between("context_length", context_length, 0, kLargestCount);
  check_between("match_length", match_length, 0, kLargestCount);
  check_between("lookup_length", lookup_length, 0, kLargestCount);
  check_between("unread", unread, 0, kLargestCount);
  const CyclePlan plan = cycle.plan(context_length, {match_length, lookup_length}, unread);
  return py::make_tuple(plan.drafts, plan.lookup_tokens);
}

// After plan(): learns from all that a cycle showed. Without a selection the tree was another's, or
// there was none.
void observe_planned(OnlineCycle& cycle, const std::vector<int64_t>& accepted_rows,
                     const std::vector<int64_t>& token_ids, const std::vector<int64_t>& looked_up,
                     int64_t rows, double verify_seconds, double draft_seconds) {
  cycle.check_usable();
  if (!cycle.planned()) throw py::value_error("plan() must be called first");
  check_between("rows", rows, 1, kLargestCount);
  check_seconds("verify_seconds", verify_seconds, 0.0);
  check_seconds("draft_seconds", draft_seconds, 0.0);
  const bool drafted = cycle.selected();
  const int64_t tokens = check_between("token_ids", int64_t(token_ids.size()), 1, kLargestCount);
  if (drafted) {
    check_scored(cycle.sequence());
    check_accepted(cycle.sequence(), accepted_rows);
  }
  cycle.observe(accepted_rows.data(), int64_t(accepted_rows.size()), tokens);
  observe_looked_up(cycle.sequence(), looked_up, token_ids);
  cycle.end(rows, verify_seconds, drafted ? draft_seconds : 0.0);
}

// After plan(): the rule by which a device chooses what this cycle verifies.
py::array_t<int32_t> selection_rule(const OnlineCycle& cycle, const std::array<int32_t, 4>& given) {
  cycle.check_usable();
  const SelectionSizes sizes = read_selection_sizes(given);
  py::array_t<int32_t> words(RuleLayout::words(sizes));
  cycle.write_rule(sizes, words.mutable_data());
  return words;
}

// After score() of all that a device has drafted: what it chose.
void take_choice(OnlineCycle& cycle, std::vector<int64_t> nodes, int64_t lookup) {
  cycle.check_usable();
  check_scored(cycle.sequence());
  const DraftSizes& sizes = cycle.sizes();
  const int64_t pool = sizes.pool_size(cycle.sequence().known_depth());
  for (size_t i = 0; i < nodes.size(); ++i) {
    check_between("nodes", nodes[i], i == 0 ? 0 : nodes[i - 1] + 1, pool - 1);
  }
  check_between("lookup", lookup, 0, cycle.sequence().offered());
  cycle.sequence().take_choice(std::move(nodes), lookup);
  cycle.mark_selected();
}

void count_lookup(OnlineCycle& cycle, bool first_accepted) {
  cycle.check_usable();
  cycle.sequence().count_lookup(first_accepted);
}

}  // namespace

void bind_cycle(py::module_& module) {
  py::class_<OnlineCycle>(module, "OnlineCycle")
      .def(py::init(&make_cycle))
      .def("reset", usable(&OnlineCycle::reset))
      .def("begin", usable(&OnlineCycle::begin))
      .def("limit", &limit)
      .def("score", &score)
      .def("select", &select)
      .def("look", &look)
      .def("select_in", &select_in)
      .def_property_readonly("selected", usable(&OnlineCycle::selected))
      .def("survival", &survival)
      .def("plan", &plan)
      .def("observe_planned", &observe_planned)
      .def("count_lookup", &count_lookup)
      .def("selection_rule", &selection_rule)
      .def("take_choice", &take_choice)
      .def("observe", &observe);
  module.def("make_learning_cycle", &make_learning_cycle);
}

}  // namespace eaglerl
