#include "tree_bindings.h"

namespace eaglerl {

void bind_tree(pybind11::module_&) {}

}  // namespace eaglerl
