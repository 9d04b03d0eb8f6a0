#include "target/block_decoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/attention_indices.h"
#include "attention/row_attention.h"
#include "common/team.h"
#include "target/prepared_rows.h"

namespace eaglerl {
namespace {

// Floats of scores at a time, 16 MB. With more, rows take turns.
constexpr int64_t kMostScores = int64_t(4) << 20;
constexpr int64_t kScoreChunk = 64;  // keys of a piece of work
constexpr int kQueuesPerLayer = 7;

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Consecutive rows of one slot, whose scores fit the buffer.
struct RowRun {
  int64_t begin;
  int64_t end;
  int64_t keys;  // of the row that sees most
};

// Buffers of a pass; each calling thread keeps its own from pass to pass.
struct Workspace {
  std::vector<float> hidden, qkv, attended, gate_up, queries, scores, inverse;
  PreparedStore prepared;
  std::vector<int64_t> token_ids;
  std::vector<int32_t> indices;
  std::vector<RowRun> runs;
  std::vector<AttentionTask> tasks;
  std::unique_ptr<WorkQueue[]> queues;
  size_t queue_count = 0;
};

void check_projection(const char* name, const Projection& projection, int64_t inputs,
                      int64_t outputs) {
  for (const auto& part : projection.parts) {
    if (part == nullptr) throw std::invalid_argument(std::string(name) + " has an empty part");
    if (part->view().width != inputs) {
      throw std::invalid_argument(std::string(name) + " must have " + std::to_string(inputs) +
                                  " inputs, got " + std::to_string(part->view().width));
    }
  }
  if (projection.outputs() != outputs) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(outputs) +
                                " outputs, got " + std::to_string(projection.outputs()));
  }
  if (!projection.bias.empty() && int64_t(projection.bias.size()) != outputs) {
    throw std::invalid_argument("the bias of " + std::string(name) + " must have " +
                                std::to_string(outputs) + " elements, got " +
                                std::to_string(projection.bias.size()));
  }
}

void check_vector(const char* name, const std::vector<float>& vector, int64_t size,
                  bool optional = false) {
  if (int64_t(vector.size()) == size || (optional && vector.empty())) return;
  throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                              " elements, got " + std::to_string(vector.size()));
}

// One pass, as every member of the team goes through it.
class Pass {
 public:
  Pass(const DecoderSizes& sizes, const DecoderPass& pass, const AttentionCall& call,
       Workspace& space)
      : sizes_(sizes),
        pass_(pass),
        call_(call),
        space_(space),
        kernels_(block_kernels()),
        attention_(row_attention_kernels()) {}

  void embed(const BlockMatrix& embedding, const TeamMember& member) {
    const Range rows = member.share(pass_.rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      embedding.dequantise_row(space_.token_ids[row], hidden() + row * sizes_.hidden);
    }
    member.wait();
  }

  void run_layer(int64_t index, const DecoderLayer& layer, const TeamMember& member) {
    copy_features(index, member);
    WorkQueue* queues = space_.queues.get() + index * kQueuesPerLayer;
    const int64_t heads = int64_t(sizes_.query_heads) * sizes_.head_dim;
    const int64_t qkv = layer.qkv.outputs();
    multiply(layer.qkv, norm_of(layer.input_norm, member), {space_.qkv.data(), qkv, nullptr, false},
             queues[0], member);
    attend(index, layer, queues + 1, member);
    multiply(layer.out,
             {RowSource::kPlain, heads, space_.attended.data(), heads, nullptr, nullptr, 0},
             {hidden(), sizes_.hidden, nullptr, true}, queues[4], member);
    const int64_t both = 2 * sizes_.intermediate;
    multiply(layer.gate_up, norm_of(layer.post_norm, member),
             {space_.gate_up.data(), both, nullptr, false}, queues[5], member);
    multiply(layer.down,
             {RowSource::kSiluMul, sizes_.intermediate, space_.gate_up.data(), both, nullptr,
              nullptr, sizes_.intermediate},
             {hidden(), sizes_.hidden, nullptr, true}, queues[6], member);
  }

  void finish(const std::vector<float>& norm, const Projection& head, WorkQueue& queue,
              const TeamMember& member) {
    const Range rows = member.share(pass_.rows);
    const RowSource source = norm_of(norm, member);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const float* x = hidden() + row * sizes_.hidden;
      float* out = pass_.last + row * sizes_.hidden;
      for (int64_t i = 0; i < sizes_.hidden; ++i) out[i] = x[i] * source.inverse[row] * norm[i];
    }
    if (pass_.logits_rows == 0) return;
    member.wait();
    const int64_t first = pass_.rows - pass_.logits_rows;
    multiply_rows(head, pass_.logits_rows,
                  {RowSource::kPlain, sizes_.hidden, pass_.last + first * sizes_.hidden,
                   sizes_.hidden, nullptr, nullptr, 0},
                  {pass_.logits, sizes_.vocabulary, nullptr, false}, queue, member);
  }

 private:
  void multiply_rows(const Projection& projection, int64_t rows, const RowSource& source,
                     const ProductTarget& target, WorkQueue& queue, const TeamMember& member) {
    multiply_projection(projection, rows, source, target, space_.prepared, queue, member);
  }

  float* hidden() const { return space_.hidden.data(); }

  void copy_features(int64_t index, const TeamMember& member) {
    for (int64_t f = 0; f < pass_.feature_count; ++f) {
      if (pass_.feature_layers[f] != index) continue;
      const Range rows = member.share(pass_.rows);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        std::memcpy(pass_.features + (row * pass_.feature_count + f) * sizes_.hidden,
                    hidden() + row * sizes_.hidden, size_t(sizes_.hidden) * sizeof(float));
      }
    }
  }

  // Every member computes the norms of all rows: for a few rows that is faster than waiting.
  RowSource norm_of(const std::vector<float>& weight, const TeamMember& member) {
    float* inverse = space_.inverse.data() + member.index * pass_.rows;
    kernels_.inverse_norms(hidden(), sizes_.hidden, pass_.rows, sizes_.hidden, sizes_.eps, inverse);
    return {RowSource::kNorm, sizes_.hidden, hidden(), sizes_.hidden, inverse, weight.data(), 0};
  }

  void multiply(const Projection& projection, const RowSource& source, const ProductTarget& target,
                WorkQueue& queue, const TeamMember& member) {
    multiply_rows(projection, pass_.rows, source, target, queue, member);
    // The next step reads the results, and prepares rows in the same place.
    member.wait();
  }

  void attend(int64_t index, const DecoderLayer& layer, WorkQueue* queues,
              const TeamMember& member) {
    AttentionCall call = call_;
    call.qkv = space_.qkv.data();
    call.out = space_.attended.data();
    const int64_t offset = index * pass_.layer_stride * element_bytes(call.cache_dtype);
    call.key_cache = static_cast<char*>(call.key_cache) + offset;
    call.value_cache = static_cast<char*>(call.value_cache) + offset;
    call.query_norm = layer.query_norm.empty() ? nullptr : layer.query_norm.data();
    call.key_norm = layer.key_norm.empty() ? nullptr : layer.key_norm.data();
    const Range rows = member.share(pass_.rows);
    cpu_kernels().write_keys_values(call, rows.begin, rows.end);
    if (pass_.rows < kManyRows) {
      attention_.rotate_queries(call, rows.begin, rows.end, space_.queries.data());
    }
    member.wait();
    if (pass_.rows >= kManyRows) return attend_many(call, queues[0], member);
    for (const RowRun& run : space_.runs) attend_run(call, run, queues, member);
  }

  // Blocks of up to 48 queries with an online softmax: a third less time behind 2,000 tokens, and
  // other rounding, like the products of as many rows.
  void attend_many(const AttentionCall& call, WorkQueue& queue, const TeamMember& member) {
    const CpuKernels& kernels = cpu_kernels();
    const int64_t count = int64_t(space_.tasks.size());
    // Last task first, since the last ones of a prompt take longest.
    for (int64_t i; (i = queue.take(1)) < count;) {
      kernels.attend(call, space_.tasks[count - 1 - i]);
    }
    member.wait();
  }

  void attend_run(const AttentionCall& call, const RowRun& run, WorkQueue* queues,
                  const TeamMember& member) {
    const int64_t stride = ceil_div(run.keys, kPanelOutputs) * kPanelOutputs;
    const int64_t chunks = ceil_div(run.keys, kScoreChunk);
    const int64_t pieces = chunks * call.kv_heads;
    float* scores = space_.scores.data();
    for (;;) {
      const int64_t piece = queues[0].take(1);
      if (piece >= pieces) break;
      const int64_t key = piece / call.kv_heads * kScoreChunk;
      // Rows of a prompt see as many keys as come before them.
      int64_t first = run.begin;
      while (first < run.end && call.prefix_lengths[first] + call.block_length <= key) ++first;
      float* place = scores + (first - run.begin) * call.query_heads * stride;
      attention_.score_keys(call, space_.queries.data(), first, run.end, int(piece % call.kv_heads),
                            key, std::min(key + kScoreChunk, run.keys), place, stride);
    }
    member.wait();
    const int64_t queries = (run.end - run.begin) * call.query_heads;
    for (;;) {
      const int64_t query = queues[1].take(1);
      if (query >= queries) break;
      attention_.attend_query(call, run.begin + query / call.query_heads,
                              int(query % call.query_heads), scores + query * stride);
    }
    member.wait();
    if (space_.runs.size() == 1) return;
    // The queues serve the next run, too.
    if (member.index == 0) {
      queues[0].reset();
      queues[1].reset();
    }
    member.wait();
  }

  const DecoderSizes& sizes_;
  const DecoderPass& pass_;
  const AttentionCall& call_;
  Workspace& space_;
  const BlockKernels& kernels_;
  const RowAttentionKernels& attention_;
};

void plan_runs(const AttentionCall& call, int64_t rows, std::vector<RowRun>& runs) {
  runs.clear();
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t keys = int64_t(call.prefix_lengths[row]) + call.block_length;
    if (!runs.empty()) {
      RowRun& run = runs.back();
      const int64_t most = std::max(run.keys, keys);
      const bool same = !call.slots || call.slots[run.begin] == call.slots[row];
      if (same &&
          (row + 1 - run.begin) * call.query_heads * (most + kPanelOutputs) <= kMostScores) {
        run.end = row + 1;
        run.keys = most;
        continue;
      }
    }
    runs.push_back({row, row + 1, keys});
  }
}

}  // namespace

BlockDecoder::BlockDecoder(const DecoderSizes& sizes, std::shared_ptr<const BlockMatrix> embedding,
                           std::vector<DecoderLayer> layers, std::vector<float> norm,
                           Projection head)
    : sizes_(sizes),
      embedding_(std::move(embedding)),
      layers_(std::move(layers)),
      norm_(std::move(norm)),
      head_(std::move(head)) {
  check_between("hidden", sizes.hidden, 1, kLargestCount);
  check_between("intermediate", sizes.intermediate, 1, kLargestCount);
  check_heads(sizes.query_heads, sizes.kv_heads);
  check_head_dim(sizes.head_dim);
  if (embedding_ == nullptr) throw std::invalid_argument("embedding is missing");
  check_between("inputs of the embedding", embedding_->view().width, sizes.hidden, sizes.hidden);
  check_between("outputs of the embedding", embedding_->view().outputs, sizes.vocabulary,
                sizes.vocabulary);
  const int64_t heads = int64_t(sizes.query_heads) * sizes.head_dim;
  const int64_t kv = int64_t(sizes.kv_heads) * sizes.head_dim;
  for (const DecoderLayer& layer : layers_) {
    check_vector("input_norm", layer.input_norm, sizes.hidden);
    check_vector("post_norm", layer.post_norm, sizes.hidden);
    check_vector("query_norm", layer.query_norm, sizes.head_dim, true);
    check_vector("key_norm", layer.key_norm, sizes.head_dim, true);
    check_projection("qkv", layer.qkv, sizes.hidden, heads + 2 * kv);
    check_projection("out", layer.out, heads, sizes.hidden);
    check_projection("gate_up", layer.gate_up, sizes.hidden, 2 * sizes.intermediate);
    check_projection("down", layer.down, sizes.intermediate, sizes.hidden);
  }
  check_vector("norm", norm_, sizes.hidden);
  check_projection("head", head_, sizes.hidden, sizes.vocabulary);
}

void BlockDecoder::run(const DecoderPass& pass, const AttentionLimits& limits, int threads) const {
  const int64_t rows = pass.rows;
  if (rows == 0) return;
  static thread_local Workspace own_space;
  Workspace& space = own_space;
  // Copied like the other indices: another thread may change them between check and use.
  space.token_ids.assign(pass.token_ids, pass.token_ids + rows);
  for (int64_t row = 0; row < rows; ++row) {
    check_index("token_ids", row, space.token_ids[row], sizes_.vocabulary);
  }
  AttentionCall call = with_own_indices(pass.attention, rows, space.indices);
  check_indices(call, limits, rows);
  const int64_t heads = int64_t(sizes_.query_heads) * sizes_.head_dim;
  const int64_t qkv = heads + 2 * int64_t(sizes_.kv_heads) * sizes_.head_dim;
  call.qkv_stride = qkv;
  call.out_stride = heads;
  if (rows >= kManyRows) {
    space.runs.clear();
    plan_blocks(call, rows, cpu_kernels(), space.tasks);
  } else {
    plan_runs(call, rows, space.runs);
  }
  int64_t most_scores = 0;
  for (const RowRun& run : space.runs) {
    most_scores = std::max(most_scores,
                           (run.end - run.begin) * sizes_.query_heads * (run.keys + kPanelOutputs));
  }
  grow_buffer(space.hidden, rows * sizes_.hidden);
  grow_buffer(space.qkv, rows * qkv);
  grow_buffer(space.attended, rows * heads);
  grow_buffer(space.queries, rows * heads);
  grow_buffer(space.gate_up, rows * 2 * sizes_.intermediate);
  grow_buffer(space.scores, most_scores);
  grow_buffer(space.inverse, rows * threads);
  space.prepared.reserve(sizes_.rows, rows, std::max({sizes_.hidden, sizes_.intermediate, heads}),
                         threads);
  const size_t queue_count = layers_.size() * kQueuesPerLayer + 1;
  if (space.queue_count < queue_count) {
    space.queues.reset(new WorkQueue[queue_count]);
    space.queue_count = queue_count;
  }
  for (size_t i = 0; i < queue_count; ++i) space.queues[i].reset();

  Pass steps(sizes_, pass, call, space);
  with_team(threads, [&](const TeamMember& member) {
    steps.embed(*embedding_, member);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      steps.run_layer(int64_t(layer), layers_[layer], member);
    }
    steps.finish(norm_, head_, space.queues[queue_count - 1], member);
  });
}

}  // namespace eaglerl
