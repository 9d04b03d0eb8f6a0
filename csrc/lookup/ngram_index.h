// The n-grams of one text: where the end of the text occurred before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

constexpr int64_t kShortestNgram = 2;
constexpr int64_t kLongestNgram = 64;
// Positions are kept in 32 bits.
constexpr int64_t kLongestText = kLargestCount;

// A table of the n-grams of all lengths from 2 to `longest`, each with the place where it ended
// last. Adding a token and finding a match take at most `longest` look-ups, however long the text.
class NgramIndex : public PythonObject {
 public:
  explicit NgramIndex(int64_t longest) : longest_(longest) {}

  // Adds tokens. The text stays within kLongestText.
  void extend(const int64_t* tokens, int64_t count);
  // Length of the longest n-gram at the end of the text that occurred before; 0 for none.
  int64_t match_length() const { return match_length_; }
  // The token that follows `index` tokens behind the last of its earlier occurrences. A match at
  // the end of the text is repeated.
  int64_t proposed(int64_t index) const {
    return tokens_[size_t(match_end_ + index % (int64_t(tokens_.size()) - match_end_))];
  }
  const std::vector<int64_t>& tokens() const { return tokens_; }

 private:
  struct Entry {
    uint32_t hash;
    int32_t length;  // 0 for an empty place
    int64_t end;     // number of tokens up to the end of its last occurrence
  };

  void add(int64_t token);
  void grow();
  bool equal(const Entry& entry, uint32_t hash, int64_t length) const;

  int64_t longest_;
  std::vector<int64_t> tokens_;
  std::vector<Entry> table_;  // open addressing; the size is a power of two
  size_t entries_ = 0;
  int64_t match_length_ = 0;
  int64_t match_end_ = 0;
};

}  // namespace eaglerl
