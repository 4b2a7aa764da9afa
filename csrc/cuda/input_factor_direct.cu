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
constexpr int kThreads = 256;  // groups of (kTile/4)², each thread with a 4 × 4 fragment; groups share the rows
constexpr int kFinishRows = 8, kFinishThreads = 1024;

template <typename T>
struct alignas(16) Quad {
  T v[4];
};

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
  constexpr int kSide = kTile / 4, kGroups = kThreads / (kSide * kSide);
  // A quad more than a row holds: neighbours along the depth are stored to other banks.
  __shared__ Quad<Acc> left[kDepth][kSide + 1], right[kDepth][kSide + 1];
  __shared__ Column left_columns[kTile], right_columns[kTile];
  __shared__ Row tile_rows[kDepth];
  const int thread = threadIdx.x, group = blockIdx.x / tiles;
  const Tile tile = upper_tile(blockIdx.x % tiles);
  const bool diagonal = tile.row == tile.column;
  for (int i = thread; i < kTile; i += kThreads) {
    left_columns[i] = decode_column(s, group, tile.row * kTile + i);
    right_columns[i] = decode_column(s, group, tile.column * kTile + i);
  }
  const int64_t begin = blockIdx.y * rows_per_slice;
  const int64_t end = begin + rows_per_slice < rows ? begin + rows_per_slice : rows;
  // Neighbouring threads read neighbouring addresses: channels where they are contiguous, positions otherwise.
  const bool columns_fast = s.channel_stride == 1;
  const int own = thread / (kSide * kSide), ty = thread / kSide % kSide, tx = thread % kSide;
  Acc sum[4][4] = {};
  for (int64_t first = begin; first < end; first += kDepth) {
    if (thread < kDepth) tile_rows[thread] = decode_row(s, first + thread, end);
    __syncthreads();  // also: nobody still reads the tiles of the step before
    for (int i = thread; i < kDepth * kTile; i += kThreads) {
      const int row = columns_fast ? i / kTile : i % kDepth, column = columns_fast ? i % kTile : i / kDepth;
      left[row][column / 4].v[column % 4] = read(x, s, tile_rows[row], left_columns[column]);
      if (!diagonal) right[row][column / 4].v[column % 4] = read(x, s, tile_rows[row], right_columns[column]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; k += kGroups) {
      const Quad<Acc> a = left[k + own][ty], b = diagonal ? left[k + own][tx] : right[k + own][tx];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a.v[i] * b.v[j];
    }
  }
  Acc* partial = scratch + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * (kTile * kTile);
  if constexpr (kGroups > 1) {
    __shared__ Quad<Acc> others[kGroups][kSide][kTile];
#pragma unroll
    for (int i = 0; i < 4; ++i) others[own][tx][4 * ty + i] = {{sum[i][0], sum[i][1], sum[i][2], sum[i][3]}};
    __syncthreads();
    for (int i = thread; i < kTile * kTile; i += kThreads) {
      Acc total = 0;
      for (int g = 0; g < kGroups; ++g) total += others[g][i % kTile / 4][i / kTile].v[i % 4];
      partial[i] = total;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) partial[(4 * ty + i) * kTile + 4 * tx + j] = sum[i][j];
  }
}

// Grid (tiles · groups, kTile/kFinishRows): adds the slices of some rows of a tile in order, writes them and their
// mirror image.
template <typename Acc, int kTile>
__global__ void __launch_bounds__(kFinishThreads)
    finish(const Acc* scratch, int tiles, int64_t slices, int n, FactorOutput out) {
  constexpr int kElements = kFinishRows * kTile, kParts = kFinishThreads / kElements;
  __shared__ Acc total[kParts][kFinishRows][kTile + 1];
  const int group = blockIdx.x / tiles, first = blockIdx.y * kFinishRows;
  const Tile tile = upper_tile(blockIdx.x % tiles);
  const int part = threadIdx.x / kElements, element = threadIdx.x % kElements;
  Acc sum = 0;
#pragma unroll 4
  for (int64_t slice = part; slice < slices; slice += kParts)
    sum += scratch[(slice * gridDim.x + blockIdx.x) * (kTile * kTile) + first * kTile + element];
  total[part][element / kTile][element % kTile] = sum;
  __syncthreads();
  if (part > 1) return;  // part 1 writes the mirror image
  const bool mirror = part == 1;
  if (mirror && tile.row == tile.column) return;
  const int r = mirror ? element % kFinishRows : element / kTile, c = mirror ? element / kFinishRows : element % kTile;
  const int row = tile.row * kTile + first + r, column = tile.column * kTile + c;
  if (row >= n || column >= n) return;
  sum = 0;
#pragma unroll
  for (int i = 0; i < kParts; ++i) sum += total[i][r][c];
  const Acc scale = static_cast<Acc>(out.scale), beta = static_cast<Acc>(out.beta), value = scale * sum;
  Acc* target = static_cast<Acc*>(out.data) + group * out.group_stride;
  Acc& result = mirror ? target[column * out.row_stride + row * out.column_stride]
                       : target[row * out.row_stride + column * out.column_stride];
  result = beta == 0 ? value : beta * result + value;
}

struct Launch {
  int tile, tiles;
  int64_t slices, rows_per_slice;
};

Launch plan(const DirectSizes& sizes, Dtype dtype, int multiprocessors) {
  Launch l;
  l.tile = sizes.n() <= 32 ? 32 : 64;
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
  return launch(finish<Acc, kTile>, dim3(grid.x, kTile / kFinishRows), dim3(kFinishThreads), 0, stream,
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
    return l.tile == 32 ? run<T, 32>(x, sizes, out, scratch, l, stream) : run<T, 64>(x, sizes, out, scratch, l, stream);
  });
}

}  // namespace spectral_ext::cuda
