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

// Returns when `done()` is true.
template <typename Done>
void wait_until(const Done& done) {
  for (int spins = 0; !done();) {
    if (spins < kSpins) {
      ++spins;
      pause_briefly();
    } else {
      sched_yield();
    }
  }
}

// What tells the members of a region apart.
struct Numbers {
  int (*thread_number)();
  int (*thread_count)();
};

template <typename Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const Numbers& numbers() {
  static const Numbers found = {find<decltype(Numbers::thread_number)>("omp_get_thread_num"),
                                find<decltype(Numbers::thread_count)>("omp_get_num_threads")};
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
  const int index = numbers().thread_number();
  const int count = numbers().thread_count();
  if (index == 0) {
    // Only now is known how many there are: the pool may give fewer threads than asked for.
    region.barrier.emplace(count);
    region.ready.store(true, std::memory_order_release);
  } else {
    wait_until([&] { return region.ready.load(std::memory_order_acquire); });
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
  wait_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

void run_team(int threads, void (*body)(void*, const TeamMember&), void* context) {
  threads = std::clamp(threads, 1, kMostThreads);
  const bool found = gomp_parallel() && numbers().thread_number && numbers().thread_count;
  if (threads == 1 || !found) {
    Barrier alone(1);
    body(context, {0, 1, &alone});
    return;
  }
  Region region;
  region.body = body;
  region.context = context;
  gomp_parallel()(enter, &region, unsigned(threads), 0);
}

}  // namespace eaglerl
