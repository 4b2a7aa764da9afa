// Lag sums of bfloat16 and float16 input on the tensor cores: exact products, float32 sums. Units as in
// input_factor_lag.cu.
//
// Warps share a 64 × 64 or 128 × 128 tile, 32 rows × half of the columns each. Rows are staged as they lie in memory,
// (row, channel), by cp.async in a ring of kStages; ldmatrix transposes both operands on the way to the registers. A
// pitch of eight numbers more than the tile keeps the eight rows of a matrix in different banks. A tile on the diagonal
// of a symmetric region is staged once and is both operands.
//
// By count on an H100, not measured: a tile of 128 takes 2¹⁸ products per 16 rows, 205 cycles at the 60 % of the peak
// rate that mma reaches there, and ldmatrix moves 24 KiB, 192 cycles. At n = 768 the tiles on and above the diagonal
// are 58 % of x.T @ x, so that the product takes about 0.58/0.60 of what x.T @ x takes at 100 % of the peak, and 0.75
// of it at the 75 % that is usual. What comes next, after a measurement: one producer warp that loads by TMA into a
// swizzled ring, two consumer groups with wgmma m64n256k16 from shared memory, and x read once per row of tiles.
#include "cuda/lag_units.cuh"
#include "cuda/tensor_core.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kDepth = 32;  // rows a step
constexpr int kFold = 8;    // steps between folds, as in input_factor_lag.cu
constexpr int kChunks = 2;  // of eight channels, that a thread loads of each operand
constexpr int kStages = 4;

// Eight 16-bit numbers, as bits.
struct alignas(16) Eight {
  uint16_t v[8];
};

template <int kTile>
struct Shape {
  static constexpr int kThreads = 2 * kTile, kPitch = kTile + 8, kWarpColumns = kTile / 2;
  static constexpr int kLoaders = kThreads / kDepth;  // threads that load one row
  static_assert(kLoaders * kChunks * 8 == kTile && kThreads / 32 == 2 * (kTile / 32));
  using Operand = Eight[kDepth][kPitch / 8];
  struct Stage {
    Operand left, right;
  };
};

// Eight channels of a row to shared memory: copied on the side where they are whole and aligned, at once otherwise.
__device__ __forceinline__ void stage_chunk(Eight& target, const uint16_t* row, int channel, int channels,
                                            bool vectors) {
  if (row != nullptr && channel < channels && vectors) return copy_async(&target, row + channel);
  Eight numbers{};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (row != nullptr && channel + i < channels) numbers.v[i] = row[channel + i];
  target = numbers;
}

// Grid (units, groups).
template <typename T, int kTile>
__global__ void __launch_bounds__(Shape<kTile>::kThreads, 1)
    accumulate_mma(const uint16_t* x, LagSizes s, const LagRegion* regions, float* state, float scale, float beta,
                   float* scratch) {
  using S = Shape<kTile>;
  constexpr int kColumns = S::kWarpColumns / 8;  // 16 × 8 blocks beside each other in a warp's part
  auto* stages = dynamic_shared<typename S::Stage>();
  const Unit unit = find_unit(s, regions, blockIdx.x, kTile);
  const bool same = unit.region.symmetric && unit.tile.row == unit.tile.column;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first_row = warp / 2 * 32, first_column = warp % 2 * S::kWarpColumns;  // of the warp's part of the tile
  const int loaded_row = thread / S::kLoaders, loaded_chunk = thread % S::kLoaders;
  const uint16_t* base = x + static_cast<int64_t>(blockIdx.y) * s.channels + unit.region.offset;
  int64_t row = unit.begin + loaded_row;
  Cursor cursor{};
  if (s.batch > 0) cursor = cursor_at(row, s.batch, unit.region.extent);

  // The next step to the ring; a group of copies even where there is none, so that groups count steps.
  const auto load = [&](int step, int steps) {
    if (step < steps) {
      auto& target = stages[step % kStages];
      const uint16_t* source = nullptr;
      if (row < unit.end)
        source = base + cursor.sample * s.batch_stride + cursor.pixel[0] * s.step[0] + cursor.pixel[1] * s.step[1] +
                 cursor.pixel[2] * s.step[2];
      const uint16_t* shifted = source == nullptr ? nullptr : source + unit.region.delta;
#pragma unroll
      for (int q = 0; q < kChunks; ++q) {
        const int chunk = loaded_chunk + S::kLoaders * q;
        stage_chunk(target.left[loaded_row][chunk], source, unit.tile.row * kTile + 8 * chunk, s.channels, s.vectors);
        if (!same)
          stage_chunk(target.right[loaded_row][chunk], shifted, unit.tile.column * kTile + 8 * chunk, s.channels,
                      s.vectors);
      }
      row += kDepth;
      if (row < unit.end) advance(cursor, kDepth, s.batch, unit.region.extent);
    }
    end_copies();
  };

  float total[2][kColumns][4] = {}, sum[2][kColumns][4] = {};  // 16 × 8 blocks of the warp's part
  const auto fold = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[i][j][e] += sum[i][j][e], sum[i][j][e] = 0;
  };

  // The 8 × 8 matrices of ldmatrix are ordered as the operands of mma want them: for the left one the second is eight
  // channels on, for the right one eight rows.
  const int matrix = lane / 8, in_matrix = lane % 8;
  const int left_row = matrix / 2 * 8 + in_matrix, left_chunk = first_row / 8 + matrix % 2;
  const int right_row = matrix % 2 * 8 + in_matrix, right_chunk = first_column / 8 + matrix / 2;
  const int steps = unit.begin < unit.end ? static_cast<int>((unit.end - unit.begin + kDepth - 1) / kDepth) : 0;
  for (int step = 0; step < kStages - 1; ++step) load(step, steps);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // everybody's part of this step has arrived, and nobody still reads the step before
    load(step + kStages - 1, steps);
    const auto& stage = stages[step % kStages];
    const typename S::Operand &left = stage.left, &right = same ? stage.left : stage.right;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_transposed(a[i], &left[k + left_row][left_chunk + 2 * i]);
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        uint32_t b[4];
        load_transposed(b, &right[k + right_row][right_chunk + j]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add(sum[i][j], a[i], b[0], b[1], T{});
          multiply_add(sum[i][j + 1], a[i], b[2], b[3], T{});
        }
      }
    }
    if (step % kFold == kFold - 1) fold();
  }
  fold();

#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
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
  const auto run = [&](auto type, auto shape) {
    using T = decltype(type);
    constexpr int kTile = decltype(shape)::kThreads / 2;
    return launch(accumulate_mma<T, kTile>, grid, dim3(2 * kTile), kStages * sizeof(typename Shape<kTile>::Stage),
                  stream, static_cast<const uint16_t*>(x), sizes, regions, state, scale, beta, scratch);
  };
  const auto of_type = [&](auto type) {
    return lag_tile(sizes.channels, dtype) == 128 ? run(type, Shape<128>{}) : run(type, Shape<64>{});
  };
  return dtype == Dtype::kBFloat16 ? of_type(__nv_bfloat16{}) : of_type(__half{});
}

}  // namespace spectral_ext::cuda
