#include "tensor_guard.h"

#include <dlfcn.h>

namespace py = pybind11;

namespace eaglerl {
namespace {

// torch's stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h). A handle is a pointer to an
// at::Tensor, which is a counted pointer and nothing else. Functions return 0 where they succeed.
struct TensorFunctions {
  int32_t (*new_handle)(void* handle, void** result) = nullptr;
  int32_t (*delete_handle)(void* handle) = nullptr;
  int32_t (*data_ptr)(void* handle, void** result) = nullptr;
  int32_t (*storage_size)(void* handle, int64_t* result) = nullptr;
  int32_t (*dim)(void* handle, int64_t* result) = nullptr;
  int32_t (*sizes)(void* handle, int64_t** result) = nullptr;
  int32_t (*strides)(void* handle, int64_t** result) = nullptr;
  int32_t (*dtype)(void* handle, int32_t* result) = nullptr;

  bool complete() const {
    return new_handle && delete_handle && data_ptr && storage_size && dim && sizes && strides &&
           dtype;
  }
};

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

TensorFunctions find_tensor_functions() {
  // torch is in the process, but Python loads it so that its names are not the process's own.
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) library = RTLD_DEFAULT;
  TensorFunctions functions;
  find(library, "aoti_torch_new_tensor_handle", functions.new_handle);
  find(library, "aoti_torch_delete_tensor_object", functions.delete_handle);
  find(library, "aoti_torch_get_data_ptr", functions.data_ptr);
  find(library, "aoti_torch_get_storage_size", functions.storage_size);
  find(library, "aoti_torch_get_dim", functions.dim);
  find(library, "aoti_torch_get_sizes", functions.sizes);
  find(library, "aoti_torch_get_strides", functions.strides);
  find(library, "aoti_torch_get_dtype", functions.dtype);
  return functions;
}

const TensorFunctions& tensor_functions() {
  static const TensorFunctions functions = find_tensor_functions();
  return functions;
}

// A type of torch's own, so that no other object's number is taken for a tensor's address.
py::object tensor_type() { return py::module_::import("torch").attr("Tensor"); }

}  // namespace

void TensorGuard::HandleDeleter::operator()(void* handle) const {
  tensor_functions().delete_handle(handle);
}

TensorGuard::TensorGuard(const py::sequence& tensors, bool direct) {
  const py::object type = tensor_type();
  for (const py::handle tensor : tensors) {
    if (!py::isinstance(tensor, type)) {
      throw py::type_error("tensors must be tensors, got " +
                           std::string(py::str(py::type::of(tensor).attr("__name__"))));
    }
    if (tensor.attr("dim")().cast<int64_t>() > kMostAxes) {
      throw std::invalid_argument("tensors must have at most " + std::to_string(kMostAxes) +
                                  " axes");
    }
  }
  tensors_ = py::tuple(tensors);
  if (!direct || !tensor_functions().complete()) {
    layouts_ = layouts(tensors_);
    return;
  }
  for (const py::handle tensor : tensors_) {
    const py::object base = type.attr("__base__");
    void* implementation = reinterpret_cast<void*>(
        base.attr("_cdata").attr("__get__")(tensor, type).cast<uintptr_t>());
    void* handle = nullptr;
    Watched watched;
    if (tensor_functions().new_handle(&implementation, &handle) != 0) {
      throw std::runtime_error("torch gave no handle of a tensor");
    }
    watched.handle.reset(handle);
    if (!read_layout(handle, watched.layout)) {
      throw std::invalid_argument("tensors must have memory of their own");
    }
    watched_.push_back(std::move(watched));
  }
}

bool TensorGuard::read_layout(void* handle, Layout& layout) {
  const TensorFunctions& torch = tensor_functions();
  int64_t *sizes = nullptr, *strides = nullptr;
  const bool known = torch.data_ptr(handle, &layout.data) == 0 &&
                     torch.storage_size(handle, &layout.storage_bytes) == 0 &&
                     torch.dim(handle, &layout.axes) == 0 && torch.sizes(handle, &sizes) == 0 &&
                     torch.strides(handle, &strides) == 0 &&
                     torch.dtype(handle, &layout.dtype) == 0;
  if (!known || layout.axes > kMostAxes) return false;
  for (int64_t axis = 0; axis < layout.axes; ++axis) {
    layout.sizes_and_strides[axis] = sizes[axis];
    layout.sizes_and_strides[kMostAxes + axis] = strides[axis];
  }
  return true;
}

py::tuple TensorGuard::layouts(const py::tuple& tensors) {
  py::list layouts;
  for (const py::handle tensor : tensors) {
    layouts.append(py::make_tuple(tensor.attr("data_ptr")(),
                                  tensor.attr("untyped_storage")().attr("nbytes")(),
                                  tensor.attr("shape"), tensor.attr("stride")(),
                                  tensor.attr("dtype")));
  }
  return py::tuple(layouts);
}

bool TensorGuard::unchanged() const {
  check_usable();
  if (layouts_) return layouts(tensors_).equal(layouts_);
  for (const Watched& watched : watched_) {
    Layout now;
    if (!read_layout(watched.handle.get(), now) || !(now == watched.layout)) return false;
  }
  return true;
}

void bind_tensor_guard(py::module_& module) {
  py::class_<TensorGuard>(module, "TensorGuard")
      .def(py::init<const py::sequence&, bool>(), py::arg("tensors"), py::arg("direct") = true)
      .def("unchanged", &TensorGuard::unchanged);
}

}  // namespace eaglerl
