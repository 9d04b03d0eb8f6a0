// Parallel loops on torch's OpenMP pool (see gomp.h).
#pragma once

#include <cstdint>

#include "common/thread_limit.h"

namespace eaglerl {

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
