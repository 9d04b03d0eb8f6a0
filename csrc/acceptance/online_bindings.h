#pragma once

#include <pybind11/pybind11.h>

namespace eaglerl {

void bind_accept(pybind11::module_& module);
void bind_online(pybind11::module_& module);
void bind_cycle(pybind11::module_& module);
void bind_batch(pybind11::module_& module);
void bind_selection(pybind11::module_& module);

}  // namespace eaglerl
