// Parallel loops on the OpenMP pool that torch already runs. A second pool would keep its threads
// spinning beside torch's and halve the speed of both, so the extension links no OpenMP: it looks
// up GOMP_parallel in the process, which torch's import has put there.
#pragma once

#include <cstdint>

namespace eaglerl {

// Threads of a loop at most, however many are asked for.
constexpr int kMostThreads = 1024;

// Calls body(context, begin, end) over [0, count) in pieces of `grain`, taken by up to `threads`
// threads as they become free. Runs on the calling thread where one piece is all there is.
void parallel_ranges(int64_t count, int64_t grain, int threads,
                     void (*body)(void* context, int64_t begin, int64_t end), void* context);

// "gomp", or "none" where no pool was found (then every loop is serial).
const char* threading_backend();

template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, Body&& body) {
  parallel_ranges(
      count, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace eaglerl
