#include "lookup/ngram_index.h"

#include <algorithm>
#include <array>

namespace eaglerl {
namespace {

constexpr size_t kFirstPlaces = 1024;

// Joins one more token, on the left, to the hash of an n-gram (the finaliser of MurmurHash3).
uint64_t join(uint64_t hash, int64_t token) {
  hash = (hash ^ uint64_t(token)) * 0xff51afd7ed558ccdull;
  return hash ^ (hash >> 32);
}

}  // namespace

void NgramIndex::extend(const int64_t* tokens, int64_t count) {
  tokens_.reserve(tokens_.size() + size_t(count));
  for (int64_t i = 0; i < count; ++i) add(tokens[i]);
}

void NgramIndex::add(int64_t token) {
  // At most half of the places are taken.
  if (2 * (entries_ + size_t(longest_)) > table_.size()) grow();
  tokens_.push_back(token);
  const int64_t end = int64_t(tokens_.size());
  const int64_t longest = std::min(longest_, end);
  const size_t mask = table_.size() - 1;
  // All places first: they are far apart in memory, and their loads overlap.
  std::array<uint32_t, kLongestNgram + 1> hashes;
  uint64_t hash = join(0, token);
  for (int64_t length = kShortestNgram; length <= longest; ++length) {
    hash = join(hash, tokens_[size_t(end - length)]);
    hashes[size_t(length)] = uint32_t(hash);
    __builtin_prefetch(&table_[uint32_t(hash) & mask], 1);
  }
  match_length_ = match_end_ = 0;
  for (int64_t length = kShortestNgram; length <= longest; ++length) {
    size_t place = hashes[size_t(length)] & mask;
    while (table_[place].length != 0 && !equal(table_[place], hashes[size_t(length)], length)) {
      place = (place + 1) & mask;
    }
    Entry& entry = table_[place];
    if (entry.length == 0) {
      ++entries_;
    } else {
      match_length_ = length;
      match_end_ = entry.end;
    }
    entry = {hashes[size_t(length)], int32_t(length), end};
  }
}

// Whether an entry is the n-gram at the end of the text.
bool NgramIndex::equal(const Entry& entry, uint32_t hash, int64_t length) const {
  return entry.hash == hash && entry.length == length &&
         std::equal(tokens_.end() - length, tokens_.end(), tokens_.begin() + (entry.end - length));
}

void NgramIndex::grow() {
  const std::vector<Entry> before = std::move(table_);
  table_.assign(std::max(kFirstPlaces, 2 * before.size()), Entry{});
  const size_t mask = table_.size() - 1;
  for (const Entry& entry : before) {
    if (entry.length == 0) continue;
    size_t place = entry.hash & mask;
    while (table_[place].length != 0) place = (place + 1) & mask;
    table_[place] = entry;
  }
}

}  // namespace eaglerl
