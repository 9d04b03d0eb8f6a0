#include "tree/tree_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/binding_methods.h"
#include "common/parallel.h"
#include "tree/greedy_paths.h"
#include "tree/tree_builder.h"
#include "tree/tree_common.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

constexpr int64_t kMaskBits = 64;

DraftLogits draft_logits(uintptr_t logits, int64_t row_stride, int64_t vocab, uintptr_t map,
                         int threads) {
  check_between("vocab", vocab, 0, kLargestCount);
  check_size("row_stride", row_stride);
  check_between("threads", threads, 1, kMostThreads);
  return {element_address<const float>("logits", logits, vocab), row_stride, vocab,
          optional_address<const int64_t>("draft_to_target", map), threads};
}

TreeRows tree_rows(uintptr_t tokens, uintptr_t parents, uintptr_t levels, uintptr_t mask,
                   int32_t words, uintptr_t scores) {
  check_between("words", words, 1, kLargestCount);
  return {element_address<int64_t>("tokens", tokens, 1),
          element_address<int32_t>("parents", parents, 1),
          element_address<int32_t>("levels", levels, 1),
          element_address<int64_t>("mask", mask, 1),
          words,
          element_address<float>("scores", scores, 1)};
}

std::vector<int64_t> integers(const char* name, py::handle values) {
  py::detail::make_caster<std::vector<int64_t>> caster;
  if (!caster.load(values, true)) {
    throw py::type_error(std::string(name) + " must be a sequence of integers, got " +
                         std::string(py::repr(values)));
  }
  return py::detail::cast_op<std::vector<int64_t>&&>(std::move(caster));
}

void first(DraftTreeBuilder& builder, uintptr_t logits, int64_t vocab, uintptr_t map) {
  builder.first(draft_logits(logits, vocab, vocab, map, 1));
}

void expand(DraftTreeBuilder& builder, uintptr_t logits, int64_t row_stride, int64_t vocab,
            uintptr_t map, int threads) {
  builder.expand(draft_logits(logits, row_stride, vocab, map, threads));
}

void frontier(DraftTreeBuilder& builder, uintptr_t tokens, uintptr_t parents, uintptr_t mask,
              int32_t words) {
  check_between("words", words, 0, kLargestCount);
  const int64_t least =
      builder.rounds() > 0 ? 1 : 0;  // before first(), the builder says what is missing
  builder.frontier(element_address<int64_t>("tokens", tokens, least),
                   element_address<int64_t>("parents", parents, least),
                   element_address<int64_t>("mask", mask, least), words);
}

void finish(DraftTreeBuilder& builder, int total_tokens, uintptr_t tokens, uintptr_t parents,
            uintptr_t levels, uintptr_t mask, int32_t words, uintptr_t scores) {
  builder.finish(total_tokens, tree_rows(tokens, parents, levels, mask, words, scores));
}

int64_t select(DraftTreeBuilder& builder, py::handle nodes, py::handle lookup_tokens) {
  std::vector<int64_t> chosen = integers("nodes", nodes);
  return builder.select(std::move(chosen), integers("lookup_tokens", lookup_tokens));
}

void finish_selected(DraftTreeBuilder& builder, uintptr_t tokens, uintptr_t parents,
                     uintptr_t levels, uintptr_t mask, int32_t words, uintptr_t scores) {
  builder.finish_selected(tree_rows(tokens, parents, levels, mask, words, scores));
}

void lookup_nodes(DraftTreeBuilder& builder, py::handle lookup_tokens, int32_t levels,
                  uintptr_t nodes) {
  check_between("levels", levels, 0, kLargestCount);
  builder.lookup_nodes(integers("lookup_tokens", lookup_tokens), levels,
                       element_address<int64_t>("nodes", nodes, levels));
}

void scores(DraftTreeBuilder& builder, uintptr_t out) {
  builder.scores(element_address<float>("out", out, builder.pool_size()));
}

// All that a policy sees of the draft so far, in new arrays: one call, since a policy may look
// after every pass and its time is decoding time.
py::tuple progress(DraftTreeBuilder& builder, py::handle lookup_tokens, int32_t levels) {
  check_between("levels", levels, 0, kMostTreeRows);
  py::array_t<float> scores(builder.pool_size());
  builder.scores(scores.mutable_data());
  const std::vector<int64_t> tokens = integers("lookup_tokens", lookup_tokens);
  if (tokens.empty()) return py::make_tuple(std::move(scores), py::none());
  py::array_t<int64_t> nodes(levels);
  builder.lookup_nodes(tokens, levels, nodes.mutable_data());
  return py::make_tuple(std::move(scores), std::move(nodes));
}

void bind_builder(py::module_& module) {
  py::class_<DraftTreeBuilder>(module, "DraftTreeBuilder")
      .def(py::init<>())
      .def("begin", usable(&DraftTreeBuilder::begin))
      .def("first", usable(&first))
      .def("expand", usable(&expand))
      .def("frontier", usable(&frontier))
      .def("finish", usable(&finish))
      .def("select", usable(&select))
      .def("finish_selected", usable(&finish_selected))
      .def("lookup_nodes", usable(&lookup_nodes))
      .def("scores", usable(&scores))
      .def("progress", usable(&progress))
      .def_property_readonly("top_k", usable(&DraftTreeBuilder::top_k))
      .def_property_readonly("rounds", usable(&DraftTreeBuilder::rounds))
      .def_property_readonly("pool_size", usable(&DraftTreeBuilder::pool_size));
}

// Returns the address of a tree's parents after checking that every parent precedes its children.
const int32_t* checked_parents(uintptr_t address, int32_t rows) {
  check_between("rows", rows, 1, kMostTreeRows);
  const int32_t* parents = element_address<const int32_t>("parents", address, rows);
  for (int32_t row = 1; row < rows; ++row) {
    if (parents[row] < 0 || parents[row] >= row) {
      throw std::invalid_argument("parents[" + std::to_string(row) +
                                  "] = " + std::to_string(parents[row]) +
                                  " is not one of the rows before it");
    }
  }
  return parents;
}

int32_t bind_accept_path(uintptr_t parents, uintptr_t tokens, uintptr_t choices, int32_t rows,
                         uintptr_t out_rows) {
  return accept_path(checked_parents(parents, rows),
                     element_address<const int64_t>("tokens", tokens, rows),
                     element_address<const int64_t>("choices", choices, rows), rows,
                     element_address<int32_t>("out_rows", out_rows, rows));
}

// Trees are (parents, tokens, rows, first row of the logits).
py::list bind_greedy_paths(
    uintptr_t logits, int64_t logit_rows, int64_t stride, int64_t vocab,
    const std::vector<std::tuple<uintptr_t, uintptr_t, int32_t, int64_t>>& trees, int threads) {
  check_between("logit_rows", logit_rows, 1, kLargestCount);
  check_between("vocab", vocab, 1, kLargestCount);
  check_between("stride", stride, vocab, kLargestCount);
  check_product("logits", {logit_rows, stride});
  check_between("threads", threads, 1, kMostThreads);
  const float* first = element_address<const float>("logits", logits, logit_rows);
  std::vector<VerifiedTree> verified;
  for (const auto& [parents, tokens, rows, first_row] : trees) {
    const int32_t* checked = checked_parents(parents, rows);
    check_between("first_row", first_row, 0, logit_rows - rows);
    verified.push_back({checked, element_address<const int64_t>("tokens", tokens, rows),
                        first + first_row * stride, rows});
  }
  std::vector<GreedyPath> paths(verified.size());
  greedy_paths(verified.data(), int64_t(verified.size()), stride, vocab, threads, paths.data());
  py::list found;
  for (GreedyPath& path : paths) {
    found.append(py::make_tuple(std::move(path.rows), std::move(path.tokens), path.has_nan));
  }
  return found;
}

void bind_tree_structure(uintptr_t parents, int32_t rows, uintptr_t levels, uintptr_t mask,
                         int32_t words) {
  const int32_t* checked = checked_parents(parents, rows);
  check_between("words", words, (rows + kMaskBits - 1) / kMaskBits, kLargestCount);
  int64_t* bits = element_address<int64_t>("mask", mask, rows);
  tree_levels(checked, rows, element_address<int32_t>("levels", levels, rows));
  for (int32_t word = 0; word < words; ++word) {
    ancestor_mask_word(checked, rows, words, word, bits);
  }
}

}  // namespace

void bind_tree(py::module_& module) {
  bind_builder(module);
  module.attr("max_tree_rows") = kMostTreeRows;
  module.attr("max_candidates") = kMostCandidates;
  module.def("accept_path", &bind_accept_path);
  module.def("greedy_paths", &bind_greedy_paths);
  module.def("tree_structure", &bind_tree_structure);
}

}  // namespace eaglerl
