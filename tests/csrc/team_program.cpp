// Runs teams and loops on a pool of plain threads, which stands in for OpenMP's: ThreadSanitizer
// knows nothing of the synchronisation within OpenMP's own library. A member may arrive late.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/parallel.h"
#include "common/team.h"
#include "common/thread_limit.h"

namespace {

std::atomic<int> late_milliseconds{0};  // of every thread but the first
std::atomic<int> pool_threads{8};       // the most that the pool gives
std::atomic<int> torch_threads{0};
thread_local int number = 0;
thread_local int count = 1;

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* context, unsigned threads, unsigned) {
  const int given = std::min(int(threads), pool_threads.load());
  std::vector<std::thread> others;
  for (int i = 1; i < given; ++i) {
    others.emplace_back([=] {
      number = i;
      count = given;
      std::this_thread::sleep_for(std::chrono::milliseconds(late_milliseconds));
      body(context);
    });
  }
  count = given;
  body(context);
  for (std::thread& other : others) other.join();
  count = 1;
}

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return count; }
void omp_set_num_threads(int threads) { torch_threads = threads; }
}

namespace {

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

// Every step adds to what all members wrote in the step before. Returns how many took part.
int run_steps(int threads, int steps = 200) {
  std::vector<long> values(8, 1), sums(8, 0);
  int members = 0;
  eaglerl::with_team(threads, [&](const eaglerl::TeamMember& member) {
    if (member.index == 0) members = member.count;
    for (int step = 0; step < steps; ++step) {
      const eaglerl::Range own = member.share(8);
      for (int64_t i = own.begin; i < own.end; ++i) {
        sums[i] = 0;
        for (long value : values) sums[i] = (sums[i] + value) % 1'000'003;
      }
      member.wait();
      for (int64_t i = own.begin; i < own.end; ++i) values[i] = sums[i] + i;
      member.wait();
    }
  });
  std::vector<long> expected(8, 1);
  for (int step = 0; step < steps; ++step) {
    long sum = 0;
    for (long value : expected) sum = (sum + value) % 1'000'003;
    for (int i = 0; i < 8; ++i) expected[i] = sum + i;
  }
  check(values == expected, "a team's results depend on its threads");
  return members;
}

void run_loop(int threads) {
  std::vector<std::atomic<int>> taken(1000);
  eaglerl::parallel_for(1000, 7, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++taken[i];
  });
  for (const std::atomic<int>& times : taken) check(times == 1, "a piece was left out or repeated");
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) {
    check(run_steps(threads) <= threads, "a team is larger than it was asked to be");
    run_loop(threads);
  }
  pool_threads = 2;
  check(run_steps(8) <= 2, "a team is larger than the pool");
  run_loop(8);
  pool_threads = 8;

  // Members that arrive 50 ms late hold a step up, but not for ever, and soon there are none. A
  // single step, since longer work might be worth the wait.
  late_milliseconds = 50;
  eaglerl::begin_cycle(2);
  int members = 0;
  for (int region = 0; region < 100 && members != 1; ++region) {
    members = run_steps(2, 1);
    run_loop(2);
  }
  check(members == 1, "late members still take part");
  check(torch_threads == 1, "torch's operators use more threads than the limit");
  check(eaglerl::cycle_threads() == 2, "the cycle has forgotten its threads");
  eaglerl::begin_cycle(1);
  eaglerl::end_cycle();
  check(torch_threads == 1, "a cycle within the cycle has given torch's threads back");
  eaglerl::end_cycle();
  check(torch_threads == 2, "torch's threads were not given back");
  check(eaglerl::cycle_threads() == 0, "the cycle has not ended");

  // Once they are in time again, they take part again.
  late_milliseconds = 0;
  for (int region = 0; members == 1; ++region) {
    members = run_steps(2);
    run_loop(2);
  }
  check(members == 2, "members did not come back");

  // Callers on several threads share the limit.
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([] {
      for (int region = 0; region < 20; ++region) {
        run_steps(3);
        run_loop(3);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  return 0;
}
