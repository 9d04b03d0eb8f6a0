// Compiled once per instruction set with EAGLERL_ISA naming it (avx512, avx2 or baseline). No
// inline function of the standard library may be emitted here: the linker keeps one copy of such a
// function, and it could be the one that only the widest processors can run.
#include "common/cpu_kernels.h"

#include "attention/attention_kernels.h"
#include "attention/norm_kernels.h"
#include "tree/top_k_kernel.h"

#define EAGLERL_STRING_OF(name) #name
#define EAGLERL_STRING(name) EAGLERL_STRING_OF(name)

namespace eaglerl::EAGLERL_ISA {

extern const CpuKernels kernels;

const CpuKernels kernels = {
    EAGLERL_STRING(EAGLERL_ISA),  // in the order of the struct's members
    kLanes,
    kBlockQueries,
    rms_norm,
    silu_mul,
    write_keys_values,
    attend,
    combine,
    top_k,
};

}  // namespace eaglerl::EAGLERL_ISA
