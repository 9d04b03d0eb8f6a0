#include "lookup/ngram_index.h"

#include <algorithm>

namespace eaglerl {
namespace {

constexpr size_t kFirstPlaces = 256;

// The finaliser of MurmurHash3.
uint64_t hash_of(int64_t first, int64_t second) {
  uint64_t hash = (uint64_t(first) * 0x9e3779b97f4a7c15ull) ^ uint64_t(second);
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdull;
  return hash ^ (hash >> 33);
}

}  // namespace

void NgramIndex::extend(const int64_t* tokens, int64_t count) {
  if (count > 0) found_ = false;
  for (int64_t i = 0; i < count; ++i) {
    // At most half of the places are taken.
    if (2 * (pairs_ + 1) > table_.size()) grow();
    if (previous_.empty()) previous_.push_back(0);
    previous_.push_back(0);
    tokens_.push_back(tokens[i]);
    if (tokens_.size() >= size_t(kShortestNgram)) add_pair();
  }
}

// The place of the pair that ends there, or an empty one.
size_t NgramIndex::place_of(int64_t end) const {
  const int64_t first = tokens_[size_t(end - 2)], second = tokens_[size_t(end - 1)];
  const size_t mask = table_.size() - 1;
  size_t place = size_t(hash_of(first, second)) & mask;
  while (table_[place] != 0) {
    const int64_t other = table_[place];
    if (tokens_[size_t(other - 2)] == first && tokens_[size_t(other - 1)] == second) break;
    place = (place + 1) & mask;
  }
  return place;
}

void NgramIndex::add_pair() {
  const int64_t end = int64_t(tokens_.size());
  int32_t& last = table_[place_of(end)];
  if (last == 0) ++pairs_;
  previous_[size_t(end)] = last;
  last = int32_t(end);
}

void NgramIndex::grow() {
  const std::vector<int32_t> before = std::move(table_);
  table_.assign(std::max(kFirstPlaces, 2 * before.size()), 0);
  for (const int32_t end : before) {
    if (end != 0) table_[place_of(end)] = end;
  }
}

void NgramIndex::find() {
  if (found_) return;
  found_ = true;
  match_length_ = match_end_ = 0;
  const int64_t size = int64_t(tokens_.size());
  if (size < kShortestNgram) return;
  const int64_t* const back = tokens_.data() + size;
  // From the last occurrence to the first: of equal lengths the last counts.
  for (int64_t end = previous_[size_t(size)]; end != 0; end = previous_[size_t(end)]) {
    const int64_t* const other = tokens_.data() + end;
    const int64_t most = std::min(longest_, end);
    int64_t length = kShortestNgram;
    while (length < most && other[-length - 1] == back[-length - 1]) ++length;
    if (length <= match_length_) continue;
    match_length_ = length;
    match_end_ = end;
    if (length == longest_) return;
  }
}

}  // namespace eaglerl
