#include "lookup/ngram_table.h"

#include <algorithm>

namespace eaglerl {
namespace {

bool same(const int64_t* text, int64_t first, int64_t second, int64_t count) {
  for (int64_t i = 1; i <= count; ++i) {
    if (text[first - i] != text[second - i]) return false;
  }
  return true;
}

// Puts the n-gram that ends at `end` into the table of its n. Returns where it ended before, or 0.
int64_t put(const NgramTables& tables, const NgramSlot& slot, int64_t n, int64_t hash,
            int64_t end) {
  int32_t* const ends = slot.ends + (n - kShortestTableNgram) * tables.places;
  const int64_t mask = tables.places - 1;
  int64_t place = (hash ^ (hash >> kHashShift)) & mask;
  // Anyone may have written to the table: a full one ends the search where it began.
  for (int64_t tried = 0; tried < tables.places; ++tried, place = (place + 1) & mask) {
    const int64_t other = ends[place];
    const bool taken = other >= n && other < end;
    if (taken && !same(slot.text, other, end, n)) continue;
    ends[place] = int32_t(end);
    return taken ? other : 0;
  }
  return 0;
}

}  // namespace

void extend_ngrams(const NgramTables& tables, const NgramSlot& slot, const int64_t* tokens,
                   int64_t count) {
  if (count <= 0) return;
  int64_t length = *slot.length;
  *slot.match = *slot.count = 0;
  if (length < 0 || length > tables.capacity || count > tables.capacity - length) {
    *slot.length = kClosedText;
    return;
  }
  int64_t match = 0, match_end = 0;
  for (int64_t i = 0; i < count; ++i) {
    slot.text[length++] = tokens[i];
    match = 0;
    int64_t hash = 0;
    const int64_t longest = std::min(tables.orders + 1, length);
    for (int64_t n = 1; n <= longest; ++n) {
      hash = (hash * kHashFactor + (slot.text[length - n] & kHashMask) + 1) & kHashMask;
      if (n < kShortestTableNgram) continue;
      const int64_t before = put(tables, slot, n, hash, length);
      if (before > 0) match = n, match_end = before;
    }
  }
  *slot.length = length;
  if (match == 0 || tables.proposed == 0) return;
  *slot.match = match;
  *slot.count = tables.proposed;
  for (int64_t i = 0; i < tables.proposed; ++i) {
    slot.token_ids[i] = slot.text[match_end + i % (length - match_end)];
  }
}

}  // namespace eaglerl
