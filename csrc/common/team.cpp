#include "common/team.h"

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <optional>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/parallel.h"

namespace eaglerl {
namespace {

// About 100 us: far more than members that all have a core ever differ by.
constexpr int kSpins = 4000;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Pool {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_number)();
  int (*thread_count)();

  bool complete() const { return parallel && thread_number && thread_count; }
};

template <typename Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const Pool& pool() {
  static const Pool found = {find<decltype(Pool::parallel)>("GOMP_parallel"),
                             find<decltype(Pool::thread_number)>("omp_get_thread_num"),
                             find<decltype(Pool::thread_count)>("omp_get_num_threads")};
  return found;
}

struct Region {
  void (*body)(void*, const TeamMember&);
  void* context;
  std::optional<Barrier> barrier;
  std::atomic<bool> ready{false};
};

// The region outlives every member: GOMP_parallel returns when all have returned from here.
void enter(void* argument) {
  Region& region = *static_cast<Region*>(argument);
  const int index = pool().thread_number();
  const int count = pool().thread_count();
  if (index == 0) {
    // Only now is known how many there are: the pool may give fewer threads than asked for.
    region.barrier.emplace(count);
    region.ready.store(true, std::memory_order_release);
  } else {
    while (!region.ready.load(std::memory_order_acquire)) pause_briefly();
  }
  region.body(region.context, {index, count, &*region.barrier});
}

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin) {
    if (spin < kSpins) {
      pause_briefly();
    } else {
      sched_yield();
    }
  }
}

void run_team(int threads, void (*body)(void*, const TeamMember&), void* context) {
  threads = std::clamp(threads, 1, kMostThreads);
  if (threads == 1 || !pool().complete()) {
    Barrier alone(1);
    body(context, {0, 1, &alone});
    return;
  }
  Region region;
  region.body = body;
  region.context = context;
  pool().parallel(enter, &region, unsigned(threads), 0);
}

}  // namespace eaglerl
