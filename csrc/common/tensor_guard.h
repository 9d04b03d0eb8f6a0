// Tells whether torch's tensors still are what they were when their addresses were taken.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

// Keeps tensors, and remembers where their memory is, how much of it, and how it is laid out. All
// of that can change behind a tensor that stays the same object: by `set_`, `resize_`, `t_`,
// `tensor.data = other`, or an operation on its storage.
class TensorGuard : public PythonObject {
 public:
  // `direct`: ask torch's C interface, where this process has it, instead of Python's methods.
  TensorGuard(const pybind11::sequence& tensors, bool direct);
  TensorGuard(TensorGuard&&) = default;

  // All of them must be called with Python's lock. Whether nothing has changed:
  bool unchanged() const;
  // whether memory is where it was, and as much of it: less, for whom that is all that matters;
  bool memory_unchanged() const;
  // whether the first tensor, a matrix, still has so many rows.
  bool first_has_rows(int64_t rows) const;

 private:
  // Sizes and strides are compared in a fixed array; no tensor of a policy, a cache or an encoder
  // has more than three axes.
  static constexpr int64_t kMostAxes = 4;
  struct HandleDeleter {
    void operator()(void* handle) const;
  };
  struct Layout {
    void* data = nullptr;
    int64_t storage_bytes = 0;
    int64_t axes = 0;
    int32_t dtype = 0;
    std::array<int64_t, 2 * kMostAxes> sizes_and_strides = {};

    bool operator==(const Layout& other) const {
      return data == other.data && storage_bytes == other.storage_bytes && axes == other.axes &&
             dtype == other.dtype && sizes_and_strides == other.sizes_and_strides;
    }
  };
  struct Watched {
    std::unique_ptr<void, HandleDeleter> handle;  // a reference to the tensor, of torch's own
    Layout layout;
  };

  static bool read_layout(void* handle, Layout& layout);
  static pybind11::tuple layouts(const pybind11::tuple& tensors);

  pybind11::tuple tensors_;
  pybind11::object layouts_;  // where torch's C interface was not found
  std::vector<Watched> watched_;
};

// Whether a tensor's storage holds all of its elements; true where torch's C interface cannot tell.
bool storage_holds(const pybind11::handle& tensor);

void bind_tensor_guard(pybind11::module_& module);

}  // namespace eaglerl
