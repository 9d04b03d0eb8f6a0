#include <atomic>
#include <cstring>

#if defined(EAGLERL_X86)
#include <cpuid.h>
#endif

#include "attention/row_attention.h"
#include "common/cpu_kernels.h"
#include "policy/policy_kernels.h"
#include "target/block_kernels.h"

namespace eaglerl {

// Each instruction set has its tables in its own namespace.
#define EAGLERL_DECLARE(isa)                      \
  namespace isa {                                 \
  extern const CpuKernels kernels;                \
  extern const PolicyKernels policy;              \
  extern const RowAttentionKernels row_attention; \
  extern const BlockKernels block;                \
  extern const Int8Kernels int8;                  \
  }
EAGLERL_DECLARE(EAGLERL_PORTABLE_ISA)
#if defined(EAGLERL_X86)
EAGLERL_DECLARE(avx2)
EAGLERL_DECLARE(avx512)
// Its other kernels would be those of avx512.
namespace avx512vnni {
extern const Int8Kernels int8;
}
#endif
#undef EAGLERL_DECLARE

namespace {

#define EAGLERL_STRING_OF(name) #name
#define EAGLERL_STRING(name) EAGLERL_STRING_OF(name)

constexpr int kMaxIsas = 4;

#if defined(EAGLERL_X86)
// Older compilers' __builtin_cpu_supports does not know f16c.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  const PolicyKernels* policy;
  const RowAttentionKernels* row_attention;
  const BlockKernels* block;
  const Int8Kernels* int8;
};

#define EAGLERL_TABLES(isa) &isa::kernels, &isa::policy, &isa::row_attention, &isa::block

struct Available {
  Isa isas[kMaxIsas];
  int count = 0;

  Available() {
#if defined(EAGLERL_X86)
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && __builtin_cpu_supports("avx512vnni")) {
      isas[count++] = {"avx512vnni", EAGLERL_TABLES(avx512), &avx512vnni::int8};
    }
    if (has_avx512) isas[count++] = {"avx512", EAGLERL_TABLES(avx512), &avx512::int8};
    if (has_avx2) isas[count++] = {"avx2", EAGLERL_TABLES(avx2), &avx2::int8};
#endif
    isas[count++] = {EAGLERL_STRING(EAGLERL_PORTABLE_ISA), EAGLERL_TABLES(EAGLERL_PORTABLE_ISA),
                     &EAGLERL_PORTABLE_ISA::int8};
  }
};

const Available available;
std::atomic<int> chosen{0};  // one word: both tables change at once for other threads

const Isa& chosen_isa() { return available.isas[chosen.load(std::memory_order_relaxed)]; }

}  // namespace

const CpuKernels& cpu_kernels() { return *chosen_isa().kernels; }

const PolicyKernels& policy_kernels() { return *chosen_isa().policy; }

const RowAttentionKernels& row_attention_kernels() { return *chosen_isa().row_attention; }

const BlockKernels& block_kernels() { return *chosen_isa().block; }

const Int8Kernels& int8_kernels() { return *chosen_isa().int8; }

const char* cpu_isa() { return chosen_isa().name; }

int available_isas(const char** names, int capacity) {
  const int count = available.count < capacity ? available.count : capacity;
  for (int i = 0; i < count; ++i) names[i] = available.isas[i].name;
  return count;
}

bool set_isa(const char* name) {
  for (int i = 0; i < available.count; ++i) {
    if (std::strcmp(available.isas[i].name, name) == 0) {
      chosen.store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace eaglerl
