// The kernels of spectral_newton for any processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define SIMD_BYTES 16
#define SIMD_ROWS 4
#include "cpu/spectral_newton_solve.h"

namespace spectral_ext {
const TransferKernels& transfer_kernels_portable() {
  static const TransferKernels kernels{"portable", &run_float, &run_double, &scratch_bytes};
  return kernels;
}
}  // namespace spectral_ext
