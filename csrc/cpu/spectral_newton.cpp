// Which kernels of spectral_newton this processor runs. SPECTRAL_EXT_SIMD=avx2 or portable asks for narrower ones.
#include "cpu/spectral_newton.h"

#include <cstdlib>
#include <cstring>

namespace spectral_ext {
namespace {

const TransferKernels& choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("SPECTRAL_EXT_SIMD");
  const auto at_most = [&](const char* name) { return wanted != nullptr && std::strcmp(wanted, name) == 0; };
  if (at_most("portable")) return transfer_kernels_portable();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (wide && !at_most("avx2")) return transfer_kernels_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return transfer_kernels_avx2();
#endif
  return transfer_kernels_portable();
}

}  // namespace

const TransferKernels& transfer_kernels() {
  static const TransferKernels& kernels = choose();
  return kernels;
}

}  // namespace spectral_ext
