// Lag sums in exact fp32 (double for double; 16-bit input of many channels: input_factor_lag_mma.cu): a matrix product
// for every region, whose depth is (pixels × batch).
//
// A unit is one tile of channels × channels of one region over one slice of its rows. Row r of a region is a pixel of
// one sample; the second operand is the same row shifted by the region's constant delta, so nothing is unfolded and no
// zero is multiplied. Double-buffered shared memory, an 8 × 8 fragment a thread. Fragments are folded into a second set
// of registers every kFold steps, which keeps the rounding error of a long sum that of a short one. Slices are added in
// order by a second kernel: no atomics.
#include "cuda/lag_units.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kDepth = 16;  // rows a step
constexpr int kFold = 16;   // steps between folds

template <typename T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
  T v[4];
};

template <int kTileSize, int kFragmentSize>
struct Config {
  static constexpr int kTile = kTileSize, kFragment = kFragmentSize;
  static constexpr int kSide = kTile / kFragment, kThreads = kSide * kSide;
  static constexpr int kLoaders = kThreads / kDepth;  // threads that load one row
  static_assert(kThreads % kDepth == 0 && kTile / 4 % kLoaders == 0 && kFragment % 4 == 0);
};

template <typename T>
__device__ __forceinline__ Quad<T> load(const T* row, int channel, int channels, bool vectors) {
  Quad<T> quad{};
  if (row == nullptr || channel >= channels) return quad;
  if (vectors) return *reinterpret_cast<const Quad<T>*>(row + channel);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (channel + i < channels) quad.v[i] = row[channel + i];
  return quad;
}

template <typename T>
__device__ __forceinline__ Quad<Accumulator<T>> widen_quad(const Quad<T>& quad) {
  return {{widen(quad.v[0]), widen(quad.v[1]), widen(quad.v[2]), widen(quad.v[3])}};
}

// Grid (units, groups). The least number of blocks a multiprocessor only steers ptxas: without it newer targets spill.
template <typename T, class C>
__global__ void __launch_bounds__(C::kThreads, sizeof(T) == 2 ? 8 : 1)
    accumulate(const T* x, LagSizes s, const LagRegion* regions, Accumulator<T>* state, Accumulator<T> scale,
               Accumulator<T> beta, Accumulator<T>* scratch) {
  using Acc = Accumulator<T>;
  constexpr int kQuadsOfTile = C::kTile / 4, kBlocks = C::kFragment / 4;
  constexpr int kQuads = kQuadsOfTile / C::kLoaders;  // that a thread loads of each operand
  __shared__ Quad<Acc> left[2][kDepth][kQuadsOfTile], right[2][kDepth][kQuadsOfTile];
  const Unit unit = find_unit(s, regions, blockIdx.x, C::kTile);
  const int thread = threadIdx.x, ty = thread / C::kSide, tx = thread % C::kSide;
  const int loaded_row = thread / C::kLoaders, loaded_quad = thread % C::kLoaders;
  const T* base = x + static_cast<int64_t>(blockIdx.y) * s.channels + unit.region.offset;
  int64_t row = unit.begin + loaded_row;
  Cursor cursor{};
  if (s.batch > 0) cursor = cursor_at(row, s.batch, unit.region.extent);
  Quad<T> next_left[kQuads], next_right[kQuads];

  const auto fetch = [&] {
    const T* source = nullptr;
    if (row < unit.end)
      source = base + cursor.sample * s.batch_stride + cursor.pixel[0] * s.step[0] + cursor.pixel[1] * s.step[1] +
               cursor.pixel[2] * s.step[2];
    const T* shifted = source == nullptr ? nullptr : source + unit.region.delta;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int channel = 4 * (loaded_quad + q * C::kLoaders);
      next_left[q] = load(source, unit.tile.row * C::kTile + channel, s.channels, s.vectors);
      next_right[q] = load(shifted, unit.tile.column * C::kTile + channel, s.channels, s.vectors);
    }
    row += kDepth;
    if (row < unit.end) advance(cursor, kDepth, s.batch, unit.region.extent);
  };
  const auto stage = [&](int buffer) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      left[buffer][loaded_row][loaded_quad + q * C::kLoaders] = widen_quad(next_left[q]);
      right[buffer][loaded_row][loaded_quad + q * C::kLoaders] = widen_quad(next_right[q]);
    }
  };

  Acc total[C::kFragment][C::kFragment] = {}, sum[C::kFragment][C::kFragment] = {};
  const auto fold = [&] {
#pragma unroll
    for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
      for (int j = 0; j < C::kFragment; ++j) total[i][j] += sum[i][j], sum[i][j] = 0;
  };

  const int steps = unit.begin < unit.end ? static_cast<int>((unit.end - unit.begin + kDepth - 1) / kDepth) : 0;
  fetch();
  stage(0);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    if (step + 1 < steps) fetch();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Quad<Acc> a[kBlocks], b[kBlocks];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        a[i] = left[buffer][k][ty + i * C::kSide];
        b[i] = right[buffer][k][tx + i * C::kSide];
      }
#pragma unroll
      for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
        for (int j = 0; j < C::kFragment; ++j) sum[i][j] += a[i / 4].v[i % 4] * b[j / 4].v[j % 4];
    }
    if (step % kFold == kFold - 1) fold();
    if (step + 1 < steps) stage(buffer ^ 1);  // last read before the barrier that ended the step before
    __syncthreads();
  }
  fold();

#pragma unroll
  for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
    for (int j = 0; j < C::kFragment; ++j)
      put_unit<Acc, C::kTile>(s, unit, blockIdx.y, 4 * (ty + i / 4 * C::kSide) + i % 4,
                              4 * (tx + j / 4 * C::kSide) + j % 4, total[i][j], scale, beta, state, scratch);
}

// Adds the slices of one tile, 32 of its elements per block: lanes along elements, warps along slices. Grid
// (sums, tile²/32, groups).
template <typename Acc, int kTile>
__global__ void __launch_bounds__(256)
    add_slices(const Acc* scratch, LagSizes s, const LagRegion* regions, Acc* state, Acc scale, Acc beta) {
  __shared__ double sums[8][32];
  const int which = find_region<&LagRegion::first_sum>(regions, s.regions, blockIdx.x);
  const LagRegion region = regions[which];
  const int side = (s.channels + kTile - 1) / kTile, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tiles = region.symmetric ? side * (side + 1) / 2 : side * side;
  const int pair = static_cast<int>(blockIdx.x) - region.first_sum, element = blockIdx.y * 32 + lane;
  const Acc* partial =
      scratch + (blockIdx.z * s.partial_tiles + region.first_partial + pair) * (kTile * kTile) + element;
  double total = 0;
#pragma unroll 4
  for (int slice = warp; slice < region.slices; slice += 8)
    total += static_cast<double>(partial[static_cast<int64_t>(slice) * tiles * (kTile * kTile)]);
  sums[warp][lane] = total;
  __syncthreads();
  if (warp != 0) return;
  total = 0;
  for (int i = 0; i < 8; ++i) total += sums[i][lane];
  const Tile tile = tile_of(pair, side, region.symmetric);
  Acc* matrix = state + blockIdx.z * s.group_state_size + static_cast<int64_t>(which) * s.channels * s.channels;
  put_element(matrix, s, region.symmetric != 0, static_cast<int64_t>(tile.row) * kTile + element / kTile,
              static_cast<int64_t>(tile.column) * kTile + element % kTile, scale * static_cast<Acc>(total), beta);
}

__global__ void __launch_bounds__(kTableWords) upload(TableChunk chunk, int count, int64_t* target) {
  if (static_cast<int>(threadIdx.x) < count) target[threadIdx.x] = chunk.words[threadIdx.x];
}

template <typename T, class C>
cudaError_t run(const void* x, Dtype dtype, const LagSizes& s, const LagRegion* regions,
                const LagSumRegion* sum_regions, void* state, double scale, double beta, void* scratch,
                cudaStream_t stream) {
  using Acc = Accumulator<T>;
  const T* input = static_cast<const T*>(x);
  Acc* target = static_cast<Acc*>(state);
  Acc* partials = static_cast<Acc*>(scratch);
  const Acc factor = static_cast<Acc>(scale), decay = static_cast<Acc>(beta);
  cudaError_t error = cudaSuccess;
  if (s.units > 0) {
    if constexpr (sizeof(T) == 2 && C::kTile >= 64)
      error = launch_lag_units_mma(x, dtype, s, regions, target, factor, decay, partials, stream);
    else
      error = launch(accumulate<T, C>, dim3(s.units, s.groups), dim3(C::kThreads), 0, stream, input, s, regions, target,
                     factor, decay, partials);
  }
  if (error == cudaSuccess && s.sums > 0)
    error = launch(add_slices<Acc, C::kTile>, dim3(s.sums, C::kTile * C::kTile / 32, s.groups), dim3(256), 0, stream,
                   partials, s, regions, target, factor, decay);
  if (error != cudaSuccess || !s.bias) return error;
  return launch_lag_row_sums(x, dtype, s, sum_regions, state, scale, beta,
                             partials + s.partial_tiles * s.groups * (C::kTile * C::kTile), stream);
}

}  // namespace

cudaError_t launch_upload(const int64_t* words, int64_t count, int64_t* target, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += kTableWords) {
    TableChunk chunk{};
    const int64_t some = count - first < kTableWords ? count - first : kTableWords;
    for (int64_t i = 0; i < some; ++i) chunk.words[i] = words[first + i];
    const cudaError_t error =
        launch(upload, dim3(1), dim3(kTableWords), 0, stream, chunk, static_cast<int>(some), target + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

int lag_tile(int channels, Dtype dtype) {
  const bool sixteen_bit = dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
  const int in_128 = (channels + 127) / 128 * 128;  // which reads half as much as 64, if it pads little
  return channels <= 32 ? 32 : sixteen_bit && in_128 - channels <= channels / 10 ? 128 : 64;
}

int lag_vector(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16 ? 8 : 4; }

cudaError_t launch_lag_sums(const void* x, Dtype dtype, const LagSizes& sizes, const LagRegion* regions,
                            const LagSumRegion* sum_regions, void* state, double scale, double beta, void* scratch,
                            cudaStream_t stream) {
  if (sizes.groups > 65535 || sizes.groups * ((sizes.channels + 31) / 32) > 65535) return cudaErrorInvalidValue;
  return dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kFragment = sizeof(T) == 8 ? 4 : 8;  // registers: a fragment is held twice
    if (lag_tile(sizes.channels, dtype) == 32)
      return run<T, Config<32, 4>>(x, dtype, sizes, regions, sum_regions, state, scale, beta, scratch, stream);
    if constexpr (sizeof(T) == 2) {
      if (lag_tile(sizes.channels, dtype) == 128)
        return run<T, Config<128, 8>>(x, dtype, sizes, regions, sum_regions, state, scale, beta, scratch, stream);
    }
    return run<T, Config<64, kFragment>>(x, dtype, sizes, regions, sum_regions, state, scale, beta, scratch, stream);
  });
}

}  // namespace spectral_ext::cuda
