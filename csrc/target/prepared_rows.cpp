#include "target/prepared_rows.h"

#include <algorithm>

namespace eaglerl {
namespace {

bool alone(int64_t rows) { return rows <= 1; }

// The first of a group's rows in the buffers.
int64_t first_of(const RowGroups& groups, int64_t group, const TeamMember& member) {
  return alone(groups.rows) ? member.index : groups.begin(group);
}

// Calls body(group, begin, end) for the member's share of all groups' blocks.
template <typename Body>
void share(const RowGroups& groups, int64_t blocks, const TeamMember& member, const Body& body) {
  const int64_t units = groups.count() * blocks;
  const Range own = alone(groups.rows) ? Range{0, units} : member.share(units);
  for (int64_t unit = own.begin; unit < own.end;) {
    const int64_t begin = unit % blocks;
    const int64_t stop = std::min(blocks, begin + own.end - unit);
    body(unit / blocks, begin, stop);
    unit += stop - begin;
  }
}

constexpr int64_t kExpandedOutputs = 2 * kPanelOutputs;

constexpr int kThreeDigits = 3;

}  // namespace

void PreparedStore::reserve(RowKind kind, int64_t rows, int64_t inputs, int threads) {
  block_ = &block_kernels();
  code_ = &code_kernels();
  kind_ = kind;
  widest_ = std::max(widest_, (inputs + kSumInputs - 1) / kSumInputs * kSumInputs);
  digits_ = 0;
  if (kind == RowKind::kInt8) digits_ = 1;
  if (kind == RowKind::kFloat32 && code_->has_dot) digits_ = kThreeDigits;
  tiles_ = tile_kernels();

  // Every member may have a row of its own.
  const int64_t kept = std::max<int64_t>(rows, threads);
  grow_buffer(values_, (kept + kManyGroupRows) * widest_);
  grow_buffer(sums_, kept * widest_ / kSumInputs);
  if (rows >= kManyRows) grow_buffer(expanded_, threads * kExpandedOutputs * widest_);
  if (tiles_ && kind == RowKind::kBfloat16) tile_values_.grow((kept + kMostTileRows) * widest_);
  if (digits_ == 0) return;
  grow_buffer(codes_, kept * widest_ * digits_);
  grow_buffer(code_sums_, kept * widest_ / kHalfSumInputs * digits_);
  grow_buffer(code_products_, kept * widest_ / kSumInputs);
  grow_buffer(scales_, kept * widest_ / kSumInputs);
}

RowForm PreparedStore::form_of(BlockFormat format, int64_t rows) const {
  if (digits_ != 0 && has_code_product(format)) return RowForm::kCodes;
  if (tiles_ && kind_ == RowKind::kBfloat16 && format == BlockFormat::kBF16) {
    return RowForm::kTile;
  }
  return rows >= kManyRows ? RowForm::kManyFloat : RowForm::kFloat;
}

PreparedRows PreparedStore::floats(const RowGroups& groups, int64_t group, int64_t inputs,
                                   const TeamMember& member) {
  const int64_t first = first_of(groups, group, member);
  return {int(groups.begin(group + 1) - groups.begin(group)), inputs,
          values_.data() + first * inputs, sums_.data() + first * (inputs / kSumInputs)};
}

CodeRows PreparedStore::codes(const RowGroups& groups, int64_t group, int64_t inputs,
                              const TeamMember& member) {
  const int64_t first = first_of(groups, group, member);
  const int64_t units = first * (inputs / kSumInputs);
  return {int(groups.begin(group + 1) - groups.begin(group)),
          digits_,
          inputs,
          codes_.data() + first * inputs * digits_,
          scales_.data() + units,
          code_products_.data() + units,
          code_sums_.data() + first * (inputs / kHalfSumInputs) * digits_};
}

TileRows PreparedStore::tile_rows(const RowGroups& groups, int64_t group, int64_t inputs,
                                  const TeamMember& member) {
  return {int(groups.begin(group + 1) - groups.begin(group)), inputs,
          tile_values_.data() + first_of(groups, group, member) * inputs};
}

void PreparedStore::prepare(const RowSource& given, int64_t rows, int64_t inputs, unsigned forms,
                            const TeamMember& member) {
  RowSource source = given;
  source.rounded = kind_ == RowKind::kBfloat16;
  const int64_t blocks = inputs / kSumInputs;
  const auto wanted = [&](RowForm form) { return (forms >> int(form) & 1) != 0; };
  if (wanted(RowForm::kFloat)) {
    const RowGroups groups = {rows, kGroupRows};
    share(groups, blocks, member, [&](int64_t group, int64_t begin, int64_t end) {
      block_->prepare_float(source, groups.begin(group), begin, end,
                            floats(groups, group, inputs, member));
    });
  }
  if (wanted(RowForm::kManyFloat)) {
    const RowGroups groups = {rows, kManyGroupRows};
    const ManyRows many = {rows, inputs, values_.data()};
    share(groups, blocks, member, [&](int64_t group, int64_t begin, int64_t end) {
      block_->prepare_many(source, group, begin, end, many);
    });
  }
  if (wanted(RowForm::kCodes)) {
    const RowGroups groups = {rows, most_dot_rows(digits_)};
    share(groups, blocks, member, [&](int64_t group, int64_t begin, int64_t end) {
      code_->prepare_codes(source, groups.begin(group), begin, end,
                           codes(groups, group, inputs, member));
    });
  }
  if (wanted(RowForm::kTile)) {
    const RowGroups groups = {rows, kMostTileRows};
    share(groups, blocks, member, [&](int64_t group, int64_t begin, int64_t end) {
      tiles_->prepare(source, groups.begin(group), begin, end,
                      tile_rows(groups, group, inputs, member));
    });
  }
  if (!alone(rows)) member.wait();
}

void PreparedStore::multiply(const BlockMatrixView& matrix, int64_t rows, int64_t begin,
                             int64_t end, const ProductTarget& target, const TeamMember& member) {
  const int64_t inputs = matrix.inputs;
  const auto target_of = [&](int64_t row) {
    ProductTarget place = target;
    place.out += row * target.stride;
    return place;
  };
  switch (form_of(matrix.format, rows)) {
    case RowForm::kFloat: {
      const RowGroups groups = {rows, kGroupRows};
      for (int64_t g = 0; g < groups.count(); ++g) {
        block_->multiply_float(matrix, floats(groups, g, inputs, member), begin, end,
                               target_of(groups.begin(g)));
      }
      return;
    }
    case RowForm::kManyFloat: {
      float* buffer = expanded_.data() + member.index * kExpandedOutputs * inputs;
      return block_->multiply_many(matrix, {rows, inputs, values_.data()}, begin, end, target,
                                   buffer);
    }
    case RowForm::kCodes: {
      const RowGroups groups = {rows, most_dot_rows(digits_)};
      for (int64_t g = 0; g < groups.count(); ++g) {
        code_->multiply_codes(matrix, codes(groups, g, inputs, member), begin, end,
                              target_of(groups.begin(g)));
      }
      return;
    }
    case RowForm::kTile: {
      const RowGroups groups = {rows, kMostTileRows};
      for (int64_t g = 0; g < groups.count(); g += 2) {
        TileRows pair[2] = {tile_rows(groups, g, inputs, member), {}};
        const int count = g + 1 < groups.count() ? 2 : 1;
        if (count == 2) pair[1] = tile_rows(groups, g + 1, inputs, member);
        tiles_->multiply(matrix, pair, count, begin, end, target_of(groups.begin(g)));
      }
      return;
    }
  }
}

}  // namespace eaglerl
