#include <cstring>

#include "cpu_kernels.h"

namespace eaglerl {

namespace baseline {
extern const CpuKernels kernels;
}
#if defined(EAGLERL_X86)
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

namespace {

constexpr int kMaxIsas = 3;

struct Available {
  const CpuKernels* kernels[kMaxIsas];
  int count = 0;

  Available() {
#if defined(EAGLERL_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512) kernels[count++] = &avx512::kernels;
    if (has_avx2) kernels[count++] = &avx2::kernels;
#endif
    kernels[count++] = &baseline::kernels;
  }
};

const Available available;
const CpuKernels* chosen = available.kernels[0];

}  // namespace

const CpuKernels& cpu_kernels() { return *chosen; }

const char* cpu_isa() { return chosen->name; }

int available_isas(const char** names, int capacity) {
  const int count = available.count < capacity ? available.count : capacity;
  for (int i = 0; i < count; ++i) names[i] = available.kernels[i]->name;
  return count;
}

bool set_isa(const char* name) {
  for (int i = 0; i < available.count; ++i) {
    if (std::strcmp(available.kernels[i]->name, name) == 0) {
      chosen = available.kernels[i];
      return true;
    }
  }
  return false;
}

}  // namespace eaglerl
