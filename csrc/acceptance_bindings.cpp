// Bindings of the judge of one cycle's draft. It is asked several times in every cycle, so its
// arrays are NumPy's own, read in place.
#include "acceptance_bindings.h"

#include <pybind11/numpy.h>

#include <memory>
#include <string>

#include "acceptance_judge.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

template <typename T>
const T* read_array(const char* name, const char* type, py::handle value, py::ssize_t count) {
  if (!py::isinstance<py::array_t<T>>(value)) {
    const std::string found =
        py::isinstance<py::array>(value)
            ? "one of " + std::string(py::str(value.attr("dtype")))
            : std::string(py::str(py::type::of(value).attr("__name__")));
    throw py::type_error(std::string(name) + " must be an array of " + type + ", got " + found);
  }
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (array.ndim() != 1 || array.shape(0) != count ||
      (count > 1 && array.strides(0) != py::ssize_t(sizeof(T)))) {
    throw py::value_error(std::string(name) + " must be contiguous, of shape (" +
                          std::to_string(count) + ",), got shape " +
                          std::string(py::str(value.attr("shape"))) + " and strides " +
                          std::string(py::str(value.attr("strides"))));
  }
  return static_cast<const T*>(array.data());
}

using Floats = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

// (weight, bias, weight, bias, weight, bias), which the caller has checked and keeps alive.
SmallNetWeights net_weights(const py::tuple& arrays) {
  SmallNetWeights net = {};
  for (int layer = 0; layer < 3; ++layer) {
    const auto weight = arrays[2 * layer].cast<Floats>();
    net.weights[layer] = weight.data();
    net.biases[layer] = arrays[2 * layer + 1].cast<Floats>().data();
    net.widths[layer] = weight.shape(0);
  }
  net.widths[3] = 1;
  return net;
}

std::unique_ptr<AcceptanceJudge> make_judge(int64_t top_k, int64_t max_depth, int64_t max_rows,
                                            int64_t chain_length, const py::tuple& pool_net,
                                            const py::object& chain_net, const Floats& stop_weights,
                                            const Doubles& base, const Doubles& slope) {
  const AcceptanceSizes sizes = {top_k, max_depth, max_rows, chain_length};
  SmallNetWeights chain = {};
  if (!chain_net.is_none()) chain = net_weights(chain_net.cast<py::tuple>());
  return std::make_unique<AcceptanceJudge>(sizes, net_weights(pool_net),
                                           chain_net.is_none() ? nullptr : &chain,
                                           stop_weights.data(), base.data(), slope.data());
}

void judge_draft(AcceptanceJudge& judge, const py::object& scores, int64_t depth,
                 int64_t context_length, int64_t match_length, int64_t chain_tokens,
                 const py::object& nodes, double rate) {
  if (depth < 0 || depth > judge.sizes().max_depth) {
    throw py::value_error("depth must be from 0 to the model's " +
                          std::to_string(judge.sizes().max_depth) + ", got " +
                          std::to_string(depth));
  }
  DraftView draft = {};
  draft.scores = read_array<float>("scores", "float32", scores, judge.pool_size(depth));
  draft.depth = depth;
  draft.context_length = context_length;
  draft.match_length = match_length;
  draft.chain_tokens = chain_tokens;
  if (!nodes.is_none()) {
    draft.nodes = read_array<int64_t>("lookup_nodes", "int64", nodes, depth + 1);
  }
  judge.judge(draft, rate);
}

void check_judged(const AcceptanceJudge& judge) {
  if (judge.known_depth() < 0) throw py::value_error("judge() must be called first");
}

py::tuple select(const AcceptanceJudge& judge) {
  check_judged(judge);
  py::array_t<int64_t> nodes(judge.chosen_nodes());
  const int64_t chain_tokens = judge.select(nodes.mutable_data());
  return py::make_tuple(std::move(nodes), chain_tokens);
}

py::tuple survival(const AcceptanceJudge& judge) {
  check_judged(judge);
  const py::ssize_t pool = judge.pool_size(judge.known_depth());
  return py::make_tuple(py::array_t<float>(pool, judge.pool()),
                        py::array_t<float>(judge.sizes().chain_length, judge.chain()));
}

}  // namespace

void bind_acceptance(py::module_& module) {
  py::class_<AcceptanceJudge>(module, "AcceptanceJudge")
      .def(py::init(&make_judge))
      .def("begin", &AcceptanceJudge::begin)
      .def("judge", &judge_draft)
      .def("goes_on",
           [](const AcceptanceJudge& judge) {
             check_judged(judge);
             return judge.goes_on();
           })
      .def("select", &select)
      .def("survival", &survival);
}

}  // namespace eaglerl
