// The kernels that cpu_kernels.cpp provides for every instruction set, and the choice of the set.
#pragma once

#include <cstdint>

namespace eaglerl {

// Kernels take ranges [begin, end) of rows: the part of a call that one thread computes.
struct RmsNormCall {
  const float* x;
  int64_t x_stride;
  const int64_t* index;  // row r reads x[index[r]]; null: row r reads x[r]
  const float* weight;
  float* out;
  int64_t out_stride;
  int64_t hidden;
  float eps;
};

struct SiluMulCall {
  const float* gate_up;  // each row: gate (intermediate), then up (intermediate)
  int64_t stride;
  float* out;
  int64_t intermediate;
};

// Elements of a KV cache. Queries, scores, weights and sums are float32 with all of them.
enum class CacheDtype : int32_t { kFloat32, kBfloat16, kFloat16 };

struct AttentionCall {
  const float* qkv;  // each row: query heads, key heads, value heads
  int64_t qkv_stride;
  const float* cos;  // (positions, head_dim / 2)
  const float* sin;
  const int32_t* positions;
  const int32_t* cache_rows;
  const int32_t* slots;  // null: all rows belong to slot 0
  void* key_cache;       // (slots, kv_heads, capacity, head_dim)
  void* value_cache;
  CacheDtype cache_dtype;
  int64_t slot_stride;
  int64_t capacity;
  const int32_t* prefix_lengths;
  const int64_t* mask;  // (rows, mask_words), bit j: row prefix_length + j of the cache is visible
  int64_t mask_words;
  int32_t block_length;
  const float* query_norm;  // (head_dim), null: none
  const float* key_norm;
  float eps;
  float scale;
  float* out;  // (rows, query_heads * head_dim)
  int64_t out_stride;
  int32_t query_heads;
  int32_t kv_heads;
  int32_t head_dim;
};

// Queries [query_begin, query_begin + query_count) of one kv head, counted as
// row * (query_heads / kv_heads) + head within the group, against keys [key_begin, key_end).
struct AttentionTask {
  int32_t kv_head;
  int32_t query_begin;
  int32_t query_count;
  int32_t key_begin;
  int32_t key_end;
  int32_t mask_begin;   // first key that may be hidden from some query of the block
  float* partial;       // null: the keys are not split, write the output itself
  int32_t chunk_count;  // chunks of the block, whose partial results lie next to each other
};

// A partial result: query_count maxima, query_count sums, then query_count rows of head_dim.
constexpr int kMaxBlockQueries = 48;
constexpr int kMaxHeadDim = 256;

struct TopKResult {
  float log_sum_exp;
  int count;
};

struct CpuKernels {
  int lanes;          // floats of a vector
  int block_queries;  // most queries of an AttentionTask
  void (*rms_norm)(const RmsNormCall&, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulCall&, int64_t begin, int64_t end);
  void (*write_keys_values)(const AttentionCall&, int64_t begin, int64_t end);
  void (*attend)(const AttentionCall&, const AttentionTask&);
  void (*combine)(const AttentionCall&, const AttentionTask& first_chunk);
  // The top_k largest logits (value descending, index ascending on ties) and log(sum(exp(logits))).
  // block_maxima is scratch of (vocab + 63) / 64 floats, twice.
  TopKResult (*top_k)(const float* logits, int64_t vocab, int top_k, float* values, int32_t* ids,
                      float* block_maxima);
  // The index of the largest of at least one value, the first of equal ones; of the first NaN if
  // there is one.
  int64_t (*argmax)(const float* values, int64_t count);
};

// The kernels in use: the widest instruction set of this processor, unless set_isa chose another.
const CpuKernels& cpu_kernels();
const char* cpu_isa();
int available_isas(const char** names, int capacity);
bool set_isa(const char* name);

}  // namespace eaglerl
