#include "common/tensor_guard.h"

#include <dlfcn.h>

namespace py = pybind11;

namespace eaglerl {
namespace {

// torch's stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h). A handle is a pointer to an
// at::Tensor, which consists of one reference-counted pointer. Functions return 0 on success.
struct TensorFunctions {
  int32_t (*new_handle)(void* handle, void** result) = nullptr;
  int32_t (*delete_handle)(void* handle) = nullptr;
  int32_t (*data_ptr)(void* handle, void** result) = nullptr;
  int32_t (*storage_size)(void* handle, int64_t* result) = nullptr;
  int32_t (*storage_offset)(void* handle, int64_t* result) = nullptr;
  int32_t (*dim)(void* handle, int64_t* result) = nullptr;
  int32_t (*sizes)(void* handle, int64_t** result) = nullptr;
  int32_t (*strides)(void* handle, int64_t** result) = nullptr;
  int32_t (*dtype)(void* handle, int32_t* result) = nullptr;
  size_t (*element_size)(int32_t dtype) = nullptr;

  bool complete() const {
    return new_handle && delete_handle && data_ptr && storage_size && storage_offset && dim &&
           sizes && strides && dtype && element_size;
  }
};

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

TensorFunctions find_tensor_functions() {
  // Python loads torch with RTLD_LOCAL: its symbols are found through the library only.
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) library = RTLD_DEFAULT;
  TensorFunctions functions;
  find(library, "aoti_torch_new_tensor_handle", functions.new_handle);
  find(library, "aoti_torch_delete_tensor_object", functions.delete_handle);
  find(library, "aoti_torch_get_data_ptr", functions.data_ptr);
  find(library, "aoti_torch_get_storage_size", functions.storage_size);
  find(library, "aoti_torch_get_storage_offset", functions.storage_offset);
  find(library, "aoti_torch_dtype_element_size", functions.element_size);
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

// torch.Tensor, and the descriptor of `_cdata`, the address of a tensor's implementation. Both are
// kept for the lifetime of the process.
struct TensorType {
  PyTypeObject* type;
  PyObject* address;
};

const TensorType& tensor_type() {
  static const TensorType found = [] {
    const py::object type = py::module_::import("torch").attr("Tensor");
    const py::object address = type.attr("__base__").attr("__dict__")["_cdata"];
    return TensorType{reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr()),
                      py::object(address).release().ptr()};
  }();
  return found;
}

// Returns the address of a tensor's implementation (c10::TensorImpl).
void* implementation_of(py::handle tensor) {
  const TensorType& torch = tensor_type();
  if (!PyObject_TypeCheck(tensor.ptr(), torch.type)) {
    throw py::type_error("tensors must be tensors, got " +
                         std::string(py::str(py::type::of(tensor).attr("__name__"))));
  }
  PyObject* number =
      Py_TYPE(torch.address)
          ->tp_descr_get(torch.address, tensor.ptr(), reinterpret_cast<PyObject*>(torch.type));
  if (number == nullptr) throw py::error_already_set();
  void* address = PyLong_AsVoidPtr(number);
  Py_DECREF(number);
  if (address == nullptr) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw py::type_error("tensors must be tensors, got one without an implementation");
  }
  return address;
}

}  // namespace

bool storage_holds(const py::handle& tensor) {
  const TensorFunctions& torch = tensor_functions();
  void* implementation = implementation_of(tensor);
  if (!torch.complete()) return true;
  void* handle = &implementation;
  int64_t bytes = 0, last = 0, axes = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  if (torch.storage_size(handle, &bytes) != 0 || torch.storage_offset(handle, &last) != 0 ||
      torch.dim(handle, &axes) != 0 || torch.sizes(handle, &sizes) != 0 ||
      torch.strides(handle, &strides) != 0 || torch.dtype(handle, &dtype) != 0) {
    return true;
  }
  for (int64_t axis = 0; axis < axes; ++axis) {
    if (sizes[axis] == 0) return true;
    last += (sizes[axis] - 1) * strides[axis];
  }
  return (last + 1) * int64_t(torch.element_size(dtype)) <= bytes;
}

void TensorGuard::HandleDeleter::operator()(void* handle) const {
  tensor_functions().delete_handle(handle);
}

TensorGuard::TensorGuard(const py::sequence& tensors, bool direct) {
  tensors_ = py::tuple(tensors);
  for (const py::handle tensor : tensors_) implementation_of(tensor);
  if (!direct || !tensor_functions().complete()) {
    layouts_ = layouts(tensors_);
    return;
  }
  for (const py::handle tensor : tensors_) {
    void* implementation = implementation_of(tensor);
    void* handle = nullptr;
    Watched watched;
    if (tensor_functions().new_handle(&implementation, &handle) != 0) {
      throw std::runtime_error("torch gave no handle of a tensor");
    }
    watched.handle.reset(handle);
    if (!read_layout(handle, watched.layout)) {
      throw std::invalid_argument("tensors must have memory of their own, and at most " +
                                  std::to_string(kMostAxes) + " axes");
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
    layouts.append(
        py::make_tuple(tensor.attr("data_ptr")(), tensor.attr("untyped_storage")().attr("nbytes")(),
                       tensor.attr("shape"), tensor.attr("stride")(), tensor.attr("dtype")));
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

// Makes two calls into torch for each tensor; unchanged() makes six and compares an array.
bool TensorGuard::memory_unchanged() const {
  check_usable();
  if (layouts_) return unchanged();
  const TensorFunctions& torch = tensor_functions();
  for (const Watched& watched : watched_) {
    void* data = nullptr;
    int64_t bytes = 0;
    if (torch.data_ptr(watched.handle.get(), &data) != 0 || data != watched.layout.data ||
        torch.storage_size(watched.handle.get(), &bytes) != 0 ||
        bytes != watched.layout.storage_bytes) {
      return false;
    }
  }
  return true;
}

bool TensorGuard::first_has_rows(int64_t rows) const {
  check_usable();
  if (layouts_) return unchanged();
  if (watched_.empty()) return false;
  void* handle = watched_[0].handle.get();
  int64_t axes = 0, *sizes = nullptr;
  return tensor_functions().dim(handle, &axes) == 0 && axes == 2 &&
         tensor_functions().sizes(handle, &sizes) == 0 && sizes[0] == rows;
}

void bind_tensor_guard(py::module_& module) {
  py::class_<TensorGuard>(module, "TensorGuard")
      .def(py::init<const py::sequence&, bool>(), py::arg("tensors"), py::arg("direct") = true)
      .def("unchanged", &TensorGuard::unchanged);
  module.def("storage_holds", &storage_holds);
}

}  // namespace eaglerl
