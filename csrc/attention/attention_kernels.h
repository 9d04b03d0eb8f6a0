// Attention of a few rows over a long KV cache, with RoPE and the cache write. Included only by
// cpu_kernels.cpp. Softmax is online over tiles of keys (Milakov and Gimelshein, 2018), in base 2:
// log2(e) is folded into the scale of the queries.
//
// A block of queries takes one of two forms. With few queries, vectors run along head_dim and every
// score is a horizontal sum. With more, vectors run along the queries: keys and values are read in
// the cache's layout with one broadcast per element, no score needs a horizontal sum, and maximum,
// mask and rescaling are one operation per vector of queries.
#pragma once

#include "attention/attention_rows.h"
#include "common/cpu_kernels.h"
#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

// A block has up to 48 queries with AVX-512, 24 with AVX2, 12 with vectors of four floats. At
// head_dim 64 and 48 queries, the queries, their outputs and a tile's scores take 12 KiB each, and
// a tile of 64 keys and its values 16 KiB each: 68 KiB, within a second-level cache of 256 KiB.
constexpr int kMaxVectors = 3;
constexpr int kBlockQueries = kMaxVectors * kLanes;
static_assert(kBlockQueries <= kMaxBlockQueries);

// Keys (or value columns) that are processed together. Their accumulators, one per vector of
// queries, must stay in registers; eight or more independent ones hide the latency of a fused
// multiply-add (4 cycles, two a cycle).
// AVX-512, 3 vectors: 8 * 3 accumulators, 3 queries and 1 broadcast use 28 of 32 registers.
// AVX2 and SSE, 3 vectors: 4 * 3 accumulators, 3 queries and 1 broadcast use all 16.
constexpr int group_of([[maybe_unused]] int vectors) {
#if defined(__AVX512F__)
  return 8;
#else
  return vectors == 1 ? 8 : 4;
#endif
}

// Keys are prefetched 16 ahead of the one being scored: 4 KiB at head_dim 64.
constexpr int kPrefetchKeys = 16;
constexpr int kLineFloats = 16;  // of a cache line, 64 bytes

template <int Vectors>
struct QueryBlock {
  static constexpr int kColumns = Vectors * kLanes;
  // Transposed, so that one element of head_dim is a vector of queries.
  alignas(64) float queries[kMaxHeadDim * kColumns];  // (head_dim, columns)
  alignas(64) float output[kMaxHeadDim * kColumns];   // (head_dim, columns), not normalised
  alignas(64) float scores[kTileKeys * kColumns];     // (keys, columns)
  VecF maxima[Vectors];
  VecF sums[Vectors];
  VecI prefix[Vectors];
  int32_t rows[kColumns];
};

template <int Vectors>
static void load_queries(const AttentionCall& call, const AttentionTask& task,
                         QueryBlock<Vectors>& block) {
  constexpr int kColumns = QueryBlock<Vectors>::kColumns;
  alignas(64) float rotated[kMaxHeadDim];
  alignas(64) int32_t prefix[kColumns];
  // Columns past the last query hold a query of zeros. They take the row of the last one, so that
  // their prefix length and mask can be read like any other.
  for (int column = 0; column < kColumns; ++column) {
    const bool used = column < task.query_count;
    const Query query = query_of(call, task, used ? column : task.query_count - 1);
    block.rows[column] = query.row;
    prefix[column] = call.prefix_lengths[query.row];
    if (used) load_query(call, query, rotated);
    for (int d = 0; d < call.head_dim; ++d) {
      block.queries[d * kColumns + column] = used ? rotated[d] : 0.0f;
    }
  }
  std::memcpy(block.prefix, prefix, sizeof(prefix));
  for (int v = 0; v < Vectors; ++v) {
    block.maxima[v] = splat(kNoMaximum);
    block.sums[v] = VecF{};
  }
  std::memset(block.output, 0, sizeof(float) * kColumns * call.head_dim);
}

// Prefetches as many keys and values as it scores, one cache line of each a step: a core has few
// outstanding cache misses (10 to 16 line fill buffers), so prefetching all at once would stall.
template <int Vectors, int Keys>
static inline void score_keys(const float* queries, const float* keys, const float* next_keys,
                              const float* values, int head_dim, float* scores) {
  constexpr int kColumns = Vectors * kLanes;
  // Elements of a step, which prefetch at most one cache line: Keys * kStep floats.
  constexpr int kStep = kLineFloats / Keys < 8 ? kLineFloats / Keys : 8;
  VecF sums[Keys][Vectors] = {};
  const auto add_element = [&](int d) {
    VecF query[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) query[v] = load(queries + d * kColumns + v * kLanes);
#pragma GCC unroll 8
    for (int key = 0; key < Keys; ++key) {
      const VecF element = splat(keys[int64_t(key) * head_dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[key][v] += query[v] * element;
    }
  };
  int begin = 0;
  for (; begin + kStep <= head_dim; begin += kStep) {
    __builtin_prefetch(next_keys + begin * Keys);
    __builtin_prefetch(values + begin * Keys);
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) add_element(begin + i);
  }
  for (; begin < head_dim; ++begin) add_element(begin);
#pragma GCC unroll 8
  for (int key = 0; key < Keys; ++key) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(scores + key * kColumns + v * kLanes, sums[key][v]);
  }
}

template <int Vectors>
static void score_tile(const QueryBlock<Vectors>& block, const float* keys, const float* values,
                       int head_dim, int count, float* scores) {
  constexpr int kColumns = Vectors * kLanes, kGroup = group_of(Vectors);
  int key = 0;
  for (; key + kGroup <= count; key += kGroup) {
    const float* group = keys + int64_t(key) * head_dim;
    score_keys<Vectors, kGroup>(block.queries, group, group + kPrefetchKeys * head_dim,
                                values + int64_t(key) * head_dim, head_dim,
                                scores + key * kColumns);
  }
  for (; key < count; ++key) {
    const float* single = keys + int64_t(key) * head_dim;
    score_keys<Vectors, 1>(block.queries, single, single + kPrefetchKeys * head_dim,
                           values + int64_t(key) * head_dim, head_dim, scores + key * kColumns);
  }
}

// Hides keys [begin, begin + count) according to the prefix lengths and the mask. The mask is read
// 32 bits at a time, the width of a lane: 32 keys share one gather of the block's mask words.
template <int Vectors>
static void hide_keys(const AttentionCall& call, const QueryBlock<Vectors>& block, int begin,
                      int count, float* scores) {
  constexpr int kColumns = Vectors * kLanes;
  alignas(64) int32_t words[kColumns] = {};
  int loaded_word = -1;
  for (int key = 0; key < count; ++key) {
    // Rows of a masked call share their prefix length, see next_run.
    const int bit = begin + key - block.prefix[0][0];
    if (call.block_length > 0 && bit < 0) continue;
    if (call.block_length > 0 && bit / 32 != loaded_word) {
      loaded_word = bit / 32;
      for (int column = 0; column < kColumns; ++column) {
        const uint64_t word = call.mask[block.rows[column] * call.mask_words + bit / 64];
        words[column] = int32_t(uint32_t(word >> (bit & 32)));
      }
    }
    for (int v = 0; v < Vectors; ++v) {
      float* place = scores + key * kColumns + v * kLanes;
      VecI visible;
      if (call.block_length > 0) {
        const VecI word = *(const VecI*)(words + v * kLanes);
        visible = (word & splat(int32_t(1u << (bit & 31)))) != 0;
      } else {
        visible = splat(begin + key) < block.prefix[v];
      }
      store(place, visible ? load(place) : splat(kHidden));
    }
  }
}

// Turns scores into weights; leaves in `rescale` the factor for earlier sums and outputs. The tile
// exists for this: one rescaling for 64 keys instead of one for each.
template <int Vectors>
static void softmax_tile(QueryBlock<Vectors>& block, int count, VecF* rescale) {
  constexpr int kColumns = Vectors * kLanes;
  for (int v = 0; v < Vectors; ++v) {
    float* scores = block.scores + v * kLanes;
    VecF best = block.maxima[v];
    for (int key = 0; key < count; ++key) best = maximum(best, load(scores + key * kColumns));
    rescale[v] = exp2_vector(block.maxima[v] - best);
    block.maxima[v] = best;
    VecF sum = block.sums[v] * rescale[v];
    for (int key = 0; key < count; ++key) {
      const VecF weight = exp2_vector(load(scores + key * kColumns) - best);
      store(scores + key * kColumns, weight);
      sum += weight;
    }
    block.sums[v] = sum;
  }
}

// Adds the weighted values of columns [d, d + Columns) of head_dim. The sums stay in registers for
// the whole tile: an output is loaded and stored once for 64 keys.
template <int Vectors, int Columns>
static inline void add_columns(QueryBlock<Vectors>& block, const float* values, int d, int head_dim,
                               int count, const VecF* rescale) {
  constexpr int kColumns = Vectors * kLanes;
  VecF sums[Columns][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Columns; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      sums[i][v] = load(block.output + (d + i) * kColumns + v * kLanes) * rescale[v];
    }
  }
  for (int key = 0; key < count; ++key) {
    const float* value = values + int64_t(key) * head_dim + d;
    VecF weight[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      weight[v] = load(block.scores + key * kColumns + v * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Columns; ++i) {
      const VecF element = splat(value[i]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] += weight[v] * element;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Columns; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      store(block.output + (d + i) * kColumns + v * kLanes, sums[i][v]);
    }
  }
}

template <int Vectors>
static void add_values(QueryBlock<Vectors>& block, const float* values, int head_dim, int count,
                       const VecF* rescale) {
  constexpr int kGroup = group_of(Vectors);
  int d = 0;
  for (; d + kGroup <= head_dim; d += kGroup) {
    add_columns<Vectors, kGroup>(block, values, d, head_dim, count, rescale);
  }
  for (; d < head_dim; ++d) add_columns<Vectors, 1>(block, values, d, head_dim, count, rescale);
}

template <int Vectors>
static void attend_block(const AttentionCall& call, const AttentionTask& task) {
  constexpr int kColumns = QueryBlock<Vectors>::kColumns;
  QueryBlock<Vectors> block;
  TileBuffer buffer;
  load_queries(call, task, block);
  const int head_dim = call.head_dim;
  const int64_t base = cache_offset(call, task, block.rows[0]);
  for (int begin = task.key_begin; begin < task.key_end; begin += kTileKeys) {
    const int count = task.key_end - begin < kTileKeys ? task.key_end - begin : kTileKeys;
    const Tile tile = read_tile(call, base + int64_t(begin) * head_dim, count, buffer);
    score_tile(block, tile.keys, tile.values, head_dim, count, block.scores);
    if (begin + count > task.mask_begin) hide_keys(call, block, begin, count, block.scores);
    VecF rescale[Vectors];
    softmax_tile(block, count, rescale);
    add_values(block, tile.values, head_dim, count, rescale);
  }
  alignas(64) float row[kMaxHeadDim];
  for (int column = 0; column < task.query_count; ++column) {
    for (int d = 0; d < head_dim; ++d) row[d] = block.output[d * kColumns + column];
    finish_query(call, task, column, ((const float*)block.maxima)[column],
                 ((const float*)block.sums)[column], row);
  }
}

// attend_block pads queries to whole vectors. With up to 6 queries for 16 lanes (AVX-512), or 4 for
// 8 (AVX2), half or more of its work would be padding: so few take the other form.
static void attend(const AttentionCall& call, const AttentionTask& task) {
  const bool whole_vectors = call.head_dim % kLanes == 0;
  if (whole_vectors && task.query_count <= kMaxFewQueries) {
    attend_few(call, task);
  } else if (task.query_count <= kLanes) {
    attend_block<1>(call, task);
  } else if (task.query_count <= 2 * kLanes) {
    attend_block<2>(call, task);
  } else {
    attend_block<3>(call, task);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
