// Marks functions that CPU code and CUDA kernels share: tests on a CPU then cover code that a GPU
// runs.
#pragma once

#if defined(__CUDACC__)
#define EAGLERL_HOST_DEVICE __host__ __device__
#else
#define EAGLERL_HOST_DEVICE
#endif
