#include "common/thread_bindings.h"

#include "common/checks.h"
#include "common/gomp.h"
#include "common/parallel.h"
#include "common/thread_limit.h"

namespace py = pybind11;

namespace eaglerl {

void bind_threads(py::module_& module) {
  module.def("threading_backend", &threading_backend, "'gomp', or 'none' if loops are serial.");
  module.def(
      "begin_cycle",
      [](int threads) {
        check_between("threads", threads, 1, kMostThreads);
        begin_cycle(threads);
      },
      "Applies the limit of threads to torch's operators on this thread, until end_cycle().");
  module.def(
      "end_cycle",
      [] {
        end_cycle();
        return lasting_limit();
      },
      "Gives torch its threads back. Returns the limit if it is no passing disturbance, else 0.");
  module.def(
      "release_pool",
      [] {
        const Gomp* runtime = gomp();
        constexpr int kSoftPause = 1;  // omp_pause_soft: settings stay
        return runtime != nullptr && runtime->pause != nullptr && runtime->pause(kSoftPause) == 0;
      },
      "Ends the threads that wait for this thread's next parallel region. Returns whether it "
      "could.");
  module.def("cycle_threads", &cycle_threads,
             "The threads that begin_cycle() was given on this thread; 0 outside of a cycle.");
}

}  // namespace eaglerl
