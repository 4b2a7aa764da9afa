// The one choice of vector instructions for every CPU kernel.
//
// Each kernel is compiled once per level, in files of its own (*_baseline.cpp, *_avx2.cpp, *_avx512.cpp), over the
// vectors of cpu/simd_vectors.h. A call uses the highest level that the processor has. The environment variable
// SPECTRAL_EXT_SIMD, one of baseline, avx2 and avx512, lowers it; it is read once per process.
#pragma once
#include <string>
#include <type_traits>

#if defined(__x86_64__)
#define SPECTRAL_EXT_X86 1
#endif

namespace spectral_ext::cpu {

enum class SimdLevel : int { kBaseline, kAvx2, kAvx512 };

// What the processor has.
SimdLevel detected_simd_level();

// What kernels use. Throws std::invalid_argument where SPECTRAL_EXT_SIMD names no level.
SimdLevel simd_level();

// Uses `level` from now on, or what the processor has where that is less.
void set_simd_level(SimdLevel level);

const char* simd_name(SimdLevel level);

// Throws std::invalid_argument for a name that is no level.
SimdLevel simd_level_named(const std::string& name);

// The level that SPECTRAL_EXT_SIMD asks for, also where the processor lacks it; the detected one where it is not set.
SimdLevel requested_simd_level();

template <SimdLevel level>
using SimdConstant = std::integral_constant<SimdLevel, level>;

// f(SimdConstant<level>{}) for the level in use.
template <class F>
decltype(auto) with_simd_level(F f) {
#ifdef SPECTRAL_EXT_X86
  const SimdLevel level = simd_level();
  if (level == SimdLevel::kAvx512) return f(SimdConstant<SimdLevel::kAvx512>{});
  if (level == SimdLevel::kAvx2) return f(SimdConstant<SimdLevel::kAvx2>{});
#endif
  return f(SimdConstant<SimdLevel::kBaseline>{});
}

}  // namespace spectral_ext::cpu
