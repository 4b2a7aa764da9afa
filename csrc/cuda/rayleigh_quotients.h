// Second moments of patches and errors along pairs of directions. Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"
#include "cuda/input_factor_direct.h"

namespace spectral_ext::cuda {

// Rows of numbers, read as the patches of a convolution; group g has the directions g.
struct RayleighOperand {
  const void* data;
  Dtype dtype;
  DirectSizes sizes;
  const void* directions;  // (groups, sizes.n(), K) float64 where the projections are, else float32; contiguous
};

// x and delta have the same batch, positions and groups.
struct RayleighProblem {
  RayleighOperand x, delta;
  int directions;  // K
  bool float64;    // how projections are summed; float64 where x or delta is
};

// How the work is cut. It depends on the sizes alone, so that sums are the same on every device.
struct RayleighPlan {
  int width;         // directions per block: 24, 32 or 64
  int tile_samples;  // whole samples per tile of rows; 0 where a sample has more rows than a tile
  int64_t tiles, tiles_per_unit, units,
      parts;                // units of tiles, one block each; units per sample, if tile_samples is 0
  int depth_slices;         // of the sums over patch entries
  int64_t scratch_numbers;  // of the type of the projections
  int64_t partial_numbers;  // float64
};
RayleighPlan rayleigh_plan(const RayleighProblem& problem);

// out (4, groups, K) float64: Σ q² / B, Σ p² / (B·S), Σ p²q² / (B·S), Σ_b (Σ_s p q)² / B of the projections p of x, q
// of delta.
cudaError_t launch_rayleigh(const RayleighProblem& problem, const RayleighPlan& plan, void* scratch, double* partials,
                            double* out, cudaStream_t stream);

}  // namespace spectral_ext::cuda
