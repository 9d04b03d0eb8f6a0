// Bindings of what is learned while decoding.
#include "acceptance/online_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <sstream>
#include <vector>

#include "acceptance/online_acceptance.h"
#include "acceptance/read_arrays.h"
#include "common/binding_methods.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A cycle keeps 120 bytes a candidate, 120 MB for 2^20.
constexpr int64_t kMostCandidates = int64_t(1) << 20;
// More than any verification takes, and little enough for sums of products.
constexpr double kMostSeconds = 1e6;

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
  check_seconds("plain_seconds", plain_seconds, 1e-12);
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
  return {read_seconds("base", base, max_rows, 1e-12), read_seconds("slope", slope, max_rows, 0.0),
          check_seconds("first_pass", first_pass, 0.0),
          check_seconds("later_pass", later_pass, 0.0),
          check_seconds("draft_slope", draft_slope, 0.0)};
}

std::unique_ptr<OnlineCycle> make_cycle(std::shared_ptr<OnlineAcceptance> shared, int64_t top_k,
                                        int64_t max_depth, int64_t max_rows, int64_t lookup_tokens,
                                        const py::object& base, const py::object& slope,
                                        double first_pass, double later_pass, double draft_slope) {
  if (shared == nullptr) throw py::type_error("shared must be an OnlineAcceptance, got None");
  shared->check_usable();
  check_between("top_k", top_k, 1, kMostCandidates);
  check_between("max_depth", max_depth, 0, shared->max_depth());
  check_between("max_rows", max_rows, 1, kMostCandidates);
  check_between("lookup_tokens", lookup_tokens, 0, kMostCandidates);
  check_product("the candidates of a draft", {max_depth + 1, top_k, top_k}, kMostCandidates);
  return std::make_unique<OnlineCycle>(
      std::move(shared), DraftSizes{top_k, max_depth, max_rows, lookup_tokens},
      read_costs(max_rows, base, slope, first_pass, later_pass, draft_slope));
}

void score_draft(OnlineCycle& cycle, const py::object& scores, int64_t depth,
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
}

py::tuple select(const OnlineCycle& cycle) {
  check_scored(cycle);
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
  py::class_<OnlineCycle>(module, "OnlineCycle")
      .def(py::init(&make_cycle))
      .def("reset", usable(&OnlineCycle::reset))
      .def("begin", usable(&OnlineCycle::begin))
      .def("score", &score_draft)
      .def("should_continue",
           [](const OnlineCycle& cycle) {
             check_scored(cycle);
             return cycle.should_continue();
           })
      .def("select", &select)
      .def("survival", &survival)
      .def("count_lookup", usable(&OnlineCycle::count_lookup))
      .def("observe", &observe);
}

}  // namespace eaglerl
