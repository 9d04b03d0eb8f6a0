// The n-grams of one text: where the end of the text occurred before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/checks.h"

namespace eaglerl {

constexpr int64_t kShortestNgram = 2;
// Positions are kept in 32 bits.
constexpr int64_t kLongestText = kLargestCount;

// Each place of the text knows where its last two tokens occurred before. Adding a token is one
// look-up in a table of pairs; a match is found by following the occurrences of the text's last
// pair, so that little memory is read: between two cycles it is in no cache.
class NgramIndex : public PythonObject {
 public:
  explicit NgramIndex(int64_t longest) : longest_(longest) {}

  // Adds tokens. The text stays within kLongestText.
  void extend(const int64_t* tokens, int64_t count);
  // Length of the longest n-gram at the end of the text that occurred before, at most `longest`;
  // 0 for none.
  int64_t match_length() {
    find();
    return match_length_;
  }
  // The token that follows `index` tokens behind the last of its earlier occurrences. A match at
  // the end of the text is repeated.
  int64_t proposed(int64_t index) const {
    return tokens_[size_t(match_end_ + index % (int64_t(tokens_.size()) - match_end_))];
  }
  const std::vector<int64_t>& tokens() const { return tokens_; }

 private:
  void add_pair();
  void find();
  void grow();
  size_t place_of(int64_t end) const;

  int64_t longest_;
  std::vector<int64_t> tokens_;
  // By the number of tokens up to a pair's end: where the pair ended before; 0 for nowhere.
  std::vector<int32_t> previous_;
  // Where each pair ended last; open addressing, the size is a power of two.
  std::vector<int32_t> table_;
  size_t pairs_ = 0;
  bool found_ = false;  // whether the match is that of the text as it is
  int64_t match_length_ = 0;
  int64_t match_end_ = 0;
};

}  // namespace eaglerl
