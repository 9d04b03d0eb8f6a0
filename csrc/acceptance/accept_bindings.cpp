// Bindings of acceptance over trees of several slots, and of their lookups.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "acceptance/accept_draft.h"
#include "acceptance/online_bindings.h"
#include "common/checks.h"
#include "common/slots.h"
#include "lookup/ngram_table.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A table over addresses in the order of NgramSlot, of sizes in the order of NgramTables.
class GivenTable {
 public:
  GivenTable(int64_t slots, const std::array<int64_t, 4>& given,
             const std::array<uintptr_t, 6>& memory)
      : sizes_(checked(given)),
        texts_("texts", memory[0], slots, sizes_.capacity),
        lengths_("lengths", memory[1], slots, 1),
        ends_("ends", memory[2], slots, sizes_.orders * sizes_.places),
        matches_("match_lengths", memory[3], slots, 1),
        counts_("counts", memory[4], slots, 1),
        token_ids_("token_ids", memory[5], slots, sizes_.proposed) {}

  void extend(int64_t slot, const int64_t* tokens, int64_t count) const {
    extend_ngrams(sizes_,
                  {texts_[slot], lengths_[slot], ends_[slot], matches_[slot], counts_[slot],
                   token_ids_[slot]},
                  tokens, count);
  }

 private:
  static NgramTables checked(const std::array<int64_t, 4>& given) {
    const NgramTables sizes = {given[0], given[1], given[2], given[3]};
    check_between("capacity", sizes.capacity, 1, kLongestTableText);
    check_between("orders", sizes.orders, 1, kLongestTableNgram - 1);
    check_between("places", sizes.places, 2 * sizes.capacity, 4 * kLongestTableText);
    check_between("proposed", sizes.proposed, 0, kMostProposed);
    if ((sizes.places & (sizes.places - 1)) != 0) {
      throw std::invalid_argument("places must be a power of two, got " +
                                  std::to_string(sizes.places));
    }
    return sizes;
  }

  NgramTables sizes_;
  Slots<int64_t> texts_, lengths_;
  Slots<int32_t> ends_;
  Slots<int64_t> matches_, counts_, token_ids_;
};

void bind_extend_ngrams(int64_t slots, const std::array<int64_t, 4>& sizes,
                        const std::array<uintptr_t, 6>& memory, int64_t width, uintptr_t token_ids,
                        uintptr_t counts) {
  check_between("slots", slots, 0, kLargestCount);
  check_between("width", width, 0, kLongestTableText);
  const GivenTable table(slots, sizes, memory);
  const Slots<const int64_t> tokens("token_ids", token_ids, slots, width);
  const Slots<const int64_t> given("counts", counts, slots, 1);
  for (int64_t slot = 0; slot < slots; ++slot) {
    table.extend(slot, tokens[slot], std::min(*given[slot], width));
  }
}

// `tree` and `out` are addresses in the order of VerifiedTree and AcceptedPath.
void bind_accept_draft(const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 6>& tree,
                       const std::array<uintptr_t, 3>& out,
                       const std::optional<std::array<int64_t, 4>>& table_sizes,
                       const std::optional<std::array<uintptr_t, 6>>& table_memory) {
  const auto [slots, rows, longest] = sizes;
  check_between("slots", slots, 0, kLargestCount);
  check_between("rows", rows, 1, kMostAcceptRows);
  check_between("longest", longest, 1, kMostAcceptRows);
  if (table_sizes.has_value() != table_memory.has_value()) {
    throw std::invalid_argument("table_sizes and table_memory must both be given, or both be None");
  }
  std::optional<GivenTable> table;
  if (table_sizes) table.emplace(slots, *table_sizes, *table_memory);
  const Slots<const int64_t> token_ids("token_ids", tree[0], slots, rows);
  const Slots<const int64_t> parents("parents", tree[1], slots, rows);
  const Slots<const int64_t> levels("levels", tree[2], slots, rows);
  const Slots<const uint8_t> ancestors("ancestors", tree[3], slots, rows * rows);
  const Slots<const uint8_t> enabled("enabled", tree[4], slots, rows);
  const Slots<const int64_t> choices("choices", tree[5], slots, rows);
  const Slots<int64_t> path("rows", out[0], slots, longest);
  const Slots<int64_t> counts("counts", out[1], slots, 1);
  const Slots<int64_t> accepted("token_ids", out[2], slots, longest);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t count = accept_draft(rows, longest,
                                       {token_ids[slot], parents[slot], levels[slot],
                                        ancestors[slot], enabled[slot], choices[slot]},
                                       {path[slot], counts[slot], accepted[slot]});
    if (table) table->extend(slot, accepted[slot], count);
  }
}

py::dict ngram_constants() {
  py::dict constants;
  constants["shortest"] = kShortestTableNgram;
  constants["longest"] = kLongestTableNgram;
  constants["longest_text"] = kLongestTableText;
  constants["most_proposed"] = kMostProposed;
  constants["most_rows"] = kMostAcceptRows;
  constants["factor"] = kHashFactor;
  constants["mask"] = kHashMask;
  constants["shift"] = kHashShift;
  constants["closed"] = kClosedText;
  return constants;
}

}  // namespace

void bind_accept(py::module_& module) {
  module.def("extend_ngrams", &bind_extend_ngrams);
  module.def("accept_draft", &bind_accept_draft);
  module.attr("ngram_constants") = ngram_constants();
}

}  // namespace eaglerl
