// Torch's OpenMP pool. A second pool's threads would spin beside torch's and halve the speed of
// both, so the extension does not link OpenMP: it looks up the functions of the runtime that
// importing torch has loaded into the process.
#pragma once

namespace eaglerl {

struct Gomp {
  void (*parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
  int (*thread_number)();            // within the innermost region
  int (*thread_count)();             // of the innermost region
  void (*set_threads)(int threads);  // of the calling thread's later regions
  int (*pause)(int kind);            // ends the calling thread's pool; null before OpenMP 5.0
};

// Null where the process has no such runtime.
const Gomp* gomp();

}  // namespace eaglerl
