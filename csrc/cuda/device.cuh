// What every kernel here shares: element types, launching, a block's reduction. Torch-free.
#pragma once
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "spectral_ext needs compute capability 8.0 (Ampere) or newer: leave older ones out of TORCH_CUDA_ARCH_LIST"
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/dtype.h"

namespace spectral_ext::cuda {

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// What sums of T are kept in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// A block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
#else
  return static_cast<T*>(cuda_emulator::dynamic_shared());
#endif
}

template <typename... Formal, typename... Actual>
cudaError_t launch(void (*kernel)(Formal...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Actual... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Formal>(arguments)...);
}

// Calls function.template operator()<T>() with T the C++ type of dtype.
template <typename Function>
cudaError_t dispatch(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat64:
      return function(double{});
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kBFloat16:
      return function(__nv_bfloat16{});
    case Dtype::kFloat16:
      return function(__half{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace spectral_ext::cuda
