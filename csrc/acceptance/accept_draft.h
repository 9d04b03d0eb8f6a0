// The accepted path of a verified tree, as a device finds it: all rows at once.
#pragma once

#include <cstdint>

namespace eaglerl {

constexpr int64_t kMostAcceptRows = 256;

// A slot's tree, R rows with the root first, and the target's choice after each.
struct VerifiedTree {
  const int64_t* token_ids;
  const int64_t* parents;
  const int64_t* levels;
  const uint8_t* ancestors;  // (R, R)
  const uint8_t* enabled;
  const int64_t* choices;
};

struct AcceptedPath {
  int64_t* rows;       // (P) root first, then row 0 as padding
  int64_t* count;      // (1)
  int64_t* token_ids;  // (P) the target's choice after each row
};

// Returns the rows in the path. Trees may hold any numbers: rows out of range count as the nearest.
// What was written is never read again, since the outputs may share memory.
int64_t accept_draft(int64_t rows, int64_t longest, const VerifiedTree& tree,
                     const AcceptedPath& path);

}  // namespace eaglerl
