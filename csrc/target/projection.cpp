#include "target/projection.h"

#include <algorithm>

namespace eaglerl {
namespace {

// Pieces of a product that each member takes at the least: what one is held up by, the others take.
constexpr int64_t kPiecesPerMember = 6;

}  // namespace

int64_t Projection::outputs() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part->view().outputs;
  return sum;
}

void multiply_projection(const Projection& projection, int64_t rows, const RowSource& source,
                         ProductTarget target, PreparedStore& prepared, WorkQueue& queue,
                         const TeamMember& member) {
  unsigned forms = 0;
  int64_t panels = 0;
  for (const auto& part : projection.parts) {
    forms |= 1u << int(prepared.form_of(part->view().format, rows));
    panels += part->panel_count();
  }
  prepared.prepare(source, rows, projection.parts[0]->view().inputs, forms, member);
  int64_t grain = std::max<int64_t>(1, panels / (kPiecesPerMember * member.count));
  grain += grain % 2;  // whole pairs of panels, which expanded weights and tiles take together
  if (!projection.bias.empty()) target.bias = projection.bias.data();
  for (int64_t begin; (begin = queue.take(grain)) < panels;) {
    const int64_t end = std::min(begin + grain, panels);
    int64_t first_panel = 0, first_output = 0;
    for (const auto& part : projection.parts) {
      const int64_t from = std::max<int64_t>(begin - first_panel, 0);
      const int64_t to = std::min(end - first_panel, part->panel_count());
      ProductTarget place = target;
      place.out += first_output;
      if (place.bias) place.bias += first_output;
      if (from < to) prepared.multiply(part->view(), rows, from, to, place, member);
      first_panel += part->panel_count();
      first_output += part->view().outputs;
    }
  }
}

void multiply_block_matrix(const BlockMatrix& matrix, const float* x, float* out, int64_t rows,
                           RowKind kind, int threads) {
  if (rows == 0) return;
  static thread_local PreparedStore own_store;
  PreparedStore& prepared = own_store;
  const BlockMatrixView& view = matrix.view();
  prepared.reserve(kind, rows, view.width, threads);
  // Not owned: the matrix outlives the product.
  const Projection projection = {{{std::shared_ptr<const void>(), &matrix}}, {}};
  const RowSource source = {RowSource::kPlain, view.width, x, view.width, nullptr, nullptr, 0};
  WorkQueue queue;
  with_team(threads, [&](const TeamMember& member) {
    multiply_projection(projection, rows, source, {out, view.outputs, nullptr, false}, prepared,
                        queue, member);
  });
}

}  // namespace eaglerl
