#include "attention/cached_attention.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/attention_indices.h"
#include "common/checks.h"
#include "common/parallel.h"

namespace eaglerl {
namespace {

constexpr int64_t kSerialWriteRows = 32;
constexpr int64_t kSerialProducts = 200'000;  // below this a second thread costs more than it saves
constexpr int kTasksPerThread = 3;            // so that a delayed thread leaves tasks to the others
constexpr int kMinChunkKeys = 128;            // two tiles
constexpr int kChunkAlignment = 8;            // group_of() at most: whole groups of keys

// Reused by every call of a thread: a call allocates only if it is larger than all before it.
struct Scratch {
  std::vector<AttentionTask> tasks;  // the chunks of one block lie next to each other
  std::vector<float> partials;
  std::vector<std::atomic<int>> unfinished;  // chunks of a block that are not done
  std::vector<int32_t> indices;
};

// Rows [begin, end) whose queries may share a pass over the keys.
struct Run {
  int64_t begin;
  int64_t end;
};

Run next_run(const AttentionCall& call, int64_t begin, int64_t rows) {
  int64_t end = begin + 1;
  for (; end < rows; ++end) {
    if (call.slots && call.slots[end] != call.slots[begin]) break;
    // Bits of the mask count from the prefix length, so masked rows must share it.
    if (call.block_length > 0 && call.prefix_lengths[end] != call.prefix_lengths[begin]) break;
  }
  return {begin, end};
}

AttentionTask block_task(const AttentionCall& call, int kv_head, int64_t query, int count) {
  const int group = call.query_heads / call.kv_heads;
  const int64_t first_row = query / group;
  const int64_t last_row = (query + count - 1) / group;
  const auto [shortest, longest] =
      std::minmax_element(call.prefix_lengths + first_row, call.prefix_lengths + last_row + 1);
  AttentionTask task = {};
  task.kv_head = kv_head;
  task.query_begin = static_cast<int32_t>(query);
  task.query_count = count;
  task.key_end = *longest + call.block_length;
  task.mask_begin = *shortest;
  task.chunk_count = 1;
  return task;
}

// Returns the block size that spreads `queries` evenly over as few blocks as possible, in whole
// vectors: 50 queries are 32 and 18 rather than 48 and 2 (AVX-512).
int64_t even_block(int64_t queries, const CpuKernels& kernels) {
  const int64_t blocks = (queries + kernels.block_queries - 1) / kernels.block_queries;
  const int64_t share = (queries + blocks - 1) / blocks;
  return (share + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
}

// Returns the number of chunks into which the keys of every block are cut so that all threads have
// work (the split of FlashDecoding). A tree of a few rows has one block per KV head, often fewer
// than there are threads.
int chunks_per_block(int64_t blocks, int longest, int threads) {
  const int64_t wanted = int64_t(kTasksPerThread) * threads;
  const int64_t allowed = std::max(longest / kMinChunkKeys, 1);
  int64_t chunks = std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1, allowed);
  while (chunks > 1 && chunks < allowed && blocks * chunks % threads != 0) ++chunks;
  return static_cast<int>(chunks);
}

// A chunk's partial result takes 48 * (2 + head_dim) floats: 12,672 bytes at head_dim 64. The list
// is extended in place from the last block to the first: the chunks of block b begin at b * chunks,
// at or after b, so no block is overwritten before it is read.
void cut_blocks(const AttentionCall& call, int chunks, Scratch& scratch) {
  const size_t blocks = scratch.tasks.size();
  const int64_t stride = kMaxBlockQueries * (2 + int64_t(call.head_dim));
  const size_t needed = blocks * chunks * stride;
  if (scratch.partials.size() < needed) scratch.partials.resize(needed);
  if (scratch.unfinished.size() < blocks) {
    scratch.unfinished = std::vector<std::atomic<int>>(blocks);
  }
  scratch.tasks.resize(blocks * chunks);
  for (size_t block = blocks; block-- > 0;) {
    const AttentionTask whole = scratch.tasks[block];
    const int per_chunk = (whole.key_end + chunks - 1) / chunks;
    const int length = (per_chunk + kChunkAlignment - 1) / kChunkAlignment * kChunkAlignment;
    scratch.unfinished[block].store(chunks, std::memory_order_relaxed);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      AttentionTask& part = scratch.tasks[block * chunks + chunk];
      part = whole;
      part.key_begin = std::min(chunk * length, whole.key_end);
      part.key_end = std::min((chunk + 1) * length, whole.key_end);
      part.partial = scratch.partials.data() + (block * chunks + chunk) * stride;
      part.chunk_count = chunks;
    }
  }
}

}  // namespace

void plan_blocks(const AttentionCall& call, int64_t rows, const CpuKernels& kernels,
                 std::vector<AttentionTask>& tasks) {
  const int64_t group = call.query_heads / call.kv_heads;
  tasks.clear();
  for (int64_t row = 0; row < rows;) {
    const Run run = next_run(call, row, rows);
    const int64_t block_queries = even_block((run.end - run.begin) * group, kernels);
    for (int64_t query = run.begin * group; query < run.end * group; query += block_queries) {
      const int count = static_cast<int>(std::min<int64_t>(block_queries, run.end * group - query));
      for (int head = 0; head < call.kv_heads; ++head) {
        tasks.push_back(block_task(call, head, query, count));
      }
    }
    row = run.end;
  }
}

CacheDtype check_cache_dtype(int32_t number) {
  return static_cast<CacheDtype>(
      check_between("cache_dtype", number, 0, int64_t(CacheDtype::kFloat16)));
}

void* cache_address(const char* name, uintptr_t address, int64_t count, CacheDtype dtype) {
  if (dtype == CacheDtype::kFloat32) return element_address<float>(name, address, count);
  return element_address<uint16_t>(name, address, count);
}

void check_heads(int64_t query_heads, int64_t kv_heads) {
  check_between("kv_heads", kv_heads, 1, kLargestCount);
  check_between("query_heads", query_heads, 1, kLargestCount);
  if (query_heads % kv_heads != 0) {
    throw std::invalid_argument("query_heads must be a multiple of kv_heads, got " +
                                std::to_string(query_heads) + " and " + std::to_string(kv_heads));
  }
}

void check_head_dim(int64_t head_dim) {
  constexpr int kStep = 2;  // RoPE turns pairs
  check_between("head_dim", head_dim, kStep, kMaxHeadDim);
  if (head_dim % kStep != 0) {
    throw std::invalid_argument("head_dim must be a multiple of " + std::to_string(kStep) +
                                ", got " + std::to_string(head_dim));
  }
}

void check_attention_sizes(const AttentionCall& call, const AttentionLimits& limits, int64_t rows) {
  check_between("rows", rows, 0, kLargestCount);
  check_heads(call.query_heads, call.kv_heads);
  check_head_dim(call.head_dim);
  check_between("capacity", call.capacity, 0, kLargestCount);
  check_between("table_length", limits.table_length, 0, kLargestCount);
  // Without `slots`, all rows belong to slot 0, which must exist.
  check_between("slot_count", limits.slot_count, rows > 0 ? 1 : 0, kLargestCount);
  check_between("block_length", call.block_length, 0, kLargestCount);
  check_between("mask_words", call.mask_words, (int64_t(call.block_length) + 63) / 64,
                kLargestCount);
  const int64_t heads = int64_t(call.query_heads) + 2 * int64_t(call.kv_heads);
  const int64_t out_width = check_product("out", {call.query_heads, call.head_dim});
  check_size("qkv_stride", call.qkv_stride);
  check_product("qkv", {rows, std::max(call.qkv_stride, heads * call.head_dim)});
  check_between("out_stride", call.out_stride, rows > 1 ? out_width : 0, kLargestSize);
  check_product("out", {rows, std::max(call.out_stride, out_width)});
  check_product("queries", {rows, call.query_heads}, kLargestCount);
  check_product("mask", {rows, call.mask_words});
  const int64_t slot_size =
      check_product("a slot of the cache", {call.kv_heads, call.capacity, call.head_dim});
  check_between("slot_stride", call.slot_stride, limits.slot_count > 1 ? slot_size : 0,
                kLargestSize);
  check_product("the cache", {limits.slot_count, std::max(call.slot_stride, slot_size)});
}

void cached_attention(const AttentionCall& shared_call, const AttentionLimits& limits, int64_t rows,
                      int threads) {
  if (rows == 0) return;
  static thread_local Scratch own_scratch;
  Scratch& scratch = own_scratch;
  const AttentionCall call = with_own_indices(shared_call, rows, scratch.indices);
  check_indices(call, limits, rows);
  const CpuKernels& kernels = cpu_kernels();
  parallel_for(rows, kSerialWriteRows, threads,
               [&](int64_t begin, int64_t end) { kernels.write_keys_values(call, begin, end); });

  plan_blocks(call, rows, kernels, scratch.tasks);
  int longest = 0;
  int64_t products = 0;
  for (const AttentionTask& task : scratch.tasks) {
    longest = std::max(longest, task.key_end);
    products += int64_t(task.query_count) * task.key_end * call.head_dim;
  }
  if (products < kSerialProducts) threads = 1;
  const int chunks =
      threads == 1 ? 1 : chunks_per_block(int64_t(scratch.tasks.size()), longest, threads);
  if (chunks > 1) cut_blocks(call, chunks, scratch);

  const int64_t count = static_cast<int64_t>(scratch.tasks.size());
  parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Last task first: later blocks of a causal prefill see more keys, and starting long tasks
      // early keeps the threads even.
      const int64_t index = count - 1 - i;
      kernels.attend(call, scratch.tasks[index]);
      if (chunks == 1) continue;
      const int64_t block = index / chunks;
      if (scratch.unfinished[block].fetch_sub(1, std::memory_order_acq_rel) == 1) {
        kernels.combine(call, scratch.tasks[block * chunks]);
      }
    }
  });
}

}  // namespace eaglerl
