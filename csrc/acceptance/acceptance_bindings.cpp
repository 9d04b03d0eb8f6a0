// Bindings of the scorer of a cycle's draft. It runs two or three times a cycle, so NumPy arrays
// are read in place instead of being converted.
#include "acceptance/acceptance_bindings.h"

#include <memory>
#include <string>

#include "acceptance/acceptance_scorer.h"
#include "acceptance/read_arrays.h"
#include "common/binding_methods.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A scorer keeps up to 100 bytes a candidate, 400 MB for 2^22.
constexpr int64_t kMostScored = int64_t(1) << 22;
constexpr int64_t kWidestLayer = int64_t(1) << 20;

// Takes (weight, bias, weight, bias, weight, bias). The addresses hold as long as the tuple.
SmallNetWeights net_weights(const py::tuple& arrays, int64_t inputs) {
  if (arrays.size() != 6) {
    throw py::value_error("a net must have three weights and three biases, got " +
                          std::to_string(arrays.size()) + " arrays");
  }
  SmallNetWeights net = {};
  net.widths[0] = inputs;
  for (int layer = 0; layer < 3; ++layer) {
    const py::handle weight = arrays[2 * layer];
    int64_t out = 1;
    if (layer < 2 && py::isinstance<py::array>(weight)) {
      const auto array = py::reinterpret_borrow<py::array>(weight);
      if (array.ndim() == 2) out = array.shape(1);
    }
    check_between("the width of a net's layer", out, 1, kWidestLayer);
    net.weights[layer] =
        read_weights<float>("a net's weight", "float32", weight, {net.widths[layer], out});
    net.biases[layer] =
        read_weights<float>("a net's bias", "float32", arrays[2 * layer + 1], {out});
    net.widths[layer + 1] = out;
  }
  return net;
}

std::unique_ptr<AcceptanceScorer> make_scorer(int64_t top_k, int64_t max_depth, int64_t max_rows,
                                              int64_t lookup_tokens, const py::tuple& pool_net,
                                              const py::object& lookup_net,
                                              const py::object& stop_weights,
                                              const py::object& base, const py::object& slope) {
  check_between("top_k", top_k, 1, kLargestCount);
  check_between("max_depth", max_depth, 0, kLargestCount);
  check_between("max_rows", max_rows, 1, kLargestCount);
  check_between("lookup_tokens", lookup_tokens, 0, kMostScored);
  check_product("the candidates of a draft", {max_depth + 1, top_k, top_k}, kMostScored);
  const DraftSizes sizes = {top_k, max_depth, max_rows, lookup_tokens};
  SmallNetWeights lookup = {};
  if (!lookup_net.is_none()) lookup = net_weights(lookup_net.cast<py::tuple>(), kLookupInputs);
  return std::make_unique<AcceptanceScorer>(
      sizes, net_weights(pool_net, kPoolInputs), lookup_net.is_none() ? nullptr : &lookup,
      read_weights<float>("stop_weights", "float32", stop_weights, {max_depth, kStopInputs}),
      read_weights<double>("base", "float64", base, {max_rows}),
      read_weights<double>("slope", "float64", slope, {max_rows}));
}

void score_draft(AcceptanceScorer& scorer, const py::object& scores, int64_t depth,
                 int64_t context_length, int64_t match_length, int64_t lookup_length,
                 const py::object& nodes, double rate) {
  scorer.check_usable();
  if (depth < 0 || depth > scorer.sizes().max_depth) {
    throw py::value_error("depth must be from 0 to the model's " +
                          std::to_string(scorer.sizes().max_depth) + ", got " +
                          std::to_string(depth));
  }
  const DraftView draft =
      read_draft(scorer.sizes(), scores, depth, context_length, match_length, lookup_length, nodes);
  scorer.score(draft, rate);
}

py::tuple select(const AcceptanceScorer& scorer) {
  check_scored(scorer);
  py::array_t<int64_t> nodes(scorer.chosen_nodes());
  const int64_t lookup_length = scorer.select(nodes.mutable_data());
  return py::make_tuple(std::move(nodes), lookup_length);
}

py::tuple survival(const AcceptanceScorer& scorer) {
  check_scored(scorer);
  const py::ssize_t pool = scorer.sizes().pool_size(scorer.known_depth());
  return py::make_tuple(py::array_t<float>(pool, scorer.pool()),
                        py::array_t<float>(scorer.sizes().lookup_tokens, scorer.lookup()));
}

}  // namespace

void bind_acceptance(py::module_& module) {
  py::class_<AcceptanceScorer>(module, "AcceptanceScorer")
      .def(py::init(&make_scorer))
      .def("begin", usable(&AcceptanceScorer::begin))
      .def("score", &score_draft)
      .def("should_continue",
           [](const AcceptanceScorer& scorer) {
             check_scored(scorer);
             return scorer.should_continue();
           })
      .def("select", &select)
      .def("survival", &survival);
}

}  // namespace eaglerl
