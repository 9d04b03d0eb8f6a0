// Walks over a draft tree: rows in which every parent precedes its children; row 0 is the root.
#pragma once

#include <cstdint>

namespace eaglerl {

// Follows the target's choices from the root: from a row to its child whose token is choices[row].
// Writes the rows of the path, root first, and returns their number. One pass over the rows is
// enough, since children follow their parents.
inline int32_t accept_path(const int32_t* parents, const int64_t* tokens, const int64_t* choices,
                           int32_t rows, int32_t* out_rows) {
  int32_t current = 0;
  int32_t count = 0;
  out_rows[count++] = current;
  for (int32_t row = 1; row < rows; ++row) {
    if (parents[row] == current && tokens[row] == choices[current]) {
      current = row;
      out_rows[count++] = row;
    }
  }
  return count;
}

// Writes the level of every row (root 0).
inline void tree_levels(const int32_t* parents, int32_t rows, int32_t* levels) {
  levels[0] = 0;
  for (int32_t row = 1; row < rows; ++row) levels[row] = levels[parents[row]] + 1;
}

// Writes one word of every row's mask: bit j % 64 of word j / 64 is set iff row j is the row itself
// or an ancestor. `mask` is (rows, words). A word depends on no other word.
inline void ancestor_mask_word(const int32_t* parents, int32_t rows, int32_t words, int32_t word,
                               int64_t* mask) {
  for (int32_t row = 0; row < rows; ++row) {
    const int64_t inherited = row == 0 ? 0 : mask[int64_t(parents[row]) * words + word];
    const uint64_t own = row / 64 == word ? uint64_t(1) << (row % 64) : 0;
    mask[int64_t(row) * words + word] = int64_t(uint64_t(inherited) | own);
  }
}

}  // namespace eaglerl
