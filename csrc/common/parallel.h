// Parallel loops on torch's OpenMP pool. A second pool's threads would spin beside torch's and
// halve the speed of both, so the extension does not link OpenMP: it looks up GOMP_parallel, which
// importing torch has loaded into the process.
#pragma once

#include <cstdint>

namespace eaglerl {

using GompParallel = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);

// The pool's entry; null where no pool was found.
GompParallel gomp_parallel();

// Most threads of a loop, whatever the caller asks for.
constexpr int kMostThreads = 1024;

// Calls body(context, begin, end) over [0, count) in pieces of `grain`, which up to `threads`
// threads take as they become free. A single piece runs on the calling thread.
void parallel_ranges(int64_t count, int64_t grain, int threads,
                     void (*body)(void* context, int64_t begin, int64_t end), void* context);

// "gomp", or "none" if no pool was found and every loop is serial.
const char* threading_backend();

template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, Body&& body) {
  parallel_ranges(
      count, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace eaglerl
