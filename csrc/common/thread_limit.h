// The process's limit of threads, which follows how long they wait for one another.
#pragma once

namespace eaglerl {

// Most threads of a region, whatever the caller asks for.
constexpr int kMostThreads = 1024;

// A parallel region: asks for its threads, and reports at its end how long it took.
class Region {
 public:
  explicit Region(int wanted);

  // Threads to start; 1 means that there is nothing to start, and nothing to report.
  int threads() const { return threads_; }

  // Calls body(context) on as many threads as the pool gives, of which the first one calls `enter`
  // at the beginning and `leave` at the end.
  void run(void (*body)(void*), void* context);

  void enter();
  // `stalled`: seconds for which threads have waited for one that had no core.
  void leave(double stalled);

 private:
  double began_ = 0.0;
  double entered_ = 0.0;
  double left_ = 0.0;
  double stalled_ = 0.0;
  int threads_;
  int given_ = 1;
};

// From here on to `end_cycle`, torch's own regions on this thread, too, use no more threads than
// the limit. Regions of the extension may try more. A cycle within a cycle changes nothing.
void begin_cycle(int threads);
void end_cycle();

// The number that the outermost `begin_cycle` was given; 0 outside of a cycle.
int cycle_threads();

// The limit, if it has lasted; 0 if there is none or if it may be a passing disturbance.
int lasting_limit();

}  // namespace eaglerl
