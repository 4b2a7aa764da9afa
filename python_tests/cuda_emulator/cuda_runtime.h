// Test-only stand-in for <cuda_runtime.h>: g++ compiles csrc/cuda/*.cu as C++ and runs every CUDA thread as a fiber.
// Blocks run one after the other; a fiber runs until it meets a barrier or a warp exchange. See emulator.cpp.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ thread_local  // one copy for all fibers of a block; implies static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {
void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
void block_barrier();
void warp_barrier();
uint64_t exchange(uint64_t value, int source_lane);  // what lane `source_lane` of this warp passed in
int lane();
void* dynamic_shared();
}  // namespace cuda_emulator

inline void __syncthreads() { cuda_emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_emulator::warp_barrier(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_emulator::exchange(bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset, int width = 32) {
  return __shfl_sync(mask, value, cuda_emulator::lane() ^ offset);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  int source = cuda_emulator::lane() + static_cast<int>(offset);
  return __shfl_sync(mask, value, source < 32 ? source : cuda_emulator::lane());
}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "emulated error";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 163 * 1024;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... Formal, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...), Actual&&... arguments) {
  const auto threads = uint64_t(config->blockDim.x) * config->blockDim.y * config->blockDim.z;
  const auto blocks = uint64_t(config->gridDim.x) * config->gridDim.y * config->gridDim.z;
  if (threads == 0 || threads > 1024 || blocks == 0 || config->gridDim.y > 65535 || config->gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  cuda_emulator::run(*config, [&] { kernel(static_cast<Formal>(arguments)...); });
  return cudaSuccess;
}
