#include "common/signal_word.h"

#include <sched.h>

#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eaglerl {
namespace {

constexpr int kSpins = 4000;  // about 100 us
constexpr double kYieldSeconds = 4e-3;
constexpr double kAloneSeconds = 1e-4;  // a yield takes less where no one else wants the core
constexpr long kSleepNanoseconds = 1'000'000;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sleeps unless the value is another one already; may return early.
void sleep_while(std::atomic<uint32_t>& word, uint32_t old) {
#if defined(__linux__)
  static_assert(sizeof(word) == sizeof(uint32_t), "the kernel compares four bytes");
  const timespec longest = {0, kSleepNanoseconds};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, &longest, nullptr, 0);
#else
  if (word.load(std::memory_order_acquire) == old) sched_yield();
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

}  // namespace

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double SignalWord::wait_while(uint32_t old) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (value() != old) return 0.0;
    pause_briefly();
  }
  const double began = seconds_now();
  double now = began, yielded = 0.0;
  while (value() == old && now - began < kYieldSeconds && yielded < kAloneSeconds) {
    const double before = now;
    sched_yield();
    now = seconds_now();
    yielded = now - before;
  }
  sleepers_.fetch_add(1, std::memory_order_relaxed);
  while (value() == old) sleep_while(value_, old);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  return seconds_now() - began;
}

void SignalWord::set(uint32_t value) {
  value_.store(value, std::memory_order_release);
  wake();
}

void SignalWord::add(uint32_t more) {
  value_.fetch_add(more, std::memory_order_release);
  wake();
}

// A fence between the store and this load would cost every step of a pass 0.2 us. Without one a
// sleeper can be overlooked, which is why a sleep ends by itself.
void SignalWord::wake() {
  if (sleepers_.load(std::memory_order_relaxed) > 0) wake_all(value_);
}

}  // namespace eaglerl
