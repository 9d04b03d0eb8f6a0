#include "tree_bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tree_builder.h"
#include "tree_common.h"

#if EAGLERL_HAS_CUDA
#include "tree_cuda.h"
#endif

namespace py = pybind11;

namespace eaglerl {
namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

DraftLogits draft_logits(uintptr_t logits, int64_t row_stride, int64_t vocab, uintptr_t map,
                         int threads) {
  return {at<const float>(logits), row_stride, vocab, at<const int64_t>(map), threads};
}

TreeRows tree_rows(uintptr_t tokens, uintptr_t parents, uintptr_t levels, uintptr_t mask,
                   int32_t words, uintptr_t scores) {
  return {at<int64_t>(tokens), at<int32_t>(parents), at<int32_t>(levels),
          at<int64_t>(mask),   words,                at<float>(scores)};
}

std::vector<int64_t> integers(const char* name, py::handle values) {
  py::detail::make_caster<std::vector<int64_t>> caster;
  if (!caster.load(values, true)) {
    throw py::type_error(std::string(name) + " must be a sequence of integers, got " +
                         std::string(py::repr(values)));
  }
  return py::detail::cast_op<std::vector<int64_t>&&>(std::move(caster));
}

void bind_builder(py::module_& module) {
  py::class_<DraftTreeBuilder>(module, "DraftTreeBuilder")
      .def(py::init<>())
      .def("begin", &DraftTreeBuilder::begin)
      .def("first",
           [](DraftTreeBuilder& builder, uintptr_t logits, int64_t vocab, uintptr_t map) {
             builder.first(draft_logits(logits, vocab, vocab, map, 1));
           })
      .def("expand",
           [](DraftTreeBuilder& builder, uintptr_t logits, int64_t row_stride, int64_t vocab,
              uintptr_t map, int threads) {
             builder.expand(draft_logits(logits, row_stride, vocab, map, threads));
           })
      .def("frontier",
           [](const DraftTreeBuilder& builder, uintptr_t tokens, uintptr_t parents, uintptr_t mask,
              int32_t words) {
             builder.frontier(at<int64_t>(tokens), at<int64_t>(parents), at<int64_t>(mask), words);
           })
      .def("finish",
           [](DraftTreeBuilder& builder, int total_tokens, uintptr_t tokens, uintptr_t parents,
              uintptr_t levels, uintptr_t mask, int32_t words, uintptr_t scores) {
             builder.finish(total_tokens, tree_rows(tokens, parents, levels, mask, words, scores));
           })
      .def("select",
           [](DraftTreeBuilder& builder, py::handle nodes, py::handle chain) {
             return builder.select(integers("nodes", nodes), integers("chain", chain));
           })
      .def("finish_selected",
           [](DraftTreeBuilder& builder, uintptr_t tokens, uintptr_t parents, uintptr_t levels,
              uintptr_t mask, int32_t words, uintptr_t scores) {
             builder.finish_selected(tree_rows(tokens, parents, levels, mask, words, scores));
           })
      .def("chain_nodes",
           [](const DraftTreeBuilder& builder, py::handle chain, int32_t levels, uintptr_t nodes) {
             builder.chain_nodes(integers("chain", chain), levels, at<int64_t>(nodes));
           })
      .def("scores",
           [](const DraftTreeBuilder& builder, uintptr_t out) { builder.scores(at<float>(out)); })
      .def_property_readonly("top_k", &DraftTreeBuilder::top_k)
      .def_property_readonly("rounds", &DraftTreeBuilder::rounds)
      .def_property_readonly("pool_size", &DraftTreeBuilder::pool_size);
}

void check_parents(const int32_t* parents, int32_t rows) {
  for (int32_t row = 1; row < rows; ++row) {
    if (parents[row] < 0 || parents[row] >= row) {
      throw std::invalid_argument("parents[" + std::to_string(row) + "] = " +
                                  std::to_string(parents[row]) +
                                  " is not one of the rows before it");
    }
  }
}

int32_t bind_accept_path(uintptr_t parents, uintptr_t tokens, uintptr_t choices, int32_t rows,
                         uintptr_t out_rows) {
  return accept_path(at<const int32_t>(parents), at<const int64_t>(tokens),
                     at<const int64_t>(choices), rows, at<int32_t>(out_rows));
}

void bind_tree_structure(uintptr_t parents, int32_t rows, uintptr_t levels, uintptr_t mask,
                         int32_t words) {
  check_parents(at<const int32_t>(parents), rows);
  tree_levels(at<const int32_t>(parents), rows, at<int32_t>(levels));
  for (int32_t word = 0; word < words; ++word) {
    ancestor_mask_word(at<const int32_t>(parents), rows, words, word, at<int64_t>(mask));
  }
}

#if EAGLERL_HAS_CUDA
void check_launch(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

void bind_cuda(py::module_& module) {
  module.def("cuda_accept_path",
             [](uintptr_t parents, uintptr_t tokens, uintptr_t choices, int32_t rows,
                int32_t batch, uintptr_t out_rows, uintptr_t counts, uintptr_t stream) {
               check_launch(cuda_accept_path(at<const int32_t>(parents), at<const int64_t>(tokens),
                                             at<const int64_t>(choices), rows, batch,
                                             at<int32_t>(out_rows), at<int32_t>(counts),
                                             at<void>(stream)));
             });
  module.def("cuda_tree_structure",
             [](uintptr_t parents, int32_t rows, int32_t batch, uintptr_t levels, uintptr_t mask,
                int32_t words, uintptr_t stream) {
               check_launch(cuda_tree_structure(at<const int32_t>(parents), rows, batch,
                                                at<int32_t>(levels), at<int64_t>(mask), words,
                                                at<void>(stream)));
             });
}
#endif

}  // namespace

void bind_tree(py::module_& module) {
  bind_builder(module);
  module.def("accept_path", &bind_accept_path);
  module.def("tree_structure", &bind_tree_structure);
#if EAGLERL_HAS_CUDA
  bind_cuda(module);
#endif
}

}  // namespace eaglerl
