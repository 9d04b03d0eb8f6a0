#include "target/prepared_rows.h"

#include <algorithm>

namespace eaglerl {
namespace {

constexpr int64_t kExpandedOutputs = 2 * kPanelOutputs;

}  // namespace

void PreparedStore::reserve(int64_t rows, int64_t inputs, int threads) {
  const int64_t kept = std::max<int64_t>(rows, threads);
  inputs_ = std::max(inputs_, inputs);
  grow_buffer(values_, (kept + kManyGroupRows) * inputs_);
  if (rows >= kManyRows) grow_buffer(expanded_, threads * kExpandedOutputs * inputs_);
  grow_buffer(words_, kept * inputs_ / 4);
  grow_buffer(code_sums_, kept * inputs_ / kHalfSumInputs);
  for (std::vector<float>* buffer : {&sums_, &code_products_, &scales_}) {
    grow_buffer(*buffer, kept * inputs_ / kSumInputs);
  }
}

PreparedRows PreparedStore::group(int64_t group, int64_t rows, int64_t inputs, bool int8,
                                  const TeamMember& member) {
  const int64_t first = rows <= kAloneRows ? member.index : group_begin(rows, group);
  const int64_t last = rows <= kAloneRows ? first + 1 : group_begin(rows, group + 1);
  PreparedRows prepared = {};
  prepared.rows = int(last - first);
  prepared.inputs = inputs;
  prepared.values = values_.data() + first * inputs;
  prepared.sums = (int8 ? code_products_ : sums_).data() + first * (inputs / kSumInputs);
  prepared.words = words_.data() + first * (inputs / 4);
  prepared.scales = scales_.data() + first * (inputs / kSumInputs);
  prepared.code_sums = code_sums_.data() + first * (inputs / kHalfSumInputs);
  return prepared;
}

ManyRows PreparedStore::prepare_many(const BlockKernels& kernels, const RowSource& source,
                                     int64_t rows, int64_t inputs, const TeamMember& member) {
  const ManyRows prepared = {rows, inputs, values_.data()};
  const int64_t blocks = inputs / kSumInputs;
  const int64_t units = (rows + kManyGroupRows - 1) / kManyGroupRows * blocks;
  const Range own = member.share(units);
  for (int64_t unit = own.begin; unit < own.end;) {
    const int64_t begin = unit % blocks;
    const int64_t stop = std::min(blocks, begin + own.end - unit);
    kernels.prepare_many(source, unit / blocks, begin, stop, prepared);
    unit += stop - begin;
  }
  member.wait();
  return prepared;
}

float* PreparedStore::expanded(int64_t inputs, const TeamMember& member) {
  return expanded_.data() + member.index * kExpandedOutputs * inputs;
}

void PreparedStore::prepare(const BlockKernels& kernels, const RowSource& source, int64_t rows,
                            int64_t inputs, bool as_float, bool as_int8, const TeamMember& member) {
  const int64_t blocks = inputs / kSumInputs;
  const bool alone = rows <= kAloneRows;
  const int64_t units = group_count(rows) * blocks;
  const Range own = alone ? Range{0, units} : member.share(units);
  for (int64_t unit = own.begin; unit < own.end;) {
    const int64_t number = unit / blocks;
    const int64_t begin = unit % blocks;
    const int64_t stop = std::min(blocks, begin + own.end - unit);
    const int64_t first = group_begin(rows, number);
    if (as_float) {
      kernels.prepare_float(source, first, begin, stop, group(number, rows, inputs, false, member));
    }
    if (as_int8) {
      int8_kernels().prepare_int8(source, first, begin, stop,
                                  group(number, rows, inputs, true, member));
    }
    unit += stop - begin;
  }
  if (!alone) member.wait();
}

}  // namespace eaglerl
