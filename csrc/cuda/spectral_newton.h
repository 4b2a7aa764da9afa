// T(G) ≈ f(R) G for batches of small matrices, R = G Gᵀ on the small side, f(x) = c + Σ_j w_j/(x + p_j). Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"

namespace spectral_ext::cuda {

constexpr int kNewtonMaxSide = 160;           // of launch_spectral_newton
constexpr int kNewtonBlockedMaxSide = 16384;  // of launch_spectral_newton_blocked

// Element (matrix, i on the small side, k on the large side) at these strides.
struct NewtonStrides {
  int64_t matrix, small_side, large_side;
};

struct NewtonSizes {
  int batch, n;    // n: small side
  int64_t length;  // large side
  int terms;
  NewtonStrides input, output;
};

struct NewtonCoefficients {
  const float* constant;  // (batch)
  const float* weights;   // (batch, terms)
  const float* poles;     // (batch, terms), such that R + p_j I is positive definite
};

// Floats of scratch.
int64_t newton_scratch(const NewtonSizes& sizes);
int64_t newton_blocked_scratch(const NewtonSizes& sizes);

// out = beta·out + scale·f(R) G; out is not read where beta is 0. status[matrix]: 0, or 1 + the first pivot that was
// not positive and finite; then f(R) is taken as 0. dtype (float32, bfloat16, float16) is that of G and out; R and f(R)
// are float32.
cudaError_t launch_spectral_newton(const void* G, void* out, Dtype dtype, const NewtonSizes& sizes,
                                   const NewtonCoefficients& coefficients, float scale, float beta, int32_t* status,
                                   float* scratch, cudaStream_t stream);

// The same with products of operands split into two bfloat16 numbers: relative error 3·2⁻¹⁸ a product.
cudaError_t launch_spectral_newton_blocked(const void* G, void* out, Dtype dtype, const NewtonSizes& sizes,
                                           const NewtonCoefficients& coefficients, float scale, float beta,
                                           int32_t* status, float* scratch, cudaStream_t stream);

}  // namespace spectral_ext::cuda
