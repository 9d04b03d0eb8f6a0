// A number that threads wait for.
#pragma once

#include <atomic>
#include <cstdint>

namespace eaglerl {

constexpr int kCacheLineBytes = 64;

// Seconds of a clock that never goes back.
double seconds_now();

// Waiting spins for about 100 us, far longer than threads that all have a core ever differ by. Then
// it yields the core, for up to 4 ms as long as no one else wants it, and then sleeps. A thread
// that went on would use up its share of the time, and the one that it waits for would get a core
// even later. But on a virtual machine, whose cores are taken away now and then, to wake up takes
// long.
class alignas(kCacheLineBytes) SignalWord {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  // Returns when the value is another one: the seconds it took if that was after spinning, else 0.
  double wait_while(uint32_t old);

  // Changes the value and wakes who waits.
  void set(uint32_t value);
  void add(uint32_t more);

 private:
  void wake();

  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
};

}  // namespace eaglerl
