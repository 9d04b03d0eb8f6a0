// Compiled once per instruction set, like common/cpu_kernels.cpp and under the same rule: no inline
// function of the standard library may be emitted here.
//
// A score is a sum over the head's dimensions in a fixed order. The largest score is exact in any
// order. The weights' sum and the weighted values are added key by key: a hidden key between two
// visible ones has weight 0 and changes nothing. So a token that was drafted in a tree, between
// rejected siblings, gets the same output as one that was decoded alone. An online softmax over
// tiles of keys would round differently where the tiles lie differently.
#include "attention/row_attention.h"

#include "attention/attention_rows.h"
#include "common/simd.h"

namespace eaglerl::EAGLERL_ISA {
namespace {

constexpr int kScoredQueries = 4;  // times 4 partial sums: 16 registers of 32 (or 16, spilled)
constexpr int kScoreSums = 4;      // partial sums of a score, by dimension modulo 4

void rotate_queries(const AttentionCall& call, int64_t begin, int64_t end, float* queries) {
  for (int64_t row = begin; row < end; ++row) {
    for (int head = 0; head < call.query_heads; ++head) {
      load_query(call, {int32_t(row), head},
                 queries + (row * call.query_heads + head) * call.head_dim);
    }
  }
}

// How elements of the cache are read, by its dtype.
struct Float32Cache {
  using Element = float;
  static VecF read(const float* source) { return load(source); }
};
struct Bfloat16Cache {
  using Element = uint16_t;
  static VecF read(const uint16_t* source) { return load_bfloat16(source); }
};
struct Float16Cache {
  using Element = uint16_t;
  static VecF read(const uint16_t* source) { return load_halves(source); }
};

// Calls body with the reader of a dtype.
template <class Body>
void with_cache(CacheDtype dtype, const Body& body) {
  switch (dtype) {
    case CacheDtype::kBfloat16: return body(Bfloat16Cache());
    case CacheDtype::kFloat16: return body(Float16Cache());
    default: return body(Float32Cache());
  }
}

#if defined(__AVX512F__)
// 16 keys' dimensions [0, 16) as 16 vectors over the keys.
template <class Cache>
inline void transpose_square(const typename Cache::Element* keys, int64_t stride, float* out) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = (__m512)Cache::read(keys + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(b[i + j]), y = _mm512_castps_pd(b[i + 2 + j]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  }
  // a[4 * g + d] holds dimensions d, d + 4, d + 8 and d + 12 of keys 4 * g to 4 * g + 3.
#pragma GCC unroll 4
  for (int d = 0; d < 4; ++d) {
    const __m512 low01 = _mm512_shuffle_f32x4(a[d], a[4 + d], 0x88);
    const __m512 high01 = _mm512_shuffle_f32x4(a[d], a[4 + d], 0xdd);
    const __m512 low23 = _mm512_shuffle_f32x4(a[8 + d], a[12 + d], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(a[8 + d], a[12 + d], 0xdd);
    _mm512_store_ps(out + d * 16, _mm512_shuffle_f32x4(low01, low23, 0x88));
    _mm512_store_ps(out + (d + 4) * 16, _mm512_shuffle_f32x4(high01, high23, 0x88));
    _mm512_store_ps(out + (d + 8) * 16, _mm512_shuffle_f32x4(low01, low23, 0xdd));
    _mm512_store_ps(out + (d + 12) * 16, _mm512_shuffle_f32x4(high01, high23, 0xdd));
  }
}
#else
template <class Cache>
inline void transpose_square(const typename Cache::Element* keys, int64_t stride, float* out) {
  for (int key = 0; key < kLanes; ++key) {
    const VecF row = Cache::read(keys + key * stride);
    for (int d = 0; d < kLanes; ++d) out[d * kLanes + key] = row[d];
  }
}
#endif

// kLanes keys, of which only `count` exist, as (head_dim, kLanes); zeros fill up the last square.
template <class Cache>
inline void transpose_keys(const typename Cache::Element* keys, int head_dim, int count,
                           float* out) {
  constexpr size_t kBytes = sizeof(typename Cache::Element);
  alignas(64) typename Cache::Element padded[kLanes * kMaxHeadDim];
  const int width = (head_dim + kLanes - 1) / kLanes * kLanes;
  if (count < kLanes || width != head_dim) {
    std::memset(padded, 0, size_t(kLanes) * width * kBytes);
    for (int key = 0; key < count; ++key) {
      std::memcpy(padded + key * width, keys + key * head_dim, size_t(head_dim) * kBytes);
    }
    keys = padded;
  }
  for (int d = 0; d < head_dim; d += kLanes) {
    transpose_square<Cache>(keys + d, width, out + d * kLanes);
  }
}

// Scores of kQueries queries for the kLanes keys of a tile.
template <int kQueries>
inline void score_tile(const float* const* queries, const float* tile, int head_dim,
                       float* const* scores) {
  VecF sums[kQueries][kScoreSums] = {};
  int d = 0;
  for (; d + kScoreSums <= head_dim; d += kScoreSums) {
#pragma GCC unroll 4
    for (int part = 0; part < kScoreSums; ++part) {
      const VecF keys = load(tile + (d + part) * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sums[q][part] += keys * splat(queries[q][d + part]);
    }
  }
  for (int part = 0; d + part < head_dim; ++part) {
    const VecF keys = load(tile + (d + part) * kLanes);
    for (int q = 0; q < kQueries; ++q) sums[q][part] += keys * splat(queries[q][d + part]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries; ++q) {
    store(scores[q], (sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3]));
  }
}

template <class Cache>
void score_keys_of(const AttentionCall& call, const float* queries, int64_t row_begin,
                   int64_t row_end, int kv_head, int64_t key_begin, int64_t key_end, float* scores,
                   int64_t stride) {
  alignas(64) float tile[kMaxHeadDim * kLanes];
  const int group = call.query_heads / call.kv_heads;
  const int64_t count = (row_end - row_begin) * group;
  const auto* keys = (const typename Cache::Element*)call.key_cache + slot_offset(call, row_begin) +
                     int64_t(kv_head) * call.capacity * call.head_dim;
  for (int64_t key = key_begin; key < key_end; key += kLanes) {
    const int present = int(key_end - key < kLanes ? key_end - key : kLanes);
    transpose_keys<Cache>(keys + key * call.head_dim, call.head_dim, present, tile);
    for (int64_t first = 0; first < count; first += kScoredQueries) {
      const float* query[kScoredQueries];
      float* target[kScoredQueries];
      const int block = int(count - first < kScoredQueries ? count - first : kScoredQueries);
      for (int q = 0; q < block; ++q) {
        const int64_t place =
            (first + q) / group * call.query_heads + kv_head * group + (first + q) % group;
        query[q] = queries + (row_begin * call.query_heads + place) * call.head_dim;
        target[q] = scores + place * stride + key;
      }
      switch (block) {
        case 1: score_tile<1>(query, tile, call.head_dim, target); break;
        case 2: score_tile<2>(query, tile, call.head_dim, target); break;
        case 3: score_tile<3>(query, tile, call.head_dim, target); break;
        default: score_tile<4>(query, tile, call.head_dim, target); break;
      }
    }
  }
}

void score_keys(const AttentionCall& call, const float* queries, int64_t row_begin, int64_t row_end,
                int kv_head, int64_t key_begin, int64_t key_end, float* scores, int64_t stride) {
  with_cache(call.cache_dtype, [&](auto cache) {
    score_keys_of<decltype(cache)>(call, queries, row_begin, row_end, kv_head, key_begin, key_end,
                                   scores, stride);
  });
}

// Weights of kVectors * kLanes dimensions of the values, key by key. A weight of 0 is skipped, so
// that no NaN of a hidden key gets in.
template <class Cache, int kVectors>
inline void weigh_values(const float* weights, const typename Cache::Element* values, int head_dim,
                         int64_t prefix, int64_t count, float* out, VecF* total) {
  VecF sums[kVectors] = {};
  VecF sum = {};
  for (int64_t key = 0; key < prefix; ++key) {
    const VecF weight = splat(weights[key]);
    sum += weight;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += weight * Cache::read(values + key * head_dim + v * kLanes);
    }
  }
  for (int64_t key = prefix; key < count; ++key) {
    if (weights[key] == 0.0f) continue;
    const VecF weight = splat(weights[key]);
    sum += weight;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += weight * Cache::read(values + key * head_dim + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sums[v]);
  *total = sum;
}

// The last `rest` dimensions of a head, which fill no vector, likewise.
template <class Cache>
inline void weigh_rest(const float* weights, const typename Cache::Element* values, int head_dim,
                       int rest, int64_t prefix, int64_t count, float* out, VecF* total) {
  VecF sums = {}, sum = {};
  typename Cache::Element last[kLanes] = {};
  for (int64_t key = 0; key < count; ++key) {
    if (key >= prefix && weights[key] == 0.0f) continue;
    std::memcpy(last, values + key * head_dim, size_t(rest) * sizeof(last[0]));
    const VecF weight = splat(weights[key]);
    sum += weight;
    sums += weight * Cache::read(last);
  }
  std::memcpy(out, &sums, size_t(rest) * sizeof(float));
  *total = sum;
}

void attend_query(const AttentionCall& call, int64_t row, int head, float* scores) {
  const int64_t prefix = call.prefix_lengths[row];
  const int64_t count = prefix + call.block_length;
  for (int64_t key = prefix; key < count; ++key) {
    if (!visible(call, row, int(key))) scores[key] = kHidden;
  }
  for (int64_t key = count; key % kLanes; ++key) scores[key] = kHidden;
  VecF maxima = splat(kNoMaximum);
  for (int64_t key = 0; key < count; key += kLanes) maxima = maximum(maxima, load(scores + key));
  const float best = horizontal_maximum(maxima);
  for (int64_t key = 0; key < count; key += kLanes) {
    store(scores + key, exp2_vector(load(scores + key) - best));
  }
  const int head_dim = call.head_dim;
  const int kv_head = head / (call.query_heads / call.kv_heads);
  const int64_t place = slot_offset(call, row) + int64_t(kv_head) * call.capacity * head_dim;
  float* out = call.out + row * call.out_stride + int64_t(head) * head_dim;
  VecF total = {};
  with_cache(call.cache_dtype, [&](auto cache) {
    using Cache = decltype(cache);
    const auto* values = (const typename Cache::Element*)call.value_cache + place;
    int d = 0;
    for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) {
      weigh_values<Cache, 4>(scores, values + d, head_dim, prefix, count, out + d, &total);
    }
    for (; d + kLanes <= head_dim; d += kLanes) {
      weigh_values<Cache, 1>(scores, values + d, head_dim, prefix, count, out + d, &total);
    }
    if (d < head_dim) {
      weigh_rest<Cache>(scores, values + d, head_dim, head_dim - d, prefix, count, out + d, &total);
    }
  });
  const float sum = total[0];
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(out + d, load(out + d) * factor);
  for (; d < head_dim; ++d) out[d] *= factor;
}

}  // namespace

extern const RowAttentionKernels row_attention;

const RowAttentionKernels row_attention = {rotate_queries, score_keys, attend_query};

}  // namespace eaglerl::EAGLERL_ISA
