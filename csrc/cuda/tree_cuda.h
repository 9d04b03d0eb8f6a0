#pragma once

#include <cstdint>

namespace eaglerl {

// Both run on `stream` (a cudaStream_t) without waiting, for `batch` trees of `rows` rows each, and
// return the launch's error, or null.
const char* cuda_accept_path(const int32_t* parents, const int64_t* tokens, const int64_t* choices,
                             int32_t rows, int32_t batch, int32_t* out_rows, int32_t* counts,
                             void* stream);
const char* cuda_tree_structure(const int32_t* parents, int32_t rows, int32_t batch,
                                int32_t* levels, int64_t* mask, int32_t words, void* stream);

}  // namespace eaglerl
