// How many threads work side by side. A step of a pass ends when its last thread does, so where
// other processes keep the cores busy, a second thread that waits for its turn holds up the first.
#pragma once

namespace eaglerl {

struct RegionTimes {
  double seconds;  // of the whole region
  double stalled;  // of these, what threads spent waiting for one that had no core
};

// Chooses from what regions took. Times are seconds of one clock; the class reads none itself.
//
// Work of w seconds takes w / n and the stalls on n threads, and w / m on m fewer. What n threads
// have lost against m is added up; n that have lost too much make way for m. Time that was gained
// makes up for a loss but is not saved up, so that a change is noticed soon.
class ThreadChooser {
 public:
  // Returns the threads of a region that could use `wanted`: all, or the limit. Some time after the
  // limit was lowered, it is raised on trial.
  int choose(int wanted, double now);

  // Takes note of a region that ended at `now`.
  void observe(int threads, double now, const RegionTimes& times);

  // The most threads that have not held each other up; kNoLimit at first. A trial does not count.
  int limit() const { return trial_ ? held_ : limit_; }

  // Whether the limit has held through so many trials that it is no passing disturbance.
  bool lasts() const { return failures_ >= kLastingFailures; }

  static constexpr int kNoLimit = 1 << 20;
  static constexpr int kLastingFailures = 5;

 private:
  void lower(double now);
  void fail_trial(double now);
  void pass_trial();

  int limit_ = kNoLimit;  // of regions
  int held_ = kNoLimit;   // the limit before the trial
  int wanted_ = 1;        // the most that a region could use
  bool trial_ = false;
  double trial_began_ = 0.0;
  int trial_regions_ = 0;
  int failures_ = 0;  // trials in a row that failed
  double next_trial_ = 0.0;
  double trial_lost_ = 0.0;
  double lost_ = 0.0;  // by regions that are not on trial
  int most_ = 0;       // threads of a region since the loss began
};

}  // namespace eaglerl
