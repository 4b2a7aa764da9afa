// Element types that the CUDA kernels read. Host and device code; torch-free.
#pragma once

namespace spectral_ext::cuda {

enum class Dtype { kFloat64, kFloat32, kBFloat16, kFloat16 };

}  // namespace spectral_ext::cuda
