// Bindings of what is learned while decoding.
#include "acceptance/online_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <sstream>
#include <vector>

#include "acceptance/online_acceptance.h"
#include "acceptance/read_arrays.h"
#include "common/binding_methods.h"
#include "tree/tree_builder.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A cycle keeps 120 bytes a candidate, 120 MB for 2^20.
constexpr int64_t kMostCandidates = int64_t(1) << 20;
// More than any verification takes, and little enough for sums of products.
constexpr double kMostSeconds = 1e6;
constexpr double kLeastSeconds = 1e-12;
constexpr int64_t kMostRows = int64_t(1) << 16;
constexpr int64_t kMostWidths = 64;
// Logarithms of the costs that are kept: e^30 is 10^13.
constexpr double kMostLog = 30.0;

double check_seconds(const char* name, double seconds, double lowest) {
  if (!(seconds >= lowest && seconds <= kMostSeconds)) {
    std::ostringstream message;  // std::to_string would write 1e-12 as 0.000000
    message << name << " must be in " << lowest << ".." << kMostSeconds << " seconds, got "
            << seconds;
    throw py::value_error(message.str());
  }
  return seconds;
}

std::shared_ptr<OnlineAcceptance> make_acceptance(int64_t max_depth, double plain_seconds) {
  check_between("max_depth", max_depth, 0, kMostCandidates);
  check_seconds("plain_seconds", plain_seconds, kLeastSeconds);
  return std::make_shared<OnlineAcceptance>(max_depth, plain_seconds);
}

std::vector<double> read_seconds(const char* name, const py::object& value, int64_t rows,
                                 double lowest) {
  const double* seconds = read_weights<double>(name, "float64", value, {rows});
  for (int64_t i = 0; i < rows; ++i) check_seconds(name, seconds[i], lowest);
  return {seconds, seconds + rows};
}

OnlineCosts read_costs(int64_t max_rows, const py::object& base, const py::object& slope,
                       double first_pass, double later_pass, double draft_slope) {
  return {read_seconds("base", base, max_rows, kLeastSeconds),
          read_seconds("slope", slope, max_rows, 0.0), check_seconds("first_pass", first_pass, 0.0),
          check_seconds("later_pass", later_pass, 0.0),
          check_seconds("draft_slope", draft_slope, 0.0)};
}

DraftSizes check_sizes(const std::shared_ptr<OnlineAcceptance>& shared, int64_t top_k,
                       int64_t max_depth, int64_t max_rows, int64_t lookup_tokens) {
  if (shared == nullptr) throw py::type_error("shared must be an OnlineAcceptance, got None");
  shared->check_usable();
  check_between("top_k", top_k, 1, kMostCandidates);
  check_between("max_depth", max_depth, 0, shared->max_depth());
  check_between("max_rows", max_rows, 1, kMostCandidates);
  check_between("lookup_tokens", lookup_tokens, 0, kMostCandidates);
  check_product("the candidates of a draft", {max_depth + 1, top_k, top_k}, kMostCandidates);
  return {top_k, max_depth, max_rows, lookup_tokens};
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

bool score_draft(OnlineCycle& cycle, const py::object& scores, int64_t depth,
                 int64_t context_length, int64_t match_length, int64_t lookup_length,
                 const py::object& nodes) {
  cycle.check_usable();
  check_between("depth", depth, 0, cycle.sizes().max_depth);
  check_between("context_length", context_length, 0, kLargestCount);
  check_between("match_length", match_length, 0, kLargestCount);
  check_between("lookup_length", lookup_length, 0, kLargestCount);
  const DraftView draft =
      read_draft(cycle.sizes(), scores, depth, context_length, match_length, lookup_length, nodes);
  cycle.score(draft);
  return cycle.should_continue();
}

// score() of what a builder holds: one call after every pass of the draft, without arrays between.
bool look(OnlineCycle& cycle, const DraftTreeBuilder& builder, int64_t context_length,
          int64_t match_length, const std::vector<int64_t>& looked_up) {
  cycle.check_usable();
  builder.check_usable();
  const DraftSizes& sizes = cycle.sizes();
  check_between("context_length", context_length, 0, kLargestCount);
  check_between("match_length", match_length, 0, kLargestCount);
  check_between("the builder's top_k", builder.top_k(), sizes.top_k, sizes.top_k);
  const int64_t depth =
      check_between("the builder's rounds", builder.rounds(), 1, sizes.max_depth + 1) - 1;
  const int64_t pool = sizes.pool_size(depth);
  check_between("the builder's pool_size", builder.pool_size(), pool, pool);
  OnlineCycle::Scratch& scratch = cycle.scratch();
  scratch.scores.resize(size_t(pool));
  builder.scores(scratch.scores.data());
  scratch.nodes.resize(size_t(depth + 1));
  if (!looked_up.empty()) {
    builder.lookup_nodes(looked_up, int32_t(depth + 1), scratch.nodes.data());
  }
  cycle.score({scratch.scores.data(), depth, context_length, match_length,
               int64_t(looked_up.size()), looked_up.empty() ? nullptr : scratch.nodes.data()});
  return cycle.should_continue();
}

// Selects, in the builder, what look() chose last. Returns the number of rows of the tree, and of
// the root and the candidates alone.
py::tuple select_in(OnlineCycle& cycle, DraftTreeBuilder& builder,
                    const std::vector<int64_t>& looked_up) {
  check_scored(cycle);
  builder.check_usable();
  const size_t wanted = std::min(looked_up.size(), size_t(cycle.lookup()));
  const int64_t rows =
      builder.select(cycle.nodes(), {looked_up.begin(), looked_up.begin() + ptrdiff_t(wanted)});
  cycle.mark_selected();
  return py::make_tuple(rows, 1 + int64_t(cycle.nodes().size()));
}

py::tuple select(OnlineCycle& cycle) {
  check_scored(cycle);
  cycle.mark_selected();
  const std::vector<int64_t>& nodes = cycle.nodes();
  return py::make_tuple(py::array_t<int64_t>(py::ssize_t(nodes.size()), nodes.data()),
                        cycle.lookup());
}

py::tuple survival(const OnlineCycle& cycle) {
  check_scored(cycle);
  return py::make_tuple(
      py::array_t<double>(py::ssize_t(cycle.sizes().pool_size(cycle.known_depth())), cycle.pool()),
      py::array_t<double>(py::ssize_t(cycle.sizes().lookup_tokens), cycle.looked_up()));
}

void observe(OnlineCycle& cycle, const std::vector<int64_t>& rows, int64_t tokens) {
  check_scored(cycle);
  for (size_t i = 0; i < rows.size(); ++i) {
    check_between("rows", rows[i], i == 0 ? 1 : rows[i - 1] + 1, cycle.tree_rows() - 1);
  }
  check_between("tokens", tokens, 1, kLargestCount);
  cycle.observe(rows.data(), int64_t(rows.size()), tokens);
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

int64_t common_length(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  const size_t shorter = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + ptrdiff_t(shorter), b.begin()).first - a.begin();
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
    observe(cycle, accepted_rows, tokens);
  } else {
    cycle.observe_undrafted(tokens);
  }
  if (!looked_up.empty()) {
    const int64_t equal = common_length(looked_up, token_ids);
    cycle.observe_lookup(equal, tokens);
    cycle.count_lookup(equal > 0);
  }
  if (rows <= cycle.sizes().max_rows) {
    cycle.observe_times(rows, verify_seconds, drafted ? draft_seconds : 0.0);
  }
}

std::shared_ptr<OnlineCost> make_cost(int64_t max_rows, int64_t widths) {
  check_between("max_rows", max_rows, 1, kMostRows);
  check_between("widths", widths, 1, kMostWidths);
  return std::make_shared<OnlineCost>(max_rows, widths);
}

void observe_cost(OnlineCost& cost, int64_t rows, int64_t context_length, double verify_seconds,
                  int64_t width, int64_t depth, double draft_seconds) {
  cost.check_usable();
  check_between("rows", rows, 1, cost.max_rows());
  check_between("context_length", context_length, 0, kLargestCount);
  check_seconds("verify_seconds", verify_seconds, kLeastSeconds);
  check_between("width", width, 0, cost.widths() - 1);
  check_between("depth", depth, 0, kLargestCount);
  check_seconds("draft_seconds", draft_seconds, 0.0);
  cost.observe({rows, context_length, verify_seconds, width, depth, draft_seconds});
}

void restore_cost(OnlineCost& cost, const py::object& mean, const py::object& spread,
                  int64_t cycles) {
  cost.check_usable();
  const int64_t size = int64_t(cost.mean().size());
  const double* means = read_weights<double>("mean", "float64", mean, {size});
  const double* spreads = read_weights<double>("spread", "float64", spread, {size});
  for (int64_t i = 0; i < size; ++i) {
    if (!(std::abs(means[i]) <= kMostLog)) throw py::value_error("mean must be logarithms");
    if (!(spreads[i] > 0.0 && spreads[i] <= kMostLog)) {
      throw py::value_error("spread must be positive");
    }
  }
  check_between("cycles", cycles, 0, kLargestSize);
  cost.restore(means, spreads, cycles);
}

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(py::ssize_t(values.size()), values.data());
}

py::tuple passes_of(const OnlineCost& cost, int64_t width) {
  cost.check_usable();
  check_between("width", width, 0, cost.widths() - 1);
  return py::make_tuple(cost.first_pass(width), cost.later_pass(width));
}

py::tuple belief_of(const OnlineCost& cost) {
  cost.check_usable();
  return py::make_tuple(array_of(cost.mean()), array_of(cost.spread()));
}

std::unique_ptr<OnlineCycle> make_learning_cycle(std::shared_ptr<OnlineAcceptance> shared,
                                                 int64_t top_k, int64_t max_depth, int64_t max_rows,
                                                 int64_t lookup_tokens,
                                                 std::shared_ptr<OnlineCost> cost, int64_t width) {
  if (cost == nullptr) throw py::type_error("cost must be an OnlineCost, got None");
  cost->check_usable();
  check_between("width", width, 0, cost->widths() - 1);
  const DraftSizes sizes = check_sizes(shared, top_k, max_depth, max_rows, lookup_tokens);
  check_between("max_rows", max_rows, 1, cost->max_rows());
  return std::make_unique<OnlineCycle>(std::move(shared), sizes, std::move(cost), width);
}

template <int kInputs>
py::array_t<double> weights_of(const OnlineLogistic<kInputs>& model) {
  return py::array_t<double>(kInputs, model.mean().data());
}

}  // namespace

void bind_online(py::module_& module) {
  py::class_<OnlineAcceptance, std::shared_ptr<OnlineAcceptance>>(module, "OnlineAcceptance")
      .def(py::init(&make_acceptance))
      .def_property_readonly("rate", usable(&OnlineAcceptance::rate))
      .def("node_weights",
           [](const OnlineAcceptance& shared) {
             shared.check_usable();
             return weights_of(shared.nodes);
           })
      .def("lookup_weights", [](const OnlineAcceptance& shared) {
        shared.check_usable();
        return weights_of(shared.lookups);
      });
  py::class_<OnlineCost, std::shared_ptr<OnlineCost>>(module, "OnlineCost")
      .def(py::init(&make_cost))
      .def("observe", &observe_cost)
      .def_property_readonly("speed", usable(&OnlineCost::speed))
      .def_property_readonly("context_growth", usable(&OnlineCost::context_growth))
      .def_property_readonly("cycles", usable(&OnlineCost::cycles))
      .def("passes", &passes_of)
      .def("verify",
           [](const OnlineCost& cost) {
             cost.check_usable();
             return array_of(cost.verify());
           })
      .def("deviation",
           [](const OnlineCost& cost) {
             cost.check_usable();
             return array_of(cost.deviation());
           })
      .def("trial_deviation",
           [](const OnlineCost& cost) {
             cost.check_usable();
             std::vector<double> deviation;
             for (int64_t r = 0; r < cost.max_rows(); ++r) {
               deviation.push_back(cost.trial_deviation(r));
             }
             return array_of(deviation);
           })
      .def("knots",
           [](const OnlineCost& cost) {
             cost.check_usable();
             return array_of(cost.knots());
           })
      .def("belief", &belief_of)
      .def("restore", &restore_cost);
  py::class_<OnlineCycle>(module, "OnlineCycle")
      .def(py::init(&make_cycle))
      .def("reset", usable(&OnlineCycle::reset))
      .def("begin", usable(&OnlineCycle::begin))
      .def("score", &score_draft)
      .def("select", &select)
      .def("look", &look)
      .def("select_in", &select_in)
      .def_property_readonly("selected", usable(&OnlineCycle::selected))
      .def("survival", &survival)
      .def("plan", &plan)
      .def("observe_planned", &observe_planned)
      .def("count_lookup", usable(&OnlineCycle::count_lookup))
      .def("observe", &observe);
  module.def("make_learning_cycle", &make_learning_cycle);
}

}  // namespace eaglerl
