#include "common/parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace eaglerl {
namespace {

GompParallel find_gomp_parallel() {
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

struct Loop {
  std::atomic<int64_t> next{0};
  int64_t count;
  int64_t grain;
  void (*body)(void*, int64_t, int64_t);
  void* context;
};

void run_pieces(void* argument) {
  Loop& loop = *static_cast<Loop*>(argument);
  for (;;) {
    const int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    loop.body(loop.context, begin, std::min(begin + loop.grain, loop.count));
  }
}

}  // namespace

GompParallel gomp_parallel() {
  static const GompParallel found = find_gomp_parallel();
  return found;
}

void parallel_ranges(int64_t count, int64_t grain, int threads,
                     void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= 0) return;
  grain = std::clamp<int64_t>(grain, 1, count);
  const int64_t pieces = (count - 1) / grain + 1;
  const int64_t workers = std::min<int64_t>(std::min(threads, kMostThreads), pieces);
  if (workers <= 1 || gomp_parallel() == nullptr) {
    body(context, 0, count);
    return;
  }
  Loop loop;
  loop.count = count;
  loop.grain = grain;
  loop.body = body;
  loop.context = context;
  gomp_parallel()(run_pieces, &loop, static_cast<unsigned>(workers), 0);
}

const char* threading_backend() { return gomp_parallel() == nullptr ? "none" : "gomp"; }

}  // namespace eaglerl
