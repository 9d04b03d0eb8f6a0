// Estimates which candidates of one cycle's draft the target will accept, pass by pass.
// eaglerl.policies.acceptance_model computes the same for many cycles at once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "acceptance/draft_view.h"
#include "common/checks.h"
#include "policy/policy_kernels.h"

namespace eaglerl {

// Inputs of the net for drafted candidates, of the net for looked-up tokens, and of the stopping
// rule. The rule is quadratic: a constant, 10 figures and their 55 products have 66 weights.
constexpr int64_t kPoolInputs = 14;
constexpr int64_t kLookupInputs = 13;
constexpr int kStopFigures = 10;
constexpr int64_t kStopInputs = 1 + kStopFigures + kStopFigures * (kStopFigures + 1) / 2;

// Three matrices (widths[i], widths[i + 1]) and their biases; widths[3] is 1.
struct SmallNetWeights {
  const float* weights[3];
  const float* biases[3];
  int64_t widths[4];
};

// A small net with its own, padded copy of the weights.
class SmallNet {
 public:
  explicit SmallNet(const SmallNetWeights& source);
  SmallNet(const SmallNet&) = delete;
  SmallNet& operator=(const SmallNet&) = delete;

  // Throws where the weights are so large that a probability is not a number.
  void run(const float* x, int64_t rows, float* out);

 private:
  std::vector<float> weights_[3];
  std::vector<float> biases_[2];
  std::vector<float> scratch_;
  SmallNetCall call_;
};

class AcceptanceScorer : public PythonObject {
 public:
  // `stop_weights` are (max_depth, kStopInputs). Verifying r + 1 rows at a context length c takes
  // base[r] + c * slope[r] seconds.
  AcceptanceScorer(const DraftSizes& sizes, const SmallNetWeights& pool_net,
                   const SmallNetWeights* lookup_net, const float* stop_weights, const double* base,
                   const double* slope);

  // Begins a cycle with the running success of lookups and their number so far.
  void begin(double success, int64_t lookups);

  // Scores the levels that are new since the last call, then plans over all of them. `rate` is in
  // tokens per second.
  void score(const DraftView& draft, double rate);

  // After score(): whether another round is expected to gain more than it costs.
  bool should_continue() const { return should_continue_; }

  // After score(): the number of drafted candidates worth verifying.
  int64_t chosen_nodes() const;
  // After score(): writes those candidates, the best first, and returns how many leading
  // looked-up tokens are worth verifying.
  int64_t select(int64_t* nodes) const;

  const DraftSizes& sizes() const { return sizes_; }
  int64_t known_depth() const { return known_; }
  const float* pool() const { return pool_.data(); }
  const float* lookup() const { return pool_.data() + sizes_.pool_size(known_); }

 private:
  // Survival is the probability that a candidate and all its ancestors are accepted: here the
  // sum over a level's top_k best, and its two largest.
  struct LevelBest {
    double sum;
    float first;
    float second;
  };

  void score_level(const DraftView& draft, int64_t level);
  void fill_pool_inputs(const DraftView& draft, int64_t level);
  LevelBest best_of_level(int64_t begin, int64_t end);
  void score_lookup(const DraftView& draft);
  void fill_lookup_inputs(const DraftView& draft, int64_t inside, int64_t end);
  void plan(const DraftView& draft, double rate);
  bool decide(const DraftView& draft) const;

  DraftSizes sizes_;
  SmallNet pool_net_;
  std::unique_ptr<SmallNet> lookup_net_;
  std::vector<double> stop_weights_;
  std::vector<double> base_;
  std::vector<double> slope_;

  double success_ = 0.0;
  int64_t lookups_ = 0;
  int64_t known_ = -1;  // the deepest level that has been scored
  int64_t inside_ = 0;  // leading looked-up tokens that the draft proposed too
  int64_t count_ = 0;   // candidates worth verifying
  double expected_ = 1.0;
  bool should_continue_ = false;
  std::vector<float> pool_;  // survivals of the candidates, then of the looked-up tokens
  std::vector<LevelBest> best_;
  std::vector<float> inputs_;
  std::vector<float> probabilities_;
  std::vector<float> top_values_;
  std::vector<int64_t> parents_;
  std::vector<uint64_t> order_;
};

}  // namespace eaglerl
