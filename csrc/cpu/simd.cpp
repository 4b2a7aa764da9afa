#include "cpu/simd.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace spectral_ext::cpu {
namespace {

constexpr SimdLevel kLevels[] = {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512};

std::atomic<SimdLevel>& level_in_use() {
  static std::atomic<SimdLevel> level{std::min(requested_simd_level(), detected_simd_level())};
  return level;
}

}  // namespace

SimdLevel detected_simd_level() {
#ifdef SPECTRAL_EXT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return SimdLevel::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

SimdLevel simd_level() { return level_in_use().load(std::memory_order_relaxed); }

void set_simd_level(SimdLevel level) { level_in_use() = std::min(level, detected_simd_level()); }

const char* simd_name(SimdLevel level) {
  return level == SimdLevel::kAvx512 ? "avx512" : level == SimdLevel::kAvx2 ? "avx2" : "baseline";
}

SimdLevel simd_level_named(const std::string& name) {
  for (const SimdLevel level : kLevels)
    if (name == simd_name(level)) return level;
  throw std::invalid_argument("'" + name + "' names no level of vector instructions: use baseline, avx2 or avx512");
}

SimdLevel requested_simd_level() {
  const char* name = std::getenv("SPECTRAL_EXT_SIMD");
  if (name == nullptr || *name == '\0') return detected_simd_level();
  try {
    return simd_level_named(name);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("the environment variable SPECTRAL_EXT_SIMD: ") + error.what());
  }
}

}  // namespace spectral_ext::cpu
