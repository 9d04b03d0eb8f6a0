// A group of threads that goes through many short steps together, in one parallel region of the
// OpenMP pool that torch already runs (see gomp.h). Waking the pool takes about 5 us; a pass of a
// decoder has some 200 steps, of which many take less than that.
#pragma once

#include <atomic>
#include <cstdint>

#include "common/signal_word.h"

namespace eaglerl {

// All members wait until the last one arrives.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

  // Seconds that members have spent in waits that were longer than they are where all have a core.
  double stalled() const { return double(stalled_.load(std::memory_order_relaxed)) * 1e-9; }

 private:
  const int members_;
  alignas(kCacheLineBytes) std::atomic<int> arrived_{0};
  std::atomic<int64_t> stalled_{0};  // nanoseconds
  SignalWord round_;
};

struct Range {
  int64_t begin;
  int64_t end;
};

struct TeamMember {
  int index;
  int count;
  Barrier* barrier;

  void wait() const {
    if (count > 1) barrier->wait();
  }

  // The member's fixed share of so many pieces of work.
  Range share(int64_t pieces) const {
    return {pieces * index / count, pieces * (index + 1) / count};
  }
};

// Calls body(context, member) once per member, at the same time, with at most `threads` members,
// and returns when all have returned. Fewer take part where the pool gives fewer.
void run_team(int threads, void (*body)(void* context, const TeamMember& member), void* context);

template <typename Body>
void with_team(int threads, Body&& body) {
  run_team(
      threads,
      [](void* context, const TeamMember& member) { (*static_cast<Body*>(context))(member); },
      &body);
}

// Work of one step that members take piece by piece as they become free.
class alignas(kCacheLineBytes) WorkQueue {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // The first of the next `grain` pieces.
  int64_t take(int64_t grain) { return next_.fetch_add(grain, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> next_{0};
};

}  // namespace eaglerl
