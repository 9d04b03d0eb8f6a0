// Detects tensors that changed after their addresses were passed to native code.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

// Keeps tensors alive and remembers the address, size and layout of their memory. All of these can
// change while the tensor stays the same object: by `set_`, `resize_`, `t_`, `tensor.data = other`,
// or an operation on its storage.
class TensorGuard : public PythonObject {
 public:
  // `direct`: use torch's C interface, if the process has it, instead of Python methods.
  TensorGuard(const pybind11::sequence& tensors, bool direct);
  TensorGuard(TensorGuard&&) = default;

  // The GIL must be held for all of these.
  // Whether address, size, shape, strides and dtype of all tensors are as they were.
  bool unchanged() const;
  // Whether address and size of the memory are as they were: a third of the work.
  bool memory_unchanged() const;
  // Whether the first tensor is a matrix of that many rows.
  bool first_has_rows(int64_t rows) const;

 private:
  // Sizes and strides are kept in a fixed array: tensors of policies, caches and encoders have at
  // most three axes.
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
    std::unique_ptr<void, HandleDeleter> handle;  // owns a reference to the tensor
    Layout layout;
  };

  static bool read_layout(void* handle, Layout& layout);
  static pybind11::tuple layouts(const pybind11::tuple& tensors);

  pybind11::tuple tensors_;
  pybind11::object layouts_;  // used without torch's C interface
  std::vector<Watched> watched_;
};

// Whether a tensor's storage holds all of its elements; true if torch's C interface cannot tell.
bool storage_holds(const pybind11::handle& tensor);

void bind_tensor_guard(pybind11::module_& module);

}  // namespace eaglerl
