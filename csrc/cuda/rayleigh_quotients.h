// Second moments of two arrays of projections, along positions and samples. Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"

namespace spectral_ext::cuda {

// p[sample, k, position] = v_k·a and q = u_k·d at element strides. Positions or k must be the fast axis for speed, not
// for correctness.
struct Projections {
  const void* data;
  int64_t sample_stride, direction_stride, position_stride;
  const void* shift;  // one number a direction, added to each projection on it: the bias entry of v_k; or null
};

struct RayleighSizes {
  int64_t samples, positions;
  int directions;
};

// Partial sums a launch of rayleigh_partials makes: rows of 4·directions doubles.
int64_t rayleigh_partial_rows(const RayleighSizes& sizes);

// partials[row][0..3][k]: Σq², Σp², Σp²q², Σ_sample (Σ_position pq)² over the samples that belong to row. Rows are
// independent of the device, so sums are the same on every run and card.
cudaError_t launch_rayleigh_partials(const Projections& p, const Projections& q, Dtype dtype,
                                     const RayleighSizes& sizes, double* partials, cudaStream_t stream);

// out[o][k] = scale[o] Σ_row partials[row][o][k]; out is float32 or float64.
struct RayleighScales {
  double scale[4];
};
cudaError_t launch_rayleigh_finish(const double* partials, int64_t rows, int directions, const RayleighScales& scales,
                                   void* const (&out)[4], Dtype out_dtype, cudaStream_t stream);

}  // namespace spectral_ext::cuda
