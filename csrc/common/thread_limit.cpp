#include "common/thread_limit.h"

#include <algorithm>
#include <mutex>

#include "common/gomp.h"
#include "common/signal_word.h"
#include "common/thread_chooser.h"

namespace eaglerl {
namespace {

// One for all threads that call: what keeps the cores busy is the same for all of them.
std::mutex mutex;
ThreadChooser chooser;

// A pool that sleeps takes up to 100 us to start.
constexpr double kLongestStart = 2e-4;

thread_local int threads_of_cycle = 0;
thread_local int cycle_depth = 0;

void limit_torch(int limit) {
  if (gomp() != nullptr) gomp()->set_threads(std::min(threads_of_cycle, limit));
}

}  // namespace

Region::Region(int wanted) : threads_(std::clamp(wanted, 1, kMostThreads)) {
  if (gomp() == nullptr) threads_ = 1;
  if (threads_ == 1) return;
  began_ = seconds_now();
  const std::lock_guard<std::mutex> lock(mutex);
  threads_ = chooser.choose(threads_, began_);
}

void Region::enter() {
  given_ = gomp()->thread_count();
  entered_ = seconds_now();
}

void Region::leave(double stalled) {
  stalled_ = stalled;
  left_ = seconds_now();
}

void Region::run(void (*body)(void*), void* context) {
  gomp()->parallel(body, context, unsigned(threads_), 0);
  const double now = seconds_now();
  // The pool, too, waits: at the beginning and at the end of a region.
  const double pool = now - left_ + entered_ - began_;
  if (pool > kLongestStart) stalled_ += pool;
  int before, after;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    before = chooser.limit();
    chooser.observe(given_, now, {now - began_, stalled_});
    after = chooser.limit();
  }
  if (threads_of_cycle > 0 && after < before) limit_torch(after);
}

void begin_cycle(int threads) {
  if (cycle_depth++ > 0) return;
  threads_of_cycle = threads;
  int limit;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    limit = chooser.limit();
  }
  if (limit < threads) limit_torch(limit);
}

void end_cycle() {
  if (cycle_depth == 0 || --cycle_depth > 0) return;
  limit_torch(threads_of_cycle);
  threads_of_cycle = 0;
}

int cycle_threads() { return threads_of_cycle; }

int lasting_limit() {
  const std::lock_guard<std::mutex> lock(mutex);
  return chooser.lasts() ? chooser.limit() : 0;
}

}  // namespace eaglerl
