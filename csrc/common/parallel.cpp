#include "common/parallel.h"

#include <algorithm>
#include <atomic>

#include "common/gomp.h"
#include "common/signal_word.h"

namespace eaglerl {
namespace {

struct Loop {
  std::atomic<int64_t> next{0};
  int64_t count;
  int64_t grain;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  Region* region;
  SignalWord finished{};  // other threads than the caller's
};

void run_pieces(Loop& loop) {
  for (;;) {
    const int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    loop.body(loop.context, begin, std::min(begin + loop.grain, loop.count));
  }
}

void enter(void* argument) {
  Loop& loop = *static_cast<Loop*>(argument);
  const bool first = gomp()->thread_number() == 0;
  if (first) loop.region->enter();
  run_pieces(loop);
  if (!first) return loop.finished.add(1);
  // The pool's own end of a region spins for many milliseconds, on a core that the others may need.
  const auto others = uint32_t(gomp()->thread_count() - 1);
  double stalled = 0.0;
  for (uint32_t finished; (finished = loop.finished.value()) < others;) {
    stalled += loop.finished.wait_while(finished);
  }
  loop.region->leave(stalled);
}

}  // namespace

void parallel_ranges(int64_t count, int64_t grain, int threads,
                     void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= 0) return;
  grain = std::clamp<int64_t>(grain, 1, count);
  const int64_t pieces = (count - 1) / grain + 1;
  Region region(int(std::min<int64_t>(threads, pieces)));
  if (region.threads() == 1) {
    body(context, 0, count);
    return;
  }
  Loop loop;
  loop.count = count;
  loop.grain = grain;
  loop.body = body;
  loop.context = context;
  loop.region = &region;
  region.run(enter, &loop);
}

const char* threading_backend() { return gomp() == nullptr ? "none" : "gomp"; }

}  // namespace eaglerl
