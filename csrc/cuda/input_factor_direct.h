// Σ a aᵀ over implicit patches of any geometry. Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"

namespace spectral_ext::cuda {

// Tap t of output position y reads input h where h·up = y·down + t·step + start, if that h is an integer inside [0,
// size).
struct DirectAxis {
  int size, kernel, positions, up, down, step, start;
};

struct DirectSizes {
  int64_t batch;
  int groups, group_channels;
  DirectAxis axes[3];
  int64_t batch_stride, channel_stride, axis_stride[3];  // of x, in elements
  bool bias;                                             // a last column of ones
  bool channels_last;                                    // column order (tap, channel) instead of (channel, tap)

  int taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int n() const { return group_channels * taps() + bias; }
  int64_t rows() const { return batch * axes[0].positions * axes[1].positions * axes[2].positions; }
};

// out[g][i][j] = beta·out + scale·Σ, at element strides; where beta is 0, out is not read.
struct FactorOutput {
  void* data;
  int64_t group_stride, row_stride, column_stride;
  double scale, beta;
};

// Numbers (of the accumulator's type) that the launch needs as scratch.
int64_t input_factor_direct_scratch(const DirectSizes& sizes, Dtype dtype, int multiprocessors);

// out is float64 for float64 x, float32 otherwise.
cudaError_t launch_input_factor_direct(const void* x, Dtype dtype, const DirectSizes& sizes, const FactorOutput& out,
                                       void* scratch, int multiprocessors, cudaStream_t stream);

}  // namespace spectral_ext::cuda
