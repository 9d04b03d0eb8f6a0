// Bindings of acceptance over trees of several slots, and of their lookups.
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "acceptance/accept_draft.h"
#include "acceptance/online_bindings.h"
#include "common/checks.h"
#include "lookup/ngram_table.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A tensor with a row of `stride` elements for each slot.
template <typename T>
T* row_of(const char* name, uintptr_t address, int64_t slots, int64_t stride, int64_t slot) {
  T* const first = element_address<T>(name, address, slots * stride);
  return first + slot * stride;
}

// Sizes and addresses of a table, in the order of NgramTables and NgramSlot.
struct GivenTable {
  GivenTable(int64_t slots, const std::array<int64_t, 4>& given,
             const std::array<uintptr_t, 6>& memory)
      : sizes{given[0], given[1], given[2], given[3]}, slots(slots), memory(memory) {
    check_between("capacity", sizes.capacity, 1, kLongestTableText);
    check_between("orders", sizes.orders, 1, kLongestTableNgram - 1);
    check_between("places", sizes.places, 2 * sizes.capacity, 4 * kLongestTableText);
    check_between("proposed", sizes.proposed, 0, kMostProposed);
    if ((sizes.places & (sizes.places - 1)) != 0) {
      throw std::invalid_argument("places must be a power of two, got " +
                                  std::to_string(sizes.places));
    }
    if (slots > 0) at(0);
  }
  NgramSlot at(int64_t slot) const {
    return {row_of<int64_t>("texts", memory[0], slots, sizes.capacity, slot),
            row_of<int64_t>("lengths", memory[1], slots, 1, slot),
            row_of<int32_t>("ends", memory[2], slots, sizes.orders * sizes.places, slot),
            row_of<int64_t>("match_lengths", memory[3], slots, 1, slot),
            row_of<int64_t>("counts", memory[4], slots, 1, slot),
            row_of<int64_t>("token_ids", memory[5], slots, sizes.proposed, slot)};
  }
  NgramTables sizes;
  int64_t slots;
  std::array<uintptr_t, 6> memory;
};

void bind_extend_ngrams(int64_t slots, const std::array<int64_t, 4>& sizes,
                        const std::array<uintptr_t, 6>& memory, int64_t width, uintptr_t token_ids,
                        uintptr_t counts) {
  check_between("slots", slots, 0, kLargestCount);
  check_between("width", width, 0, kLongestTableText);
  const GivenTable table(slots, sizes, memory);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t count = *row_of<const int64_t>("counts", counts, slots, 1, slot);
    const int64_t* tokens = row_of<const int64_t>("token_ids", token_ids, slots, width, slot);
    extend_ngrams(table.sizes, table.at(slot), tokens, std::min(count, width));
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
  for (int64_t slot = 0; slot < slots; ++slot) {
    const VerifiedTree verified = {
        row_of<const int64_t>("token_ids", tree[0], slots, rows, slot),
        row_of<const int64_t>("parents", tree[1], slots, rows, slot),
        row_of<const int64_t>("levels", tree[2], slots, rows, slot),
        row_of<const uint8_t>("ancestors", tree[3], slots, rows * rows, slot),
        row_of<const uint8_t>("enabled", tree[4], slots, rows, slot),
        row_of<const int64_t>("choices", tree[5], slots, rows, slot)};
    const AcceptedPath path = {row_of<int64_t>("rows", out[0], slots, longest, slot),
                               row_of<int64_t>("counts", out[1], slots, 1, slot),
                               row_of<int64_t>("token_ids", out[2], slots, longest, slot)};
    const int64_t count = accept_draft(rows, longest, verified, path);
    if (table) extend_ngrams(table->sizes, table->at(slot), path.token_ids, count);
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
