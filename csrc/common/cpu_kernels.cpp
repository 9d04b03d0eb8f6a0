// Compiled once per instruction set, named by EAGLERL_ISA (avx512, avx2, or baseline; neon on ARM).
// This source must not use inline functions of the standard library: the linker keeps one copy of
// such a function for the whole extension, possibly one with instructions this processor lacks.
#include "common/cpu_kernels.h"

#include "attention/attention_kernels.h"
#include "attention/norm_kernels.h"
#include "tree/argmax_kernel.h"
#include "tree/top_k_kernel.h"

namespace eaglerl::EAGLERL_ISA {

extern const CpuKernels kernels;

const CpuKernels kernels = {
    // in the order of the struct's members
    kLanes, kBlockQueries, rms_norm, silu_mul, write_keys_values, attend, combine, top_k, argmax,
};

}  // namespace eaglerl::EAGLERL_ISA
