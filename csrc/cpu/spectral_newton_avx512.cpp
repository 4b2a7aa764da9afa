// The kernels of spectral_newton for AVX512.
#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")  // after the standard headers: their inline functions
                                                                   // stay portable
#define SIMD_BYTES 64
#define SIMD_ROWS 8
#include "cpu/spectral_newton_solve.h"

namespace spectral_ext {
const TransferKernels& transfer_kernels_avx512() {
  static const TransferKernels kernels{"avx512", &run_float, &run_double, &scratch_bytes};
  return kernels;
}
}  // namespace spectral_ext
#endif
