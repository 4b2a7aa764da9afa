// (batch, rows, columns) → (batch, columns, rows), contiguous. Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace spectral_ext::cuda {

// element_size: 2, 4 or 8 bytes.
cudaError_t launch_transpose(const void* x, void* out, int element_size, int64_t batch, int64_t rows, int64_t columns,
                             cudaStream_t stream);

}  // namespace spectral_ext::cuda
