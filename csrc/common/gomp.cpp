#include "common/gomp.h"

#include <dlfcn.h>

#include <optional>

namespace eaglerl {
namespace {

template <typename Function>
bool find(const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  return function != nullptr;
}

std::optional<Gomp> find_gomp() {
  Gomp found;
  if (find("GOMP_parallel", found.parallel) && find("omp_get_thread_num", found.thread_number) &&
      find("omp_get_num_threads", found.thread_count) &&
      find("omp_set_num_threads", found.set_threads)) {
    find("omp_pause_resource_all", found.pause);
    return found;
  }
  return std::nullopt;
}

}  // namespace

const Gomp* gomp() {
  static const std::optional<Gomp> found = find_gomp();
  return found ? &*found : nullptr;
}

}  // namespace eaglerl
