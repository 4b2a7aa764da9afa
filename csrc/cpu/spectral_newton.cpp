// Which kernels of spectral_newton this processor runs.
#include "cpu/spectral_newton.h"

namespace spectral_ext {
const TransferKernels& transfer_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return transfer_kernels_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return transfer_kernels_avx2();
#endif
  return transfer_kernels_portable();
}
}  // namespace spectral_ext
