#pragma once

#include <pybind11/pybind11.h>

namespace eaglerl {

// The policy's ops on CUDA devices; only where the CUDA sources are built.
void bind_cuda_policy(pybind11::module_& module);

}  // namespace eaglerl
