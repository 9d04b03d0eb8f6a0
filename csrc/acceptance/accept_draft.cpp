#include "acceptance/accept_draft.h"

#include <algorithm>
#include <array>

namespace eaglerl {

int64_t accept_draft(int64_t rows, int64_t longest, const VerifiedTree& tree,
                     const AcceptedPath& path) {
  std::array<bool, kMostAcceptRows> chosen;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t parent = std::clamp<int64_t>(tree.parents[row], 0, rows - 1);
    const bool fits = tree.token_ids[row] == tree.choices[parent] && tree.enabled[row] != 0;
    chosen[size_t(row)] = row == 0 || fits;
  }
  std::fill_n(path.rows, longest, 0);
  std::fill_n(path.token_ids, longest, tree.choices[0]);
  int64_t count = 1;
  for (int64_t row = 1; row < rows; ++row) {
    const uint8_t* above = tree.ancestors + row * rows;
    bool accepted = true;
    for (int64_t other = 0; other < rows; ++other) {
      accepted = accepted && (above[other] == 0 || chosen[size_t(other)]);
    }
    const int64_t level = tree.levels[row];
    if (!accepted || level < 1 || level >= longest) continue;
    path.rows[level] = row;
    path.token_ids[level] = tree.choices[row];
    ++count;
  }
  count = std::min(count, longest);
  *path.count = count;
  return count;
}

}  // namespace eaglerl
