// Prompt lookup over memory of the caller, as a device has it: the text of a slot, and hash tables
// of where each of its n-grams ended last. The Triton kernel has the same rules and takes the
// constants from the bindings; results and tables have the same bits.
#pragma once

#include <cstdint>

namespace eaglerl {

constexpr int64_t kShortestTableNgram = 2, kLongestTableNgram = 64;
constexpr int64_t kLongestTableText = int64_t(1) << 24;
constexpr int64_t kMostProposed = 64;
// A linear congruential step per token, modulo 2^31: products of two words below 2^31 fit 63 bits.
constexpr int64_t kHashFactor = 1103515245, kHashMask = 0x7fffffff;
constexpr int64_t kHashShift = 15;
// Length of a text that did not fit: it proposes nothing until it is reset.
constexpr int64_t kClosedText = -1;

struct NgramTables {
  int64_t capacity;  // tokens of a text
  int64_t orders;    // n-grams of 2 to orders + 1 tokens
  int64_t places;    // of the table of one n, a power of two, at least twice the capacity
  int64_t proposed;  // most tokens of a proposal
};

// A slot's memory.
struct NgramSlot {
  int64_t* text;       // (capacity)
  int64_t* length;     // (1)
  int32_t* ends;       // (orders, places) tokens up to the end of an n-gram; 0 for an empty place
  int64_t* match;      // (1) length of the match; 0 for none
  int64_t* count;      // (1) tokens proposed
  int64_t* token_ids;  // (proposed)
};

// Appends tokens, and proposes what followed the longest n-gram at the end of the text where it
// occurred last before. Without tokens, the proposal stays. Where nothing can be proposed, there is
// no match.
void extend_ngrams(const NgramTables& tables, const NgramSlot& slot, const int64_t* tokens,
                   int64_t count);

}  // namespace eaglerl
