#include "acceptance/acceptance_scorer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace eaglerl {
namespace {

int64_t padded(int64_t width) {
  return (width + kSmallNetPadding - 1) / kSmallNetPadding * kSmallNetPadding;
}

// Sorting these descending orders survivals descending, and equal ones by index ascending: a float
// that is not negative orders as its bits do, and one integer comparison replaces two.
uint64_t order_key(float survival, int64_t index) {
  uint32_t bits;
  std::memcpy(&bits, &survival, sizeof bits);
  return (uint64_t(bits) << 32) | uint32_t(~uint32_t(index));
}

int64_t key_index(uint64_t key) { return int64_t(uint32_t(~uint32_t(key))); }

float key_survival(uint64_t key) {
  const uint32_t bits = uint32_t(key >> 32);
  float survival;
  std::memcpy(&survival, &bits, sizeof survival);
  return survival;
}

// Keeps values[0, count) in descending order; an equal value goes behind those already there.
int64_t insert_descending(float* values, int64_t* places, int64_t count, int64_t capacity,
                          float value, int64_t place) {
  if (count == capacity && !(value > values[count - 1])) return count;
  int64_t at = count < capacity ? count : capacity - 1;
  for (; at > 0 && value > values[at - 1]; --at) {
    values[at] = values[at - 1];
    if (places) places[at] = places[at - 1];
  }
  values[at] = value;
  if (places) places[at] = place;
  return std::min(count + 1, capacity);
}

}  // namespace

SmallNet::SmallNet(const SmallNetWeights& source) {
  for (int i = 0; i < 2; ++i) {
    const int64_t in = source.widths[i], out = source.widths[i + 1], stride = padded(out);
    weights_[i].assign(in * stride, 0.0f);
    biases_[i].assign(stride, 0.0f);
    for (int64_t row = 0; row < in; ++row) {
      std::copy_n(source.weights[i] + row * out, out, weights_[i].data() + row * stride);
    }
    std::copy_n(source.biases[i], out, biases_[i].data());
    call_.hidden[i] = {weights_[i].data(), biases_[i].data(), in, out, stride};
  }
  weights_[2].assign(call_.hidden[1].stride, 0.0f);
  std::copy_n(source.weights[2], source.widths[2], weights_[2].data());
  scratch_.resize(kSmallNetRows * (call_.hidden[0].stride + call_.hidden[1].stride));
  call_.last_weight = weights_[2].data();
  call_.last_bias = source.biases[2][0];
  call_.scratch = scratch_.data();
}

void SmallNet::run(const float* x, int64_t rows, float* out) {
  policy_kernels().small_net(call_, x, rows, out);
  for (int64_t row = 0; row < rows; ++row) {
    if (out[row] != out[row]) {
      throw std::invalid_argument(
          "scores and the model's weights are so large that a probability is not a number");
    }
  }
}

AcceptanceScorer::AcceptanceScorer(const DraftSizes& sizes, const SmallNetWeights& pool_net,
                                   const SmallNetWeights* lookup_net, const float* stop_weights,
                                   const double* base, const double* slope)
    : sizes_(sizes),
      pool_net_(pool_net),
      lookup_net_(lookup_net ? std::make_unique<SmallNet>(*lookup_net) : nullptr),
      stop_weights_(stop_weights, stop_weights + sizes.max_depth * kStopInputs),
      base_(base, base + sizes.max_rows),
      slope_(slope, slope + sizes.max_rows) {
  const int64_t widest = std::max(sizes.top_k * sizes.top_k, sizes.lookup_tokens);
  pool_.resize(sizes_.pool_size(sizes.max_depth) + sizes.lookup_tokens);
  best_.resize(sizes.max_depth + 1);
  inputs_.resize(std::max(kPoolInputs, kLookupInputs) * widest);
  probabilities_.resize(widest);
  top_values_.resize(sizes.top_k);
  parents_.resize(sizes.top_k);
  order_.reserve(pool_.size());
}

void AcceptanceScorer::begin(double success, int64_t lookups) {
  success_ = success;
  lookups_ = lookups;
  known_ = -1;
}

void AcceptanceScorer::score(const DraftView& draft, double rate) {
  check_lookup_nodes(sizes_, draft);
  const int64_t next = known_ + 1;
  known_ = -1;  // stays so if a step below throws
  for (int64_t level = next; level <= draft.depth; ++level) score_level(draft, level);
  score_lookup(draft);
  plan(draft, rate);
  known_ = draft.depth;
  should_continue_ = decide(draft);
}

void AcceptanceScorer::score_level(const DraftView& draft, int64_t level) {
  const int64_t width = sizes_.top_k, begin = sizes_.level_begin(level);
  const int64_t count = sizes_.pool_size(level) - begin;
  fill_pool_inputs(draft, level);
  pool_net_.run(inputs_.data(), count, probabilities_.data());
  float* survivals = pool_.data() + begin;
  for (int64_t i = 0; i < count; ++i) {
    // The net scores a candidate alone, but it cannot be accepted without its parent.
    const float above = level == 0 ? 1.0f : pool_[parents_[i / width]];
    survivals[i] = std::min(probabilities_[i], above);
  }
  best_[level] = best_of_level(begin, begin + count);
}

// Leaves the nodes that were expanded, the last level's top_k by score, in parents_: each has top_k
// children, which lie together in the order of the parents.
void AcceptanceScorer::fill_pool_inputs(const DraftView& draft, int64_t level) {
  const int64_t width = sizes_.top_k, begin = sizes_.level_begin(level),
                end = sizes_.pool_size(level);
  if (level > 0) {
    int64_t found = 0;
    for (int64_t node = sizes_.level_begin(level - 1); node < begin; ++node) {
      found = insert_descending(top_values_.data(), parents_.data(), found, width,
                                draft.scores[node], node);
    }
  }
  const int64_t match = std::min(draft.match_length, kLongestMatch);
  const float log_match = float(std::log1p(double(match)));
  const float matched = match > 0, success = match > 0 ? float(success_) : 0.0f;
  const int64_t looked_up = draft.lookup_nodes ? draft.lookup_nodes[level] : -1;
  for (int64_t node = begin; node < end; ++node) {
    const float score = draft.scores[node];
    const float above = level == 0 ? 0.0f : draft.scores[parents_[(node - begin) / width]];
    float* x = inputs_.data() + (node - begin) * kPoolInputs;
    x[0] = score;
    x[1] = above;
    x[2] = std::sqrt(std::max(-score, 0.0f));
    x[3] = score - above;
    x[4] = float(level);
    x[5] = score * (float(level) / 4.0f);
    x[6] = level == 0;
    // A lookup that proposes another token is evidence against the candidate.
    const bool here = node == looked_up;
    x[7] = here;
    x[8] = here ? log_match : 0.0f;
    x[9] = here ? 0.0f : matched;
    x[10] = here ? 0.0f : log_match;
    x[11] = here ? float(success_) : 0.0f;
    x[12] = here ? 0.0f : success;
    x[13] = here ? score : 0.0f;
  }
}

AcceptanceScorer::LevelBest AcceptanceScorer::best_of_level(int64_t begin, int64_t end) {
  int64_t found = 0;
  for (int64_t node = begin; node < end; ++node) {
    found = insert_descending(top_values_.data(), nullptr, found, sizes_.top_k, pool_[node], 0);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < found; ++i) sum += top_values_[i];
  return {sum, top_values_[0], top_values_[found > 1 ? 1 : 0]};
}

void AcceptanceScorer::score_lookup(const DraftView& draft) {
  inside_ = 0;
  while (draft.lookup_nodes && inside_ <= draft.depth && draft.lookup_nodes[inside_] >= 0)
    ++inside_;
  float* lookup = pool_.data() + sizes_.pool_size(draft.depth);
  std::fill_n(lookup, sizes_.lookup_tokens, 0.0f);
  const int64_t end = std::min(draft.lookup_length, sizes_.lookup_tokens);
  if (!lookup_net_ || draft.match_length <= 0 || end <= inside_) return;
  fill_lookup_inputs(draft, inside_, end);
  lookup_net_->run(inputs_.data(), end - inside_, probabilities_.data());
  // Looked-up tokens that the draft proposed too are scored as its candidates. The rest hangs below
  // the last of them, so its survival starts from there.
  double reached = inside_ > 0 ? pool_[draft.lookup_nodes[inside_ - 1]] : 1.0;
  for (int64_t level = inside_; level < end; ++level) {
    reached *= probabilities_[level - inside_];
    lookup[level] = float(reached);
  }
}

void AcceptanceScorer::fill_lookup_inputs(const DraftView& draft, int64_t inside, int64_t end) {
  const int64_t match = std::min(draft.match_length, kLongestMatch);
  const double log_match = std::log1p(double(match));
  const int64_t lookups = std::min(lookups_, kManyLookups);
  for (int64_t level = inside; level < end; ++level) {
    const double log_level = std::log1p(double(level));
    float* x = inputs_.data() + (level - inside) * kLookupInputs;
    x[0] = float(level) / 4.0f;
    x[1] = float(log_match);
    x[2] = match >= 3;
    x[3] = match >= kLongestMatch;
    x[4] = float(success_);
    x[5] = float(double(lookups) / kManyLookups);
    x[6] = level == 0;
    x[7] = float(log_level);
    x[8] = float(log_match * log_level);
    x[9] = inside == 0;
    x[10] = float(inside);
    x[11] = inside > 0 ? draft.scores[draft.lookup_nodes[inside - 1]] : 0.0f;
    x[12] = draft.scores[0];
  }
}

void AcceptanceScorer::plan(const DraftView& draft, double rate) {
  const int64_t size = sizes_.pool_size(draft.depth) + sizes_.lookup_tokens;
  const int64_t count = std::min(size, sizes_.max_rows - 1);
  order_.resize(size);
  for (int64_t i = 0; i < size; ++i) order_[i] = order_key(pool_[i], i);
  if (count < size) {
    std::nth_element(order_.begin(), order_.begin() + count, order_.end(), std::greater<>());
  }
  std::sort(order_.begin(), order_.begin() + count, std::greater<>());
  const double context = double(draft.context_length);
  double length = 1.0;
  double best = length - rate * (base_[0] + context * slope_[0]);
  count_ = 0;
  expected_ = length;
  double drafted = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    drafted += key_survival(order_[i]);
    length = 1.0 + drafted;
    const double value = length - rate * (base_[i + 1] + context * slope_[i + 1]);
    if (value > best) {
      best = value;
      count_ = i + 1;
      expected_ = length;
    }
  }
}

bool AcceptanceScorer::decide(const DraftView& draft) const {
  const int64_t depth = draft.depth;
  if (depth >= sizes_.max_depth) return false;
  const LevelBest& last = best_[depth];
  const double before = depth ? best_[depth - 1].sum : 1.0;
  const bool matched = draft.match_length > 0;
  const int64_t length = sizes_.lookup_tokens;
  const double following = matched && length > 0 ? lookup()[std::min(inside_, length - 1)] : 0.0;
  const double figures[kStopFigures] = {
      last.sum,
      last.first,
      last.second,
      before,
      last.sum / (before + 0.05),
      expected_,
      double(count_ + 1) / 10.0,
      double(matched),
      double(matched && inside_ == depth + 1),
      following,
  };
  const double* weight = stop_weights_.data() + depth * kStopInputs;
  double worth = *weight++;
  for (double figure : figures) worth += figure * *weight++;
  for (int i = 0; i < kStopFigures; ++i) {
    for (int j = i; j < kStopFigures; ++j) worth += figures[i] * figures[j] * *weight++;
  }
  return worth > 0.0;
}

int64_t AcceptanceScorer::chosen_nodes() const {
  const int64_t size = sizes_.pool_size(known_);
  return std::count_if(order_.begin(), order_.begin() + count_,
                       [size](uint64_t key) { return key_index(key) < size; });
}

int64_t AcceptanceScorer::select(int64_t* nodes) const {
  const int64_t size = sizes_.pool_size(known_);
  int64_t lookup = 0;
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t index = key_index(order_[i]);
    if (index < size) {
      *nodes++ = index;
    } else {
      lookup = std::max(lookup, index - size + 1);
    }
  }
  return lookup;
}

}  // namespace eaglerl
