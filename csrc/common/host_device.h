// Marks a function that the CPU code and the CUDA kernels share: what the CPU's tests check is what
// a GPU runs.
#pragma once

#if defined(__CUDACC__)
#define EAGLERL_HOST_DEVICE __host__ __device__
#else
#define EAGLERL_HOST_DEVICE
#endif
