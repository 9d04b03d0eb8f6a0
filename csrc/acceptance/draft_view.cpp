#include "acceptance/draft_view.h"

#include <stdexcept>
#include <string>

namespace eaglerl {

void check_lookup_nodes(const DraftSizes& sizes, const DraftView& draft) {
  if (!draft.lookup_nodes) return;
  for (int64_t level = 0; level <= draft.depth; ++level) {
    const int64_t node = draft.lookup_nodes[level];
    // After the first looked-up token that no candidate holds, none of the rest has one.
    const bool reached = level == 0 || draft.lookup_nodes[level - 1] >= 0;
    const bool inside = node >= sizes.level_begin(level) && node < sizes.pool_size(level);
    if (node != -1 && !(reached && inside)) {
      throw std::invalid_argument(
          "lookup_nodes[" + std::to_string(level) + "] = " + std::to_string(node) +
          " is neither -1 nor a candidate of its level below the one before");
    }
  }
}

}  // namespace eaglerl
