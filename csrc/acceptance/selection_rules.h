// How candidates of a draft are scored and weighed, in whole numbers, so that a CPU, a GPU and
// Triton's interpreter agree on every bit: a compiler that fuses a product with a sum, and another
// exp(), change no result. The Triton kernel has the same rules and takes the layout from
// constants that the bindings export; docs/kernels.md says what they compute.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace eaglerl {

// Fixed point: a survival of 1, and a token, is 2^20; a logit of 1 is 2^12; a ratio of 1 is 2^10.
constexpr int32_t kSurvivalBits = 20, kLogitBits = 12, kRatioBits = 10;
constexpr int32_t kSureSurvival = 1 << kSurvivalBits;

// Slopes are logits per logit, 2^12, and below 8, so that a product with a confidence fits a word.
constexpr int32_t kMostSlope = 32767;
// All other terms of a logit are within 32.
constexpr int32_t kMostTerm = 32 << kLogitBits;
// Prices are at most 256 tokens, and shares that come true below 8.
constexpr int32_t kMostPrice = 256 << kSurvivalBits, kMostGain = (8 << kRatioBits) - 1;

// Logits from -16 to 16 in steps of 2^-5, between which survivals are linear: no error exceeds
// 3e-5.
constexpr int32_t kLeastLogit = -(16 << kLogitBits), kMostLogitWord = (16 << kLogitBits) - 1;
constexpr int32_t kSurvivalStepBits = 7;
constexpr int32_t kSurvivalEntries = ((32 << kLogitBits) >> kSurvivalStepBits) + 1;

// Confidences, the logits of the draft's own probabilities, by the bits of -score from 2^-12 to 16:
// 32 steps an octave.
constexpr int32_t kLeastScoreBits = 0x39800000, kMostScoreBits = 0x417fffff;
constexpr int32_t kScoreStepBits = 18, kScoreFractionBits = 8;
constexpr int32_t kConfidenceEntries = ((kMostScoreBits - kLeastScoreBits) >> kScoreStepBits) + 2;

// Longer matches count as these.
constexpr int32_t kLongestRuleMatch = 16;

// Words of a slot's record.
enum SelectionWord : int32_t {
  kLevels = 0,    // levels that were scored
  kStopped = 1,   // further passes are ignored
  kNodes = 2,     // drafted candidates among the chosen rows
  kAdded = 3,     // looked-up tokens among them that no candidate holds
  kInside = 4,    // leading looked-up tokens that candidates hold
  kExpected = 5,  // survivals of all chosen rows but the root, added up
  kPromised = 6,  // what further passes promise, and what they cost
  kPassCost = 7,
  kSelectionWords = 8,
};

struct SelectionSizes {
  int32_t top_k;
  int32_t depth;   // passes after the first one
  int32_t rows;    // of the verified tree, the root included
  int32_t lookup;  // most looked-up tokens

  EAGLERL_HOST_DEVICE int32_t level_begin(int32_t level) const {
    return level == 0 ? 0 : top_k + (level - 1) * top_k * top_k;
  }
  EAGLERL_HOST_DEVICE int32_t level_count(int32_t level) const {
    return level == 0 ? top_k : top_k * top_k;
  }
  EAGLERL_HOST_DEVICE int32_t pool() const { return top_k + depth * top_k * top_k; }
};

// The words of a slot's rule, one part after another.
struct RuleLayout {
  static constexpr int32_t kBias = 0;        // of a candidate's logit
  static constexpr int32_t kConfidence = 1;  // slope of its confidence
  static constexpr int32_t kSurplus = 2;     // slope of what is above even chances
  static constexpr int32_t kLevel = 3;       // for each level below the first
  static constexpr int32_t kTailInside = 4;  // a looked-up token's: its beginning was drafted
  static constexpr int32_t kTailScore = 5;   // slope of the first candidate's score
  static constexpr int32_t kMostLevels = 6;  // tokens that the cycle may accept
  static constexpr int32_t kAgree = 7;       // by length of the match: a candidate is looked up
  static constexpr int32_t kDisagree = kAgree + kLongestRuleMatch + 1;
  static constexpr int32_t kTail = kDisagree + kLongestRuleMatch + 1;  // by match, by level

  EAGLERL_HOST_DEVICE static int32_t price(const SelectionSizes& sizes) {
    return kTail + (kLongestRuleMatch + 1) * sizes.lookup;
  }
  EAGLERL_HOST_DEVICE static int32_t pass_price(const SelectionSizes& sizes) {
    return price(sizes) + sizes.rows;
  }
  EAGLERL_HOST_DEVICE static int32_t ratio(const SelectionSizes& sizes) {
    return pass_price(sizes) + sizes.depth;
  }
  EAGLERL_HOST_DEVICE static int32_t gain(const SelectionSizes& sizes) {
    return ratio(sizes) + sizes.depth;
  }
  EAGLERL_HOST_DEVICE static int32_t words(const SelectionSizes& sizes) {
    return gain(sizes) + sizes.depth;
  }
};

// A number in fixed point, within limits.
inline int32_t word_of(double value, int32_t bits, int32_t least, int32_t most) {
  const double scaled = std::ldexp(value, bits);
  // NaN is no number of a belief; should one occur, it becomes the least.
  if (!(scaled > double(least))) return least;
  return scaled < double(most) ? int32_t(std::lround(scaled)) : most;
}
inline int32_t term_of(double value) { return word_of(value, kLogitBits, -kMostTerm, kMostTerm); }

EAGLERL_HOST_DEVICE inline int32_t clamp_word(int32_t value, int32_t least, int32_t most) {
  return value < least ? least : (value > most ? most : value);
}

EAGLERL_HOST_DEVICE inline int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Between two entries, `fraction` of 2^bits of the way.
EAGLERL_HOST_DEVICE inline int32_t between(const int32_t* entry, int32_t fraction, int32_t bits) {
  return entry[0] + (((entry[1] - entry[0]) * fraction) >> bits);
}

// The logit of a cumulative probability, given its logarithm. One above 0 counts as 0, NaN as
// minus infinity.
EAGLERL_HOST_DEVICE inline int32_t confidence_of(const int32_t* table, float score) {
  const int32_t bits = bits_of(score), magnitude = bits & 0x7fffffff;
  const int32_t below = bits < 0 || magnitude > 0x7f800000 ? magnitude : 0;
  const int32_t offset = clamp_word(below, kLeastScoreBits, kMostScoreBits) - kLeastScoreBits;
  const int32_t fraction =
      (offset >> (kScoreStepBits - kScoreFractionBits)) & ((1 << kScoreFractionBits) - 1);
  return between(table + (offset >> kScoreStepBits), fraction, kScoreFractionBits);
}

EAGLERL_HOST_DEVICE inline int32_t survival_of(const int32_t* table, int32_t logit) {
  const int32_t offset = clamp_word(logit, kLeastLogit, kMostLogitWord) - kLeastLogit;
  const int32_t fraction = offset & ((1 << kSurvivalStepBits) - 1);
  return between(table + (offset >> kSurvivalStepBits), fraction, kSurvivalStepBits);
}

// A score as a logit word, from -16 to 0: scaled by a power of two, which is exact.
EAGLERL_HOST_DEVICE inline int32_t score_word(float score) {
  const float above = score > -15.99f ? score : -15.99f;
  return int32_t((above < 0.0f ? above : 0.0f) * float(1 << kLogitBits));
}

// Orders scores as numbers, NaN below all of them.
EAGLERL_HOST_DEVICE inline int32_t score_order(float score) {
  const int32_t bits = bits_of(score), magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return INT32_MIN;
  return bits < 0 ? -magnitude : magnitude;
}

// A candidate's logit, before its parent's limits it. `text` is what prompt lookup says of it.
EAGLERL_HOST_DEVICE inline int32_t candidate_logit(const int32_t* rule, int32_t confidence,
                                                   int32_t level, int32_t text) {
  const int32_t surplus = confidence > 0 ? confidence : 0;
  return rule[RuleLayout::kBias] + ((rule[RuleLayout::kConfidence] * confidence) >> kLogitBits) +
         ((rule[RuleLayout::kSurplus] * surplus) >> kLogitBits) + rule[RuleLayout::kLevel] * level +
         text;
}

}  // namespace eaglerl
