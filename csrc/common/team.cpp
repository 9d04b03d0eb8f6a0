#include "common/team.h"

#include <algorithm>
#include <optional>

#include "common/gomp.h"
#include "common/thread_limit.h"

namespace eaglerl {
namespace {

struct Team {
  void (*body)(void*, const TeamMember&);
  void* context;
  Region* region;
  std::optional<Barrier> barrier{};
  SignalWord ready{};
};

// The team outlives every member: the pool's region ends when all have returned from here.
void enter(void* argument) {
  Team& team = *static_cast<Team*>(argument);
  const int index = gomp()->thread_number();
  const int count = gomp()->thread_count();
  if (index == 0) {
    // Only now is known how many there are: the pool may give fewer threads than asked for.
    team.region->enter();
    team.barrier.emplace(count);
    team.ready.set(1);
  } else {
    team.ready.wait_while(0);
  }
  const TeamMember member = {index, count, &*team.barrier};
  team.body(team.context, member);
  // The pool's own end of a region spins for many milliseconds, on a core that others may need.
  member.wait();
  // While one member is missing, all others wait.
  if (index == 0) team.region->leave(team.barrier->stalled() / std::max(1, count - 1));
}

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.set(round + 1);
    return;
  }
  const double seconds = round_.wait_while(round);
  if (seconds > 0.0) stalled_.fetch_add(int64_t(seconds * 1e9), std::memory_order_relaxed);
}

void run_team(int threads, void (*body)(void*, const TeamMember&), void* context) {
  Region region(threads);
  if (region.threads() == 1) {
    Barrier alone(1);
    body(context, {0, 1, &alone});
    return;
  }
  Team team = {body, context, &region};
  region.run(enter, &team);
}

}  // namespace eaglerl
