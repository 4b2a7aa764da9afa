// Test-only stand-in for <cuda_runtime.h>: g++ compiles csrc/cuda/*.cu as C++ and runs every CUDA thread as a fiber.
// Blocks run one after the other; a fiber runs until it meets a barrier or a warp exchange. See emulator.cpp.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ \
  thread_local  // implies static; nothing else here is, so that run_block() can fill all of it with NaN
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoKernelImageForDevice = 209
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

// The least that a supported device allows: sm_86, sm_89 and sm_120 have 99 KiB for a block, of which more than 48 must
// be asked for.
constexpr size_t kSharedBytesUnasked = 48 * 1024, kSharedBytesOptIn = 99 * 1024;
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {
void run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
void block_barrier();
void warp_barrier();
uint64_t exchange(uint64_t value, int source_lane);  // what lane `source_lane` of this warp passed in
int lane();
void* dynamic_shared();
void copy_async(void* shared, const void* global);  // done as late as allowed; until then the target holds NaN
void end_copies();
void wait_for_copies(int groups_left);
void show(const void* mine);  // to the other lanes of this warp, from the next warp_barrier() to the one after
const void* shown_by(int lane);
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

namespace cuda_emulator {
// The four 8 × 8 matrices that the lanes name: element (row, column) of matrix m.
template <typename Use>
void with_matrices(const void* row, const Use& use) {
  uint16_t mine[8];  // read by the lane that named it: the race check sees the access
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) __builtin_trap();
  std::memcpy(mine, row, sizeof(mine));
  show(mine);
  warp_barrier();
  use([](int m, int row, int column) -> uint32_t {
    return static_cast<const uint16_t*>(shown_by(8 * m + row))[column];
  });
  warp_barrier();
}
inline void load_transposed(uint32_t (&matrices)[4], const void* row) {
  const int column = lane() / 4, first = 2 * (lane() % 4);
  with_matrices(row, [&](const auto& at) {
    for (int m = 0; m < 4; ++m) matrices[m] = at(m, first, column) | at(m, first + 1, column) << 16;
  });
}
inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  const int line = lane() / 4, first = 2 * (lane() % 4);
  with_matrices(row, [&](const auto& at) {
    for (int m = 0; m < 4; ++m) matrices[m] = at(m, line, first) | at(m, line, first + 1) << 16;
  });
}

// What a lane brings to mma: its numbers, where 2w and 2w + 1 are those of word w of a, b0, b1; and its sums.
struct TensorCoreLane {
  float numbers[12];
  float* sum;
};
void tensor_core(TensorCoreLane& mine);

template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  TensorCoreLane mine;
  mine.sum = sum;
  for (int i = 0; i < 12; ++i) {
    const auto bits = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
    T value;
    std::memcpy(&value, &bits, sizeof(bits));
    mine.numbers[i] = static_cast<float>(value);
  }
  tensor_core(mine);
}
}  // namespace cuda_emulator

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
  const bool old = std::getenv("CUDA_EMULATOR_OLD_GPU") != nullptr;  // compute capability 7.5: no kernel runs
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 4, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = old ? 7 : 8, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = old ? 5 : 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(kSharedBytesOptIn), cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
namespace cuda_emulator {
size_t& shared_bytes_allowed(const void* kernel);
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kSharedBytesOptIn) return cudaErrorInvalidValue;
  cuda_emulator::shared_bytes_allowed(reinterpret_cast<const void*>(kernel)) = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename... Formal, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...), Actual&&... arguments) {
  const auto threads = uint64_t(config->blockDim.x) * config->blockDim.y * config->blockDim.z;
  const auto blocks = uint64_t(config->gridDim.x) * config->gridDim.y * config->gridDim.z;
  if (threads == 0 || threads > 1024 || config->blockDim.z > 64 || blocks == 0 || config->gridDim.x > 0x7fffffff ||
      config->gridDim.y > 65535 || config->gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (config->dynamicSmemBytes > cuda_emulator::shared_bytes_allowed(reinterpret_cast<const void*>(kernel)))
    return cudaErrorInvalidValue;
  if (std::getenv("CUDA_EMULATOR_OLD_GPU") != nullptr) return cudaErrorNoKernelImageForDevice;
  cuda_emulator::run(*config, [&] { kernel(static_cast<Formal>(arguments)...); });
  return cudaSuccess;
}
