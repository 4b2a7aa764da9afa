// Which vector instructions this CPU has: kernels are compiled for each level and chosen once at run time.
#pragma once
#include <atomic>

namespace spectral_ext {

enum class Simd : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

inline Simd detected_simd() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return Simd::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Simd::kAvx2;
#endif
  return Simd::kBaseline;
}

// The level in use: the detected one, unless a test lowers it.
inline std::atomic<int>& simd_level() {
  static std::atomic<int> level{static_cast<int>(detected_simd())};
  return level;
}

inline const char* simd_name(Simd level) {
  return level == Simd::kAvx512 ? "avx512" : level == Simd::kAvx2 ? "avx2" : "baseline";
}

}  // namespace spectral_ext
