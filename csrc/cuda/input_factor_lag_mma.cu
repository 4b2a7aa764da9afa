// Lag sums of bfloat16 and float16 input on the tensor cores: exact products, float32 sums. Units as in
// input_factor_lag.cu.
//
// Four warps share a 64 × 64 tile, 32 × 32 each. Rows are staged as they lie in memory, (row, channel); ldmatrix
// transposes both operands on the way to the registers. The pitch of 72 numbers keeps its eight rows in different
// banks.
#include "cuda/lag_units.cuh"
#include "cuda/tensor_core.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kTile = 64, kThreads = 128;
constexpr int kDepth = 32;  // rows a step
constexpr int kPitch = kTile + 8;
constexpr int kFold = 8;    // steps between folds, as in input_factor_lag.cu
constexpr int kChunks = 2;  // of eight channels, that a thread loads of each operand

// Eight 16-bit numbers, as bits.
struct alignas(16) Eight {
  uint16_t v[8];
};

__device__ __forceinline__ Eight load(const uint16_t* row, int channel, int channels, bool vectors) {
  Eight numbers{};
  if (row == nullptr || channel >= channels) return numbers;
  if (vectors) return *reinterpret_cast<const Eight*>(row + channel);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (channel + i < channels) numbers.v[i] = row[channel + i];
  return numbers;
}

// Grid (units, groups).
template <typename T>
__global__ void __launch_bounds__(kThreads) accumulate_mma(const uint16_t* x, LagSizes s, const LagRegion* regions,
                                                           float* state, float scale, float beta, float* scratch) {
  __shared__ Eight left[2][kDepth][kPitch / 8], right[2][kDepth][kPitch / 8];
  const Unit unit = find_unit(s, regions, blockIdx.x, kTile);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first_row = warp / 2 * 32, first_column = warp % 2 * 32;  // of the warp's part of the tile
  const int loaded_row = thread / 4, loaded_chunk = thread % 4;
  const uint16_t* base = x + static_cast<int64_t>(blockIdx.y) * s.channels + unit.region.offset;
  int64_t row = unit.begin + loaded_row;
  Cursor cursor{};
  if (s.batch > 0) cursor = cursor_at(row, s.batch, unit.region.extent);
  Eight next_left[kChunks], next_right[kChunks];

  const auto fetch = [&] {
    const uint16_t* source = nullptr;
    if (row < unit.end)
      source = base + cursor.sample * s.batch_stride + cursor.pixel[0] * s.step[0] + cursor.pixel[1] * s.step[1] +
               cursor.pixel[2] * s.step[2];
    const uint16_t* shifted = source == nullptr ? nullptr : source + unit.region.delta;
#pragma unroll
    for (int q = 0; q < kChunks; ++q) {
      const int channel = 8 * (loaded_chunk + 4 * q);
      next_left[q] = load(source, unit.tile.row * kTile + channel, s.channels, s.vectors);
      next_right[q] = load(shifted, unit.tile.column * kTile + channel, s.channels, s.vectors);
    }
    row += kDepth;
    if (row < unit.end) advance(cursor, kDepth, s.batch, unit.region.extent);
  };
  const auto stage = [&](int buffer) {
#pragma unroll
    for (int q = 0; q < kChunks; ++q) {
      left[buffer][loaded_row][loaded_chunk + 4 * q] = next_left[q];
      right[buffer][loaded_row][loaded_chunk + 4 * q] = next_right[q];
    }
  };

  float total[2][4][4] = {}, sum[2][4][4] = {};  // 16 × 8 blocks of the warp's part
  const auto fold = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[i][j][e] += sum[i][j][e], sum[i][j][e] = 0;
  };

  // The 8 × 8 matrices of ldmatrix are ordered as the operands of mma want them: for the left one the second is eight
  // channels on, for the right one eight rows.
  const int matrix = lane / 8, in_matrix = lane % 8;
  const int left_row = matrix / 2 * 8 + in_matrix, left_chunk = first_row / 8 + matrix % 2;
  const int right_row = matrix % 2 * 8 + in_matrix, right_chunk = first_column / 8 + matrix / 2;
  const int steps = unit.begin < unit.end ? static_cast<int>((unit.end - unit.begin + kDepth - 1) / kDepth) : 0;
  fetch();
  stage(0);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    if (step + 1 < steps) fetch();
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_transposed(a[i], &left[buffer][k + left_row][left_chunk + 2 * i]);
        load_transposed(b[i], &right[buffer][k + right_row][right_chunk + 2 * i]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
    }
    if (step % kFold == kFold - 1) fold();
    if (step + 1 < steps) stage(buffer ^ 1);  // last read before the barrier that ended the step before
    __syncthreads();
  }
  fold();

#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        put_unit<float, kTile>(s, unit, blockIdx.y, first_row + 16 * i + lane / 4 + e / 2 * 8,
                               first_column + 8 * j + lane % 4 * 2 + e % 2, total[i][j][e], scale, beta, state,
                               scratch);
}

}  // namespace

cudaError_t launch_lag_units_mma(const void* x, Dtype dtype, const LagSizes& sizes, const LagRegion* regions,
                                 float* state, float scale, float beta, float* scratch, cudaStream_t stream) {
  const dim3 grid(sizes.units, sizes.groups);
  const auto run = [&](auto type) {
    using T = decltype(type);
    return launch(accumulate_mma<T>, grid, dim3(kThreads), 0, stream, static_cast<const uint16_t*>(x), sizes, regions,
                  state, scale, beta, scratch);
  };
  return dtype == Dtype::kBFloat16 ? run(__nv_bfloat16{}) : run(__half{});
}

}  // namespace spectral_ext::cuda
