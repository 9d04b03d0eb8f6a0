// NumPy arrays that bindings read in place instead of converting them.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "acceptance/draft_view.h"

namespace eaglerl {

template <typename T>
const T* read_array(const char* name, const char* type, pybind11::handle value,
                    pybind11::ssize_t count) {
  if (!pybind11::isinstance<pybind11::array_t<T>>(value)) {
    const std::string found =
        pybind11::isinstance<pybind11::array>(value)
            ? "one of " + std::string(pybind11::str(value.attr("dtype")))
            : std::string(pybind11::str(pybind11::type::of(value).attr("__name__")));
    throw pybind11::type_error(std::string(name) + " must be an array of " + type + ", got " +
                               found);
  }
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(value);
  if (array.ndim() != 1 || array.shape(0) != count ||
      (count > 1 && array.strides(0) != pybind11::ssize_t(sizeof(T))) ||
      (array.flags() & pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    throw pybind11::value_error(std::string(name) + " must be contiguous, of shape (" +
                                std::to_string(count) + ",), got shape " +
                                std::string(pybind11::str(value.attr("shape"))) + " and strides " +
                                std::string(pybind11::str(value.attr("strides"))));
  }
  return static_cast<const T*>(array.data());
}

inline std::string text_of(pybind11::handle value) { return std::string(pybind11::str(value)); }

// An array of any number of axes, in C order.
template <typename T>
const T* read_weights(const char* name, const char* type, pybind11::handle value,
                      std::initializer_list<int64_t> shape) {
  if (!pybind11::isinstance<pybind11::array_t<T>>(value)) {
    throw pybind11::type_error(std::string(name) + " must be an array of " + type + ", got " +
                               text_of(pybind11::type::of(value).attr("__name__")));
  }
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(value);
  const bool fits = array.ndim() == pybind11::ssize_t(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), array.shape());
  const int wanted = pybind11::array::c_style | pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!fits || (array.flags() & wanted) != wanted) {
    pybind11::list sizes;
    for (const int64_t size : shape) sizes.append(size);
    throw pybind11::value_error(std::string(name) + " must be contiguous, of shape " +
                                text_of(pybind11::tuple(sizes)) + ", got shape " +
                                text_of(array.attr("shape")) + " and strides " +
                                text_of(array.attr("strides")));
  }
  return static_cast<const T*>(array.data());
}

// A draft of a depth within `sizes`, read in place.
inline DraftView read_draft(const DraftSizes& sizes, pybind11::handle scores, int64_t depth,
                            int64_t context_length, int64_t match_length, int64_t lookup_length,
                            pybind11::handle nodes) {
  DraftView draft = {};
  draft.scores = read_array<float>("scores", "float32", scores, sizes.pool_size(depth));
  draft.depth = depth;
  draft.context_length = context_length;
  draft.match_length = match_length;
  draft.lookup_length = lookup_length;
  if (!nodes.is_none()) {
    draft.lookup_nodes = read_array<int64_t>("lookup_nodes", "int64", nodes, depth + 1);
  }
  return draft;
}

}  // namespace eaglerl
