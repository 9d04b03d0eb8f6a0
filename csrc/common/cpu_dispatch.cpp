#include <atomic>
#include <cstring>

#if defined(EAGLERL_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "attention/row_attention.h"
#include "common/cpu_kernels.h"
#include "policy/policy_kernels.h"
#include "target/block_kernels.h"
#include "target/code_kernels.h"
#include "target/tile_rows.h"

namespace eaglerl {

// Each instruction set has its tables in its own namespace.
#define EAGLERL_DECLARE(isa)                      \
  namespace isa {                                 \
  extern const CpuKernels kernels;                \
  extern const PolicyKernels policy;              \
  extern const RowAttentionKernels row_attention; \
  extern const BlockKernels block;                \
  extern const CodeKernels codes;                 \
  }
EAGLERL_DECLARE(EAGLERL_PORTABLE_ISA)
#if defined(EAGLERL_X86)
EAGLERL_DECLARE(avx2)
EAGLERL_DECLARE(avx512)
// Their other kernels would be those of avx2 and avx512.
namespace avx2vnni {
extern const CodeKernels codes;
}
namespace avx512vnni {
extern const CodeKernels codes;
}
namespace avx512amx {
extern const TileKernels tiles;
}
#endif
#undef EAGLERL_DECLARE

namespace {

#define EAGLERL_STRING_OF(name) #name
#define EAGLERL_STRING(name) EAGLERL_STRING_OF(name)

constexpr int kMaxIsas = 6;

#if defined(EAGLERL_X86)
// Older compilers' __builtin_cpu_supports does not know f16c.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 4) != 0;
}

// Tiles of bfloat16. Linux lets a process use them on request only, since a
// thread's state grows by 8 kB, and refuses where a signal stack is too small for it.
bool has_amx() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kTiles = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return (edx & kTiles) == kTiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Isa {
  const char* name;
  const CpuKernels* kernels;
  const PolicyKernels* policy;
  const RowAttentionKernels* row_attention;
  const BlockKernels* block;
  const CodeKernels* codes;
  const TileKernels* tiles;  // null: none
};

#define EAGLERL_TABLES(isa) &isa::kernels, &isa::policy, &isa::row_attention, &isa::block

struct Available {
  Isa isas[kMaxIsas];
  int count = 0;

  void add(const char* name, const CpuKernels* kernels, const PolicyKernels* policy,
           const RowAttentionKernels* row_attention, const BlockKernels* block,
           const CodeKernels* codes, const TileKernels* tiles = nullptr) {
    isas[count++] = {name, kernels, policy, row_attention, block, codes, tiles};
  }

  Available() {
#if defined(EAGLERL_X86)
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
    if (has_vnni && has_amx()) {
      add("avx512amx", EAGLERL_TABLES(avx512), &avx512vnni::codes, &avx512amx::tiles);
    }
    if (has_vnni) add("avx512vnni", EAGLERL_TABLES(avx512), &avx512vnni::codes);
    if (has_avx512) add("avx512", EAGLERL_TABLES(avx512), &avx512::codes);
    if (has_avx2 && has_avx_vnni()) add("avx2vnni", EAGLERL_TABLES(avx2), &avx2vnni::codes);
    if (has_avx2) add("avx2", EAGLERL_TABLES(avx2), &avx2::codes);
#endif
    add(EAGLERL_STRING(EAGLERL_PORTABLE_ISA), EAGLERL_TABLES(EAGLERL_PORTABLE_ISA),
        &EAGLERL_PORTABLE_ISA::codes);
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

const CodeKernels& code_kernels() { return *chosen_isa().codes; }

const TileKernels* tile_kernels() { return chosen_isa().tiles; }

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
