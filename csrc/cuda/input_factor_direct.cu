// Implicit-im2col symmetric rank-k update: correct for every geometry, the fallback of the lag kernel.
//
// A block sums one tile of the upper triangle of one group over one slice of the rows (output positions of all
// samples): patches are read straight from x, zeros where a tap falls outside. Slices go to scratch and a second kernel
// adds them in order, scales, and writes a tile and its mirror image: deterministic and exactly symmetric.
#include "cuda/device.cuh"
#include "cuda/input_factor_direct.h"
#include "cuda/patches.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kDepth = 16;     // rows a step
constexpr int kThreads = 256;  // 16 × 16, each with a (kTile/16)² fragment

struct Tile {
  int row, column;
};

// Tiles (row ≤ column) numbered column by column.
__host__ __device__ inline Tile upper_tile(int index) {
  int column = 0;
  while ((column + 1) * (column + 2) / 2 <= index) ++column;
  return {index - column * (column + 1) / 2, column};
}

template <typename T>
__device__ __forceinline__ Accumulator<T> read(const T* x, const DirectSizes& s, const Row& row, const Column& column) {
  return read_patch<Accumulator<T>>(s, row, column, [&](int64_t offset) { return widen(x[offset]); });
}

// Grid (tiles · groups, slices).
template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads)
    accumulate(const T* x, DirectSizes s, int tiles, int64_t rows, int64_t rows_per_slice, Accumulator<T>* scratch) {
  using Acc = Accumulator<T>;
  constexpr int kFragment = kTile / 16;
  __shared__ Acc left[kDepth][kTile + 1], right[kDepth][kTile + 1];
  __shared__ Column left_columns[kTile], right_columns[kTile];
  __shared__ Row tile_rows[kDepth];
  const int thread = threadIdx.x, group = blockIdx.x / tiles;
  const Tile tile = upper_tile(blockIdx.x % tiles);
  for (int i = thread; i < kTile; i += kThreads) {
    left_columns[i] = decode_column(s, group, tile.row * kTile + i);
    right_columns[i] = decode_column(s, group, tile.column * kTile + i);
  }
  const int64_t begin = blockIdx.y * rows_per_slice;
  const int64_t end = begin + rows_per_slice < rows ? begin + rows_per_slice : rows;
  // Neighbouring threads read neighbouring addresses: channels where they are contiguous, positions otherwise.
  const bool columns_fast = s.channel_stride == 1;
  const int ty = thread / 16, tx = thread % 16;
  Acc sum[kFragment][kFragment] = {};
  for (int64_t first = begin; first < end; first += kDepth) {
    if (thread < kDepth) tile_rows[thread] = decode_row(s, first + thread, end);
    __syncthreads();  // also: nobody still reads the tiles of the step before
    for (int i = thread; i < kDepth * kTile; i += kThreads) {
      const int row = columns_fast ? i / kTile : i % kDepth, column = columns_fast ? i % kTile : i / kDepth;
      left[row][column] = read(x, s, tile_rows[row], left_columns[column]);
      right[row][column] = read(x, s, tile_rows[row], right_columns[column]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Acc a[kFragment], b[kFragment];
#pragma unroll
      for (int i = 0; i < kFragment; ++i) a[i] = left[k][ty + 16 * i], b[i] = right[k][tx + 16 * i];
#pragma unroll
      for (int i = 0; i < kFragment; ++i)
#pragma unroll
        for (int j = 0; j < kFragment; ++j) sum[i][j] += a[i] * b[j];
    }
  }
  Acc* partial = scratch + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * (kTile * kTile);
#pragma unroll
  for (int i = 0; i < kFragment; ++i)
#pragma unroll
    for (int j = 0; j < kFragment; ++j) partial[(ty + 16 * i) * kTile + tx + 16 * j] = sum[i][j];
}

// Grid (tiles · groups, kTile/16): adds the slices of sixteen rows of a tile in order, writes them and their mirror
// image.
template <typename Acc, int kTile>
__global__ void __launch_bounds__(kThreads)
    finish(const Acc* scratch, int tiles, int64_t slices, int n, FactorOutput out) {
  __shared__ Acc total[16][kTile + 1];
  const int group = blockIdx.x / tiles, first = blockIdx.y * 16;
  const Tile tile = upper_tile(blockIdx.x % tiles);
  for (int i = threadIdx.x; i < 16 * kTile; i += kThreads) {
    Acc sum = 0;
#pragma unroll 4
    for (int64_t slice = 0; slice < slices; ++slice)
      sum += scratch[(slice * gridDim.x + blockIdx.x) * (kTile * kTile) + first * kTile + i];
    total[i / kTile][i % kTile] = sum;
  }
  __syncthreads();
  const Acc scale = static_cast<Acc>(out.scale), beta = static_cast<Acc>(out.beta);
  Acc* target = static_cast<Acc*>(out.data) + group * out.group_stride;
  for (int mirror = 0; mirror < (tile.row == tile.column ? 1 : 2); ++mirror)
    for (int i = threadIdx.x; i < 16 * kTile; i += kThreads) {
      const int r = mirror ? i % 16 : i / kTile, c = mirror ? i / 16 : i % kTile;
      const int row = tile.row * kTile + first + r, column = tile.column * kTile + c;
      if (row >= n || column >= n) continue;
      const Acc value = scale * total[r][c];
      Acc& element = mirror ? target[column * out.row_stride + row * out.column_stride]
                            : target[row * out.row_stride + column * out.column_stride];
      element = beta == 0 ? value : beta * element + value;
    }
}

struct Launch {
  int tile, tiles;
  int64_t slices, rows_per_slice;
};

Launch plan(const DirectSizes& sizes, Dtype dtype, int multiprocessors) {
  Launch l;
  l.tile = sizes.n() <= 32 ? 16 : 64;
  const int side = (sizes.n() + l.tile - 1) / l.tile;
  l.tiles = side * (side + 1) / 2;
  // About four blocks a multiprocessor, none with fewer than 256 rows.
  const int64_t blocks = static_cast<int64_t>(l.tiles) * sizes.groups;
  const int64_t wanted = (4 * static_cast<int64_t>(multiprocessors) + blocks - 1) / blocks;
  const int64_t most = (sizes.rows() + 255) / 256;
  l.slices = wanted < most ? wanted : most;
  if (l.slices < 1) l.slices = 1;
  l.rows_per_slice = ((sizes.rows() + l.slices - 1) / l.slices + kDepth - 1) / kDepth * kDepth;
  if (l.rows_per_slice > 0) l.slices = (sizes.rows() + l.rows_per_slice - 1) / l.rows_per_slice;
  return l;
}

template <typename T, int kTile>
cudaError_t run(const void* x, const DirectSizes& sizes, const FactorOutput& out, void* scratch, const Launch& l,
                cudaStream_t stream) {
  using Acc = Accumulator<T>;
  const dim3 grid(l.tiles * sizes.groups, static_cast<unsigned>(l.slices));
  if (l.slices > 0) {
    const cudaError_t error = launch(accumulate<T, kTile>, grid, dim3(kThreads), 0, stream, static_cast<const T*>(x),
                                     sizes, l.tiles, sizes.rows(), l.rows_per_slice, static_cast<Acc*>(scratch));
    if (error != cudaSuccess) return error;
  }
  return launch(finish<Acc, kTile>, dim3(grid.x, kTile / 16), dim3(kThreads), 0, stream,
                static_cast<const Acc*>(scratch), l.tiles, l.slices, sizes.n(), out);
}

}  // namespace

int64_t input_factor_direct_scratch(const DirectSizes& sizes, Dtype dtype, int multiprocessors) {
  const Launch l = plan(sizes, dtype, multiprocessors);
  return static_cast<int64_t>(l.tiles) * sizes.groups * l.slices * l.tile * l.tile;
}

cudaError_t launch_input_factor_direct(const void* x, Dtype dtype, const DirectSizes& sizes, const FactorOutput& out,
                                       void* scratch, int multiprocessors, cudaStream_t stream) {
  if (sizes.n() == 0 || sizes.groups == 0) return cudaSuccess;
  const Launch l = plan(sizes, dtype, multiprocessors);
  if (l.slices > 65535 || static_cast<int64_t>(l.tiles) * sizes.groups > 0x7fffffff) return cudaErrorInvalidValue;
  return dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    return l.tile == 16 ? run<T, 16>(x, sizes, out, scratch, l, stream) : run<T, 64>(x, sizes, out, scratch, l, stream);
  });
}

}  // namespace spectral_ext::cuda
