// Marks a function that CPU code and CUDA kernels share, so that tests on a CPU check what a GPU
// runs.
#pragma once

#if defined(__CUDACC__)
#define EAGLERL_HOST_DEVICE __host__ __device__
#else
#define EAGLERL_HOST_DEVICE
#endif
