#pragma once

#include <pybind11/pybind11.h>

namespace eaglerl {

// Binds the policy's ops for CUDA devices. Exists only if the CUDA sources are built.
void bind_cuda_policy(pybind11::module_& module);

}  // namespace eaglerl
