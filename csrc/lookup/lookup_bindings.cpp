#include "lookup/lookup_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "lookup/ngram_index.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

std::unique_ptr<NgramIndex> make_index(int64_t longest) {
  check_between("longest", longest, kShortestNgram, kLargestCount);
  return std::make_unique<NgramIndex>(longest);
}

int64_t length_of(const NgramIndex& index) {
  index.check_usable();
  return int64_t(index.tokens().size());
}

void extend(NgramIndex& index, const std::vector<int64_t>& tokens) {
  index.check_usable();
  check_between("token_ids", int64_t(tokens.size()), 0, kLongestText - length_of(index));
  index.extend(tokens.data(), int64_t(tokens.size()));
}

py::tuple propose(NgramIndex& index, int64_t max_tokens) {
  index.check_usable();
  check_between("max_tokens", max_tokens, -kLargestCount, kLargestCount);
  const int64_t count = index.match_length() == 0 ? 0 : std::max<int64_t>(max_tokens, 0);
  py::tuple proposed(count);
  for (int64_t i = 0; i < count; ++i) proposed[size_t(i)] = py::int_(index.proposed(i));
  return py::make_tuple(count == 0 ? 0 : index.match_length(), std::move(proposed));
}

py::tuple token_ids(const NgramIndex& index) {
  index.check_usable();
  return py::tuple(py::cast(index.tokens()));
}

}  // namespace

void bind_lookup(py::module_& module) {
  py::class_<NgramIndex>(module, "NgramIndex")
      .def(py::init(&make_index))
      .def_property_readonly("length", &length_of)
      .def("extend", &extend)
      .def("propose", &propose)
      .def("token_ids", &token_ids);
}

}  // namespace eaglerl
