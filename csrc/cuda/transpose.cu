// Channels to the last place: 32 × 32 tiles through shared memory, so that reads and writes are both contiguous.
#include "cuda/transpose.h"

#include "cuda/device.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kTile = 32, kRows = 8;

// Block (32, kRows). Grid (tiles of columns, tiles of rows, samples): each axis strides over what exceeds the grid.
template <typename T>
__global__ void __launch_bounds__(kTile* kRows)
    transpose(const T* x, T* out, int64_t batch, int64_t rows, int64_t columns) {
  __shared__ T tile[kTile][kTile + 1];
  for (int64_t sample = blockIdx.z; sample < batch; sample += gridDim.z)
    for (int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTile; first_row < rows;
         first_row += static_cast<int64_t>(gridDim.y) * kTile) {
      const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTile;
      const T* source = x + sample * rows * columns;
      T* target = out + sample * rows * columns;
      for (int i = threadIdx.y; i < kTile; i += kRows)
        if (first_row + i < rows && first_column + threadIdx.x < columns)
          tile[i][threadIdx.x] = source[(first_row + i) * columns + first_column + threadIdx.x];
      __syncthreads();
      for (int i = threadIdx.y; i < kTile; i += kRows)
        if (first_column + i < columns && first_row + threadIdx.x < rows)
          target[(first_column + i) * rows + first_row + threadIdx.x] = tile[threadIdx.x][i];
      __syncthreads();
    }
}

}  // namespace

cudaError_t launch_transpose(const void* x, void* out, int element_size, int64_t batch, int64_t rows, int64_t columns,
                             cudaStream_t stream) {
  if (batch == 0 || rows == 0 || columns == 0) return cudaSuccess;
  const auto at_most = [](int64_t count, int64_t most) { return static_cast<unsigned>(count < most ? count : most); };
  const int64_t column_tiles = (columns + kTile - 1) / kTile;
  if (column_tiles > 0x7fffffff) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(column_tiles), at_most((rows + kTile - 1) / kTile, 65535),
                  at_most(batch, 65535));
  const auto run = [&](auto type) {
    using T = decltype(type);
    return launch(transpose<T>, grid, dim3(kTile, kRows), 0, stream, static_cast<const T*>(x), static_cast<T*>(out),
                  batch, rows, columns);
  };
  switch (element_size) {
    case 2:
      return run(uint16_t{});
    case 4:
      return run(uint32_t{});
    case 8:
      return run(uint64_t{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace spectral_ext::cuda
