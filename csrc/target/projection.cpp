#include "target/projection.h"

#include <algorithm>

namespace eaglerl {
namespace {

// Pieces of a product that each member takes at the least: what one is held up by, the others take.
constexpr int64_t kPiecesPerMember = 6;

// Panels [from, to) of one matrix times all groups of rows.
void multiply_groups(const BlockMatrixView& view, bool int8, int64_t rows, int64_t inputs,
                     PreparedStore& prepared, int64_t from, int64_t to, const ProductTarget& target,
                     const TeamMember& member) {
  const auto kernel = int8 ? int8_kernels().multiply_int8 : block_kernels().multiply_float;
  for (int64_t group = 0; group < group_count(rows); ++group) {
    ProductTarget place = target;
    place.out += group_begin(rows, group) * target.stride;
    kernel(view, prepared.group(group, rows, inputs, int8, member), from, to, place);
  }
}

}  // namespace

int64_t Projection::outputs() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part->view().outputs;
  return sum;
}

void multiply_projection(const Projection& projection, bool int8, int64_t rows,
                         const RowSource& source, ProductTarget target, PreparedStore& prepared,
                         WorkQueue& queue, const TeamMember& member) {
  bool as_float = false, as_int8 = false;
  int64_t panels = 0;
  for (const auto& part : projection.parts) {
    const bool part_int8 = int8 && has_int8_product(part->view().format);
    as_int8 |= part_int8;
    as_float |= !part_int8;
    panels += part->panel_count();
  }
  const int64_t inputs = projection.parts[0]->view().inputs;
  const BlockKernels& kernels = block_kernels();
  const bool many = as_float && rows >= kManyRows;
  ManyRows many_rows = {};
  if (many) many_rows = prepared.prepare_many(kernels, source, rows, inputs, member);
  prepared.prepare(kernels, source, rows, inputs, as_float && !many, as_int8, member);
  int64_t grain = std::max<int64_t>(1, panels / (kPiecesPerMember * member.count));
  if (many) grain += grain % 2;  // whole pairs of panels
  if (!projection.bias.empty()) target.bias = projection.bias.data();
  for (int64_t begin; (begin = queue.take(grain)) < panels;) {
    const int64_t end = std::min(begin + grain, panels);
    int64_t first_panel = 0, first_output = 0;
    for (const auto& part : projection.parts) {
      const BlockMatrixView& view = part->view();
      const int64_t from = std::max<int64_t>(begin - first_panel, 0);
      const int64_t to = std::min(end - first_panel, part->panel_count());
      const bool part_int8 = int8 && has_int8_product(view.format);
      ProductTarget place = target;
      place.out += first_output;
      if (place.bias) place.bias += first_output;
      if (from < to && many && !part_int8) {
        kernels.multiply_many(view, many_rows, from, to, place, prepared.expanded(inputs, member));
      } else if (from < to) {
        multiply_groups(view, part_int8, rows, inputs, prepared, from, to, place, member);
      }
      first_panel += part->panel_count();
      first_output += view.outputs;
    }
  }
}

void multiply_block_matrix(const BlockMatrix& matrix, const float* x, float* out, int64_t rows,
                           bool int8, int threads) {
  if (rows == 0) return;
  static thread_local PreparedStore own_store;
  PreparedStore& prepared = own_store;
  const BlockMatrixView& view = matrix.view();
  prepared.reserve(rows, view.inputs, threads);
  // Not owned: the matrix outlives the product.
  const Projection projection = {{{std::shared_ptr<const void>(), &matrix}}, {}};
  const RowSource source = {RowSource::kPlain, x, view.inputs, nullptr, nullptr, 0};
  WorkQueue queue;
  with_team(threads, [&](const TeamMember& member) {
    multiply_projection(projection, int8, rows, source, {out, view.outputs, nullptr, false},
                        prepared, queue, member);
  });
}

}  // namespace eaglerl
