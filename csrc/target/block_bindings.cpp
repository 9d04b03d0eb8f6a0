// Bindings of block matrices and of the decoder over them.
#include "target/block_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/binding_methods.h"
#include "common/parallel.h"
#include "target/block_decoder.h"

namespace py = pybind11;

namespace eaglerl {
namespace {

// A row takes 3 us, a thread about as long to wake.
constexpr int64_t kGatherGrain = 16;

using FloatArray = py::array_t<float, py::array::c_style>;
using Matrices = std::vector<std::shared_ptr<BlockMatrix>>;
// A product's matrices, and the biases of all of its outputs.
using ProductParts = std::tuple<Matrices, std::optional<FloatArray>>;
// Norms of input, output, queries and keys; the products qkv, out, gate and up, and down.
using LayerParts =
    std::tuple<FloatArray, FloatArray, std::optional<FloatArray>, std::optional<FloatArray>,
               ProductParts, ProductParts, ProductParts, ProductParts>;

std::vector<float> to_vector(const FloatArray& array) {
  if (array.ndim() != 1) throw py::value_error("norms and biases must have one axis");
  return {array.data(), array.data() + array.size()};
}

std::vector<float> to_vector(const std::optional<FloatArray>& array) {
  return array ? to_vector(*array) : std::vector<float>();
}

// ggml's numbers of the types that a BlockMatrix takes, by their names.
std::map<std::string, int32_t> block_formats() {
  std::map<std::string, int32_t> numbers;
  for (const BlockLayout& layout : kBlockLayouts) numbers[layout.name] = int32_t(layout.format);
  return numbers;
}

std::shared_ptr<BlockMatrix> make_matrix(int32_t format, int64_t outputs, int64_t inputs,
                                         const py::buffer& file,
                                         const std::optional<py::array_t<int64_t>>& rows,
                                         int threads) {
  check_between("threads", threads, 1, kMostThreads);
  check_between("outputs", outputs, 1, kLargestCount);
  const auto kind = static_cast<BlockFormat>(format);
  const int64_t needed =
      check_product("file", {outputs, file_row_bytes(kind, inputs)}, kLargestSize);
  // A view of plain bytes: whatever is given, its memory is contiguous or this throws.
  Py_buffer view;
  if (PyObject_GetBuffer(file.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> guard(&view, &PyBuffer_Release);
  if (view.len != needed) {
    throw py::value_error("file must have " + std::to_string(needed) + " bytes, got " +
                          std::to_string(view.len));
  }
  std::vector<int64_t> order;
  if (rows) {
    if (rows->ndim() != 1 || rows->size() != outputs) {
      throw py::value_error("rows must have " + std::to_string(outputs) + " elements");
    }
    const auto values = rows->unchecked<1>();
    for (int64_t i = 0; i < outputs; ++i) order.push_back(values(i));
  }
  py::gil_scoped_release release;
  return std::make_shared<BlockMatrix>(kind, outputs, inputs, static_cast<const uint8_t*>(view.buf),
                                       rows ? order.data() : nullptr, threads);
}

py::array_t<float> dequantise(const BlockMatrix& matrix, int64_t begin, int64_t end) {
  matrix.check_usable();
  const BlockMatrixView& view = matrix.view();
  check_between("begin", begin, 0, view.outputs);
  check_between("end", end, begin, view.outputs);
  py::array_t<float> out({end - begin, view.width});
  float* place = out.mutable_data();
  py::gil_scoped_release release;
  for (int64_t row = begin; row < end; ++row, place += view.width)
    matrix.dequantise_row(row, place);
  return out;
}

// Writes rows `token_ids` (rows,) as floats into out (rows, inputs).
void gather(const BlockMatrix& matrix, uintptr_t token_ids, int64_t rows, uintptr_t out,
            int threads) {
  matrix.check_usable();
  check_between("threads", threads, 1, kMostThreads);
  const BlockMatrixView& view = matrix.view();
  check_between("rows", rows, 0, kLargestCount);
  check_product("out", {rows, view.width});
  const int64_t* source = element_address<const int64_t>("token_ids", token_ids, rows);
  float* target = element_address<float>("out", out, rows);
  py::gil_scoped_release release;
  // A copy: what is checked is what is read, whoever else writes to the ids.
  const std::vector<int64_t> ids(source, source + rows);
  for (const int64_t id : ids) check_between("token_ids", id, 0, view.outputs - 1);
  parallel_for(rows, kGatherGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      matrix.dequantise_row(ids[size_t(row)], target + row * view.width);
  });
}

RowKind row_kind(const std::string& activations) {
  if (activations == "float32") return RowKind::kFloat32;
  if (activations == "int8") return RowKind::kInt8;
  if (activations == "bfloat16") return RowKind::kBfloat16;
  throw py::value_error("activations must be 'float32', 'int8' or 'bfloat16', got '" + activations +
                        "'");
}

// The product with rows x (rows, inputs): the op that tests and benchmarks measure.
void multiply(const BlockMatrix& matrix, uintptr_t x, uintptr_t out, int64_t rows,
              const std::string& activations, int threads) {
  const RowKind kind = row_kind(activations);
  matrix.check_usable();
  check_between("threads", threads, 1, kMostThreads);
  const BlockMatrixView& view = matrix.view();
  check_product("x", {rows, view.width});
  check_product("out", {rows, view.outputs});
  if (kind == RowKind::kInt8 && !has_code_product(view.format)) {
    throw py::value_error("int8 needs a format in blocks, got " +
                          std::string(block_layout(view.format)->name));
  }
  const float* source = element_address<const float>("x", x, rows);
  float* target = element_address<float>("out", out, rows);
  py::gil_scoped_release release;
  multiply_block_matrix(matrix, source, target, rows, kind, threads);
}

Projection projection_of(const ProductParts& product) {
  const auto& [matrices, bias] = product;
  if (matrices.empty()) throw py::value_error("a product must have at least one matrix");
  for (const auto& matrix : matrices) {
    if (matrix == nullptr) throw py::value_error("a product's matrix must not be None");
    matrix->check_usable();
  }
  return {{matrices.begin(), matrices.end()}, to_vector(bias)};
}

std::unique_ptr<BlockDecoder> make_decoder(int64_t intermediate, int32_t query_heads,
                                           int32_t kv_heads, int32_t head_dim, float eps,
                                           float scale, const std::string& activations,
                                           const std::shared_ptr<BlockMatrix>& embedding,
                                           const std::vector<LayerParts>& layers,
                                           const FloatArray& norm, const ProductParts& head) {
  if (embedding == nullptr) throw py::value_error("embedding must be a BlockMatrix");
  embedding->check_usable();
  DecoderSizes sizes = {};
  sizes.hidden = embedding->view().width;
  sizes.vocabulary = embedding->view().outputs;
  sizes.intermediate = intermediate;
  sizes.query_heads = query_heads;
  sizes.kv_heads = kv_heads;
  sizes.head_dim = head_dim;
  sizes.eps = eps;
  sizes.scale = scale;
  sizes.rows = row_kind(activations);
  std::vector<DecoderLayer> built;
  for (const auto& [input_norm, post_norm, query_norm, key_norm, qkv, out, gate_up, down] :
       layers) {
    built.push_back({to_vector(input_norm), to_vector(post_norm), to_vector(query_norm),
                     to_vector(key_norm), projection_of(qkv), projection_of(out),
                     projection_of(gate_up), projection_of(down)});
  }
  return std::make_unique<BlockDecoder>(sizes, embedding, std::move(built), to_vector(norm),
                                        projection_of(head));
}

void run(const BlockDecoder& decoder, uintptr_t token_ids, int64_t rows, uintptr_t cos,
         uintptr_t sin, int64_t table_length, uintptr_t positions, uintptr_t cache_rows,
         uintptr_t slots, uintptr_t cache, int64_t slot_count, int64_t slot_stride,
         int64_t layer_stride, int64_t value_offset, int64_t capacity, int32_t cache_dtype,
         uintptr_t prefix_lengths, uintptr_t mask, int64_t mask_words, int32_t block_length,
         const std::vector<int32_t>& feature_layers, uintptr_t features, uintptr_t last,
         uintptr_t logits, int64_t logits_rows, int threads) {
  decoder.check_usable();
  check_between("threads", threads, 1, kMostThreads);
  const DecoderSizes& sizes = decoder.sizes();
  const int64_t heads = int64_t(sizes.query_heads) * sizes.head_dim;
  AttentionCall call = {};
  call.qkv_stride = heads + 2 * int64_t(sizes.kv_heads) * sizes.head_dim;
  call.out_stride = heads;
  call.slot_stride = slot_stride;
  call.capacity = capacity;
  call.cache_dtype = check_cache_dtype(cache_dtype);
  call.mask_words = mask_words;
  call.block_length = block_length;
  call.eps = sizes.eps;
  call.scale = sizes.scale;
  call.query_heads = sizes.query_heads;
  call.kv_heads = sizes.kv_heads;
  call.head_dim = sizes.head_dim;
  const AttentionLimits limits = {table_length, slot_count};
  check_attention_sizes(call, limits, rows);
  const int64_t half = check_product("a layer's keys", {sizes.kv_heads, capacity, sizes.head_dim});
  check_between("value_offset", value_offset, half, kLargestSize);
  check_between("layer_stride", layer_stride, value_offset + half, kLargestSize);
  check_product("a slot of the cache", {decoder.layer_count(), layer_stride});
  check_between("logits_rows", logits_rows, 0, rows);
  check_product("logits", {logits_rows, sizes.vocabulary});
  check_product("features", {rows, int64_t(feature_layers.size()), sizes.hidden});
  call.cos = element_address<const float>("cos", cos, std::min(rows, table_length));
  call.sin = element_address<const float>("sin", sin, std::min(rows, table_length));
  call.positions = element_address<const int32_t>("positions", positions, rows);
  call.cache_rows = element_address<const int32_t>("cache_rows", cache_rows, rows);
  call.slots = optional_address<const int32_t>("slots", slots);
  call.key_cache = cache_address("cache", cache, rows, call.cache_dtype);
  call.value_cache =
      static_cast<char*>(call.key_cache) + value_offset * element_bytes(call.cache_dtype);
  call.prefix_lengths = element_address<const int32_t>("prefix_lengths", prefix_lengths, rows);
  call.mask = element_address<const int64_t>("mask", mask, block_length > 0 ? rows : 0);
  DecoderPass pass = {};
  pass.token_ids = element_address<const int64_t>("token_ids", token_ids, rows);
  pass.rows = rows;
  pass.attention = call;
  pass.layer_stride = layer_stride;
  pass.feature_layers = feature_layers.data();
  pass.feature_count = int64_t(feature_layers.size());
  pass.features = element_address<float>("features", features, feature_layers.empty() ? 0 : rows);
  pass.last = element_address<float>("last", last, rows);
  pass.logits = element_address<float>("logits", logits, logits_rows);
  pass.logits_rows = logits_rows;
  py::gil_scoped_release release;
  decoder.run(pass, limits, threads);
}

}  // namespace

void bind_blocks(py::module_& module) {
  module.def("block_formats", &block_formats);
  py::class_<BlockMatrix, std::shared_ptr<BlockMatrix>>(module, "BlockMatrix")
      .def(py::init(&make_matrix), py::arg("format"), py::arg("outputs"), py::arg("inputs"),
           py::arg("file"), py::arg("rows"), py::arg("threads"))
      .def_property_readonly("bytes", usable(&BlockMatrix::bytes))
      .def_property_readonly("shape",
                             [](const BlockMatrix& matrix) {
                               matrix.check_usable();
                               return py::make_tuple(matrix.view().outputs, matrix.view().width);
                             })
      .def("dequantise", &dequantise, py::arg("begin"), py::arg("end"))
      .def("gather", &gather, py::arg("token_ids"), py::arg("rows"), py::arg("out"),
           py::arg("threads"))
      .def("multiply", &multiply, py::arg("x"), py::arg("out"), py::arg("rows"),
           py::arg("activations"), py::arg("threads"));
  py::class_<BlockDecoder>(module, "BlockDecoder")
      .def(py::init(&make_decoder), py::arg("intermediate"), py::arg("query_heads"),
           py::arg("kv_heads"), py::arg("head_dim"), py::arg("eps"), py::arg("scale"),
           py::arg("activations"), py::arg("embedding"), py::arg("layers"), py::arg("norm"),
           py::arg("head"))
      .def("run", &run);
}

}  // namespace eaglerl
