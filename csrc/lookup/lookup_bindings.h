#pragma once

#include <pybind11/pybind11.h>

namespace eaglerl {

void bind_lookup(pybind11::module_& module);

}  // namespace eaglerl
