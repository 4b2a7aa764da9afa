// Lag sums (common/lag_plan.h) of an input whose channels are contiguous, and their expansion to the factor.
// Torch-free.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"
#include "cuda/input_factor_direct.h"

namespace spectral_ext::cuda {

// A region: Σ over its pixels and the batch of x[pixel] x[pixel + delta]ᵀ.
struct LagRegion {
  int64_t offset, delta;  // elements: first pixel from x, second operand from the first
  int32_t extent[3];      // pixels an axis, steps of LagSizes::step
  int32_t symmetric;      // delta is 0: only tiles row ≤ column are summed, and mirrored
  int32_t first_unit;     // units (one tile of one slice of rows) before this region's
  int32_t slices;         // rows are cut in this many
  int64_t rows_per_slice;
  int64_t first_partial;  // tiles of scratch before this region's; unused where slices is 1
  int32_t first_sum;      // tiles to be added up before this region's
  int32_t unused;
};

struct LagSumRegion {
  int64_t offset;
  int32_t extent[3];
  int32_t unused;
};

// State of a group: regions·channels² numbers, then, with a bias, sum_regions·channels and the count of rows.
struct LagSizes {
  int64_t batch, batch_stride, step[3];
  int groups, channels;  // channels of one group; group g starts g·channels after x
  int regions, sum_regions;
  int64_t group_state_size;
  bool bias;
  double count;  // rows: batch · output positions
  int units, sums, sum_slices;
  int64_t partial_tiles;  // tiles of scratch, a group
  bool vectors;           // base and strides allow loads of lag_vector(dtype) numbers
};

// Tables on the device, made by LagTables (cuda/lag_tables.h).
struct LagExpansion {
  const int32_t* pairs[3];      // axis: (tap, tap') → class or −1, first segment, end segment
  const int32_t* segments[3];   // axis: class → segments
  const int32_t* first_region;  // (class, class, class) → first region or −1
  const int32_t* taps[3];       // axis: tap → sum class, first segment, end segment
  const int32_t* sum_segments[3];
  const int32_t* first_sum;
  int32_t kernel[3], classes[3], sums[3];
};

constexpr int kTableWords = 480;  // 8-byte words that one launch carries as a kernel argument
struct TableChunk {
  int64_t words[kTableWords];
};

// Copies host words to the device as kernel arguments: safe in a CUDA graph, where a copy from pageable memory is not.
cudaError_t launch_upload(const int64_t* words, int64_t count, int64_t* target, cudaStream_t stream);

int lag_tile(int channels, Dtype dtype);
int lag_vector(Dtype dtype);

// The part of launch_lag_sums that sums units, for 16-bit x and tiles of 64 or 128.
cudaError_t launch_lag_units_mma(const void* x, Dtype dtype, const LagSizes& sizes, const LagRegion* regions,
                                 float* state, float scale, float beta, float* scratch, cudaStream_t stream);

// The part of launch_lag_sums that a bias needs; scratch: sum_slices·sum_regions·channels·groups numbers.
cudaError_t launch_lag_row_sums(const void* x, Dtype dtype, const LagSizes& sizes, const LagSumRegion* regions,
                                void* state, double scale, double beta, void* scratch, cudaStream_t stream);

// state = beta·state + scale·Σ; not read where beta is 0. scratch: (partial_tiles·tile² +
// sum_slices·sum_regions·channels) ·groups numbers of the accumulator's type.
cudaError_t launch_lag_sums(const void* x, Dtype dtype, const LagSizes& sizes, const LagRegion* regions,
                            const LagSumRegion* sum_regions, void* state, double scale, double beta, void* scratch,
                            cudaStream_t stream);

// out = beta·out + scale·(the factor that state describes). state and out are of accumulator_dtype.
cudaError_t launch_lag_expand(const void* state, Dtype accumulator_dtype, const LagSizes& sizes,
                              const LagExpansion& tables, bool channels_last, const FactorOutput& out,
                              cudaStream_t stream);

}  // namespace spectral_ext::cuda
