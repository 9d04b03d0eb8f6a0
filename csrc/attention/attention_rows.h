// Parts of attention that work on single rows: RoPE, the cache write, blocks of few queries, and
// the combination of partial results. Included only by cpu_kernels.cpp.
#pragma once

#include <math.h>

#include "attention/norm_kernels.h"
#include "common/cpu_kernels.h"
#include "common/half_vectors.h"
#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {

constexpr int kTileKeys = 64;  // keys between two updates of the running maximum
#if defined(__AVX512F__)
constexpr int kMaxFewQueries = 6;
#else
constexpr int kMaxFewQueries = 4;  // more queries fill over half of a vector of 8
#endif
// Both are finite: infinity minus infinity would be NaN. A hidden key's weight is
// exp2(kHidden - maximum) = 0, also where every key is hidden and the maximum stays kNoMaximum.
constexpr float kHidden = -3e38f;
constexpr float kNoMaximum = -1e30f;

static inline void prefetch_rows(const float* address, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(address + i);
}

// Rotates pairs (d, d + head_dim / 2) as transformers' Llama does, after an optional RMSNorm of the
// head (Qwen3), and multiplies by `scale`.
static inline void rotate_head(const AttentionCall& call, const float* source, int32_t position,
                               const float* norm, float scale, float* target) {
  const int half = call.head_dim / 2;
  const float* cos = call.cos + int64_t(position) * half;
  const float* sin = call.sin + int64_t(position) * half;
  alignas(64) float normed[kMaxHeadDim];
  if (norm) {
    const float mean = sum_of_squares(source, call.head_dim) / float(call.head_dim);
    const float inverse = 1.0f / sqrtf(mean + call.eps);
    for (int d = 0; d < call.head_dim; ++d) normed[d] = source[d] * inverse * norm[d];
    source = normed;
  }
  for (int d = 0; d < half; ++d) {
    const float first = source[d], second = source[d + half];
    target[d] = (first * cos[d] - second * sin[d]) * scale;
    target[d + half] = (second * cos[d] + first * sin[d]) * scale;
  }
}

static inline int64_t slot_offset(const AttentionCall& call, int64_t row) {
  return call.slots ? call.slots[row] * call.slot_stride : 0;
}

static inline void narrow(CacheDtype dtype, VecF values, uint16_t* target) {
  if (dtype == CacheDtype::kBfloat16) {
    store_bfloat16(target, values);
  } else {
    store_halves(target, values);
  }
}

// Writes the keys or values of one head to their place in the cache, rounded to its dtype.
static inline void write_head(const AttentionCall& call, const float* source, void* cache,
                              int64_t place) {
  const int64_t dim = call.head_dim;
  if (call.cache_dtype == CacheDtype::kFloat32) {
    std::memcpy((float*)cache + place, source, dim * sizeof(float));
    return;
  }
  uint16_t* target = (uint16_t*)cache + place;
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) narrow(call.cache_dtype, load(source + d), target + d);
  if (d == dim) return;
  float rest[kLanes] = {};
  uint16_t narrowed[kLanes];
  std::memcpy(rest, source + d, (dim - d) * sizeof(float));
  narrow(call.cache_dtype, load(rest), narrowed);
  std::memcpy(target + d, narrowed, (dim - d) * sizeof(uint16_t));
}

static void write_keys_values(const AttentionCall& call, int64_t begin, int64_t end) {
  const int64_t dim = call.head_dim;
  alignas(64) float rotated[kMaxHeadDim];
  for (int64_t row = begin; row < end; ++row) {
    const float* keys = call.qkv + row * call.qkv_stride + call.query_heads * dim;
    const float* values = keys + call.kv_heads * dim;
    for (int head = 0; head < call.kv_heads; ++head) {
      const int64_t place =
          slot_offset(call, row) + (int64_t(head) * call.capacity + call.cache_rows[row]) * dim;
      rotate_head(call, keys + head * dim, call.positions[row], call.key_norm, 1.0f, rotated);
      write_head(call, rotated, call.key_cache, place);
      write_head(call, values + head * dim, call.value_cache, place);
    }
  }
}

struct Query {
  int32_t row;
  int32_t head;
};

static inline Query query_of(const AttentionCall& call, const AttentionTask& task, int index) {
  const int group = call.query_heads / call.kv_heads;
  const int query = task.query_begin + index;
  return {query / group, task.kv_head * group + query % group};
}

static inline void load_query(const AttentionCall& call, const Query& query, float* target) {
  const float* source =
      call.qkv + query.row * call.qkv_stride + int64_t(query.head) * call.head_dim;
  rotate_head(call, source, call.positions[query.row], call.query_norm, call.scale * kLog2E,
              target);
}

static inline int64_t cache_offset(const AttentionCall& call, const AttentionTask& task,
                                   int64_t row) {
  return slot_offset(call, row) + int64_t(task.kv_head) * call.capacity * call.head_dim;
}

// A tile's keys and values, (kTileKeys, head_dim) at most.
struct Tile {
  const float* keys;
  const float* values;
};

struct TileBuffer {
  alignas(64) float keys[kTileKeys * kMaxHeadDim];
  alignas(64) float values[kTileKeys * kMaxHeadDim];
};

static inline VecF widen(CacheDtype dtype, const uint16_t* source) {
  return dtype == CacheDtype::kBfloat16 ? load_bfloat16(source) : load_halves(source);
}

static void widen_elements(CacheDtype dtype, const uint16_t* source, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, widen(dtype, source + i));
  if (i == count) return;
  uint16_t rest[kLanes] = {};
  std::memcpy(rest, source + i, (count - i) * sizeof(uint16_t));
  const VecF last = widen(dtype, rest);
  std::memcpy(out + i, &last, (count - i) * sizeof(float));
}

// Returns `count` keys and values from `place` of the cache on: where they are in float32, else a
// copy in the buffer. A tile serves up to 48 queries, so the copy is a small part of its work.
static inline Tile read_tile(const AttentionCall& call, int64_t place, int count,
                             TileBuffer& buffer) {
  if (call.cache_dtype == CacheDtype::kFloat32) {
    return {(const float*)call.key_cache + place, (const float*)call.value_cache + place};
  }
  const int64_t elements = int64_t(count) * call.head_dim;
  widen_elements(call.cache_dtype, (const uint16_t*)call.key_cache + place, elements, buffer.keys);
  widen_elements(call.cache_dtype, (const uint16_t*)call.value_cache + place, elements,
                 buffer.values);
  return {buffer.keys, buffer.values};
}

static inline float* partial_row(const AttentionCall& call, float* partial, int index) {
  return partial + 2 * kMaxBlockQueries + int64_t(index) * call.head_dim;
}

static inline void store_normalised(const AttentionCall& call, const AttentionTask& task, int index,
                                    float sum, const float* row) {
  const Query query = query_of(call, task, index);
  float* out = call.out + query.row * call.out_stride + int64_t(query.head) * call.head_dim;
  // A query that may see nothing has a sum of 0; its output is 0.
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int d = 0; d < call.head_dim; ++d) out[d] = row[d] * factor;
}

static inline void finish_query(const AttentionCall& call, const AttentionTask& task, int index,
                                float best, float sum, const float* row) {
  if (!task.partial) return store_normalised(call, task, index, sum, row);
  task.partial[index] = best;
  task.partial[kMaxBlockQueries + index] = sum;
  std::memcpy(partial_row(call, task.partial, index), row, call.head_dim * sizeof(float));
}

// Combines a block's chunks of keys. Each chunk's sum and output are relative to its own maximum,
// so they are scaled by exp2(maximum - largest) before they are added, as in FlashDecoding.
static void combine(const AttentionCall& call, const AttentionTask& task) {
  const int64_t stride = kMaxBlockQueries * (2 + int64_t(call.head_dim));
  alignas(64) float row[kMaxHeadDim];
  for (int index = 0; index < task.query_count; ++index) {
    float best = kNoMaximum;
    for (int chunk = 0; chunk < task.chunk_count; ++chunk) {
      const float candidate = task.partial[chunk * stride + index];
      best = candidate > best ? candidate : best;
    }
    float sum = 0.0f;
    for (int d = 0; d < call.head_dim; ++d) row[d] = 0.0f;
    for (int chunk = 0; chunk < task.chunk_count; ++chunk) {
      float* partial = task.partial + chunk * stride;
      const float factor = exp2_vector(splat(partial[index] - best))[0];
      const float* part = partial_row(call, partial, index);
      sum += factor * partial[kMaxBlockQueries + index];
      for (int d = 0; d < call.head_dim; ++d) row[d] += factor * part[d];
    }
    store_normalised(call, task, index, sum, row);
  }
}

static inline bool visible(const AttentionCall& call, int64_t row, int key) {
  const int bit = key - call.prefix_lengths[row];
  if (bit < 0) return true;
  if (bit >= call.block_length) return false;
  return (uint64_t(call.mask[row * call.mask_words + bit / 64]) >> (bit % 64)) & 1;
}

// Rows of queries, outputs and scores of a block with few queries: vectors run along head_dim.
template <int Queries>
struct FewQueries {
  alignas(64) float queries[Queries * kMaxHeadDim];
  alignas(64) float output[Queries * kMaxHeadDim];
  alignas(64) float scores[Queries * kTileKeys];
  float maxima[Queries];
  float sums[Queries];
};

template <int Queries>
static inline void score_few(const float* queries, const float* keys, const float* values,
                             int head_dim, int count, float* scores) {
  for (int key = 0; key < count; ++key) {
    const float* row = keys + int64_t(key) * head_dim;
    // The keys ahead are needed next, the value of this key after the softmax.
    prefetch_rows(row + 16 * head_dim, head_dim);
    prefetch_rows(values + int64_t(key) * head_dim, head_dim);
    VecF sums[Queries] = {};
    for (int d = 0; d < head_dim; d += kLanes) {
      const VecF element = load(row + d);
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) sums[q] += element * load(queries + q * head_dim + d);
    }
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) scores[q * kTileKeys + key] = horizontal_sum(sums[q]);
  }
}

// Turns the scores of one query into weights and returns the factor for earlier sums.
static inline float softmax_few(float* scores, int count, float& best, float& sum) {
  for (int key = count; key % kLanes; ++key) scores[key] = kHidden;
  VecF maxima = splat(best);
  for (int key = 0; key < count; key += kLanes) maxima = maximum(maxima, load(scores + key));
  const float new_best = horizontal_maximum(maxima);
  const float rescale = exp2_vector(splat(best - new_best))[0];
  VecF sums = {};
  for (int key = 0; key < count; key += kLanes) {
    const VecF weight = exp2_vector(load(scores + key) - new_best);
    store(scores + key, weight);
    sums += weight;
  }
  best = new_best;
  sum = sum * rescale + horizontal_sum(sums);
  return rescale;
}

template <int Queries, int Vectors>
static inline void add_few(const float* scores, const float* values, int head_dim, int count,
                           const float* rescale, float* output) {
  VecF sums[Queries][Vectors];
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      sums[q][v] = load(output + q * head_dim + v * kLanes) * rescale[q];
    }
  }
  for (int key = 0; key < count; ++key) {
    const float* row = values + int64_t(key) * head_dim;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const VecF element = load(row + v * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) sums[q][v] += element * scores[q * kTileKeys + key];
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(output + q * head_dim + v * kLanes, sums[q][v]);
  }
}

template <int Queries>
static void attend_few_of(const AttentionCall& call, const AttentionTask& task) {
  // Columns of the values at a time: 24 sums for 6 queries (AVX-512, 32 registers), 8 for 4 (AVX2,
  // 16 registers) leave registers for the values themselves.
  constexpr int kVectors = kLanes == 16 ? 4 : 2;
  FewQueries<Queries> block;
  TileBuffer buffer;
  const int head_dim = call.head_dim;
  for (int q = 0; q < Queries; ++q) {
    load_query(call, query_of(call, task, q), block.queries + q * head_dim);
    block.maxima[q] = kNoMaximum;
    block.sums[q] = 0.0f;
  }
  std::memset(block.output, 0, sizeof(float) * Queries * head_dim);
  const int64_t base = cache_offset(call, task, query_of(call, task, 0).row);
  for (int begin = task.key_begin; begin < task.key_end; begin += kTileKeys) {
    const int count = task.key_end - begin < kTileKeys ? task.key_end - begin : kTileKeys;
    const Tile tile = read_tile(call, base + int64_t(begin) * head_dim, count, buffer);
    score_few<Queries>(block.queries, tile.keys, tile.values, head_dim, count, block.scores);
    float rescale[Queries];
    for (int q = 0; q < Queries; ++q) {
      float* scores = block.scores + q * kTileKeys;
      const int row = query_of(call, task, q).row;
      const int first = begin > task.mask_begin ? begin : task.mask_begin;
      for (int key = first; key < begin + count; ++key) {
        if (!visible(call, row, key)) scores[key - begin] = kHidden;
      }
      rescale[q] = softmax_few(scores, count, block.maxima[q], block.sums[q]);
    }
    int d = 0;
    for (; d + kVectors * kLanes <= head_dim; d += kVectors * kLanes) {
      add_few<Queries, kVectors>(block.scores, tile.values + d, head_dim, count, rescale,
                                 block.output + d);
    }
    for (; d < head_dim; d += kLanes) {
      add_few<Queries, 1>(block.scores, tile.values + d, head_dim, count, rescale,
                          block.output + d);
    }
  }
  for (int q = 0; q < Queries; ++q) {
    finish_query(call, task, q, block.maxima[q], block.sums[q], block.output + q * head_dim);
  }
}

static void attend_few(const AttentionCall& call, const AttentionTask& task) {
  switch (task.query_count) {
    case 1: return attend_few_of<1>(call, task);
    case 2: return attend_few_of<2>(call, task);
    case 3: return attend_few_of<3>(call, task);
    case 4: return attend_few_of<4>(call, task);
    case 5: return attend_few_of<5>(call, task);
    default: return attend_few_of<6>(call, task);
  }
}

}  // namespace eaglerl::EAGLERL_ISA
