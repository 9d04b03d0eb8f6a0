// Bindings of what is learned while decoding.
#include "acceptance/online_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <vector>

#include "acceptance/online_acceptance.h"
#include "acceptance/online_checks.h"
#include "acceptance/online_cost.h"
#include "acceptance/read_arrays.h"
#include "common/binding_methods.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

constexpr int64_t kMostRows = int64_t(1) << 16;
constexpr int64_t kMostWidths = 64, kMostWidth = int64_t(1) << 24;
// Logarithms of the costs that are kept: e^30 is 10^13.
constexpr double kMostLog = 30.0;

std::shared_ptr<OnlineAcceptance> make_acceptance(int64_t max_depth, double plain_seconds) {
  check_between("max_depth", max_depth, 0, kMostScored);
  check_seconds("plain_seconds", plain_seconds, kLeastSeconds);
  return std::make_shared<OnlineAcceptance>(max_depth, plain_seconds);
}

std::shared_ptr<OnlineCost> make_cost(int64_t max_rows, const std::vector<int64_t>& widths) {
  check_between("max_rows", max_rows, 1, kMostRows);
  check_between("the number of widths", int64_t(widths.size()), 1, kMostWidths);
  for (size_t i = 0; i < widths.size(); ++i) {
    check_between("widths", widths[i], i == 0 ? 1 : widths[i - 1] + 1, kMostWidth);
  }
  return std::make_shared<OnlineCost>(max_rows, widths);
}

void observe_cost(OnlineCost& cost, int64_t rows, int64_t context_length, double verify_seconds,
                  int64_t width, int64_t depth, double draft_seconds) {
  cost.check_usable();
  check_between("rows", rows, 1, cost.max_rows());
  check_between("context_length", context_length, 0, kLargestCount);
  check_seconds("verify_seconds", verify_seconds, kLeastSeconds);
  check_between("width", width, 0, int64_t(cost.widths().size()) - 1);
  check_between("depth", depth, 0, kLargestCount);
  check_seconds("draft_seconds", draft_seconds, 0.0);
  cost.observe({rows,
                double(context_length),
                verify_seconds,
                {{{width}, 1.0, double(depth)}},
                draft_seconds});
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
  check_between("width", width, 0, int64_t(cost.widths().size()) - 1);
  return py::make_tuple(cost.first_pass({width}), cost.later_pass({width}));
}

py::tuple belief_of(const OnlineCost& cost) {
  cost.check_usable();
  return py::make_tuple(array_of(cost.mean()), array_of(cost.spread()));
}

template <int kInputs>
py::array_t<double> weights_of(const OnlineLogistic<kInputs>& model) {
  return py::array_t<double>(kInputs, model.mean().data());
}

}  // namespace

void bind_online(py::module_& module) {
  py::class_<OnlineAcceptance, std::shared_ptr<OnlineAcceptance>>(module, "OnlineAcceptance")
      .def(py::init(&make_acceptance))
      .def_property_readonly("rate",
                             [](const OnlineAcceptance& shared) {
                               shared.check_usable();
                               return shared.rate();
                             })
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
  bind_cycle(module);
  bind_batch(module);
  bind_selection(module);
  bind_accept(module);
}

}  // namespace eaglerl
