// The element types that CPU kernels read.
#pragma once
#include <cstdint>

namespace spectral_ext::cpu {

enum class Scalar { kFloat, kDouble, kBFloat16, kHalf };

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

}  // namespace spectral_ext::cpu
