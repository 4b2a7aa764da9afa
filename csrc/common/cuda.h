// What every CUDA binding needs from torch over its stable ABI: device guard, current stream, checked launches.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <exception>

#include "cuda/dtype.h"

// The dispatch key that the CUDA bindings register; the emulation tests register them on the CPU.
#ifndef SPECTRAL_EXT_CUDA_KEY
#define SPECTRAL_EXT_CUDA_KEY CUDA
#endif

namespace spectral_ext::cuda {

// Makes the device of a tensor the current one for a scope, and knows its current stream and size.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
  }
  static void check(cudaError_t error, const char* what) {
    if (error == cudaErrorNoKernelImageForDevice) {
      int device = 0, major = 0, minor = 0;
      cudaGetDevice(&device);
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      STD_TORCH_CHECK(false, "spectral_ext holds no code for this GPU of compute capability ", major, ".", minor,
                      ": 8.0 or newer is needed, and TORCH_CUDA_ARCH_LIST must have named it when it was built");
    }
    STD_TORCH_CHECK(error != cudaErrorInvalidValue && error != cudaErrorInvalidConfiguration, what,
                    ": the sizes are beyond what one launch takes; split the batch, the groups or the directions");
    STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Memory that a call needs for itself, asked for before anything is launched or written.
inline torch::stable::Tensor allocate_scratch(const torch::stable::Tensor& like, int64_t numbers,
                                              torch::headeronly::ScalarType type, const char* what) {
  try {
    return torch::stable::new_empty(like, {numbers}, type);
  } catch (const std::exception&) {  // the stable ABI drops the allocator's own words
    const int64_t bytes = numbers * (type == torch::headeronly::ScalarType::Float ? 4 : 8);
    STD_TORCH_CHECK(false, what, ": ", bytes,
                    " bytes of scratch could not be allocated (out of memory); split the batch");
  }
}

inline Dtype dtype_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, "dtype must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace spectral_ext::cuda
