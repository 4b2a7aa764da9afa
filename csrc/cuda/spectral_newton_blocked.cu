// Spectral Newton for matrices of any small side, blocked, on the tensor cores with split operands (split_product.cuh).
//
// Every matrix and pole of a call goes through the same launches. M = R + p I is inverted in place by sweeps over
// blocks of 128 rows: with the pivot block k and P = M_kk⁻¹, a sweep is
//   M_kk ← −P,  M_ik ← W_i = M_ik P,  M_ij ← M_ij − W_i M_jkᵀ,
// and all sweeps leave −M⁻¹ (A. P. Dempster's sweep operator by blocks). It is stable without pivoting for a positive
// definite matrix, M stays symmetric, so that only tiles on and below the diagonal are held and computed, and it takes
// n³ operations, as many as an inverse from a Cholesky factor; but each of its n/128 steps updates all tiles at once.
//   gram      tiles of R = G Gᵀ, the large side in slices where there are few tiles; sum adds the slices
//   pivot     P in float32, one block per matrix and pole             } per step of 128 rows;
//   panel     W_i, and a copy of M_ik, which update overwrites        } the first one reads R
//   update    all tiles                                               } and adds the pole
//   add       f(R) = c I − Σ_j w_j M_j, in the order of the poles
//   apply     out = beta·out + scale·f(R) G
// The steps of pivot, panel and update run for as many matrices and poles at a time as fit the L2 cache of a large
// device, because each step reads and writes all of M: 3 or 4 launches, and 3·⌈n/128⌉ per chunk. Operations, of which
// each costs three bfloat16 products where both operands are split: n(n + 128)N for R, about n³ for each pole, 2n²N for
// f(R) G. All sums have a fixed order.
//
// Rows are padded to whole tiles, with zeros in R and ones on the diagonal of M.
#include "cuda/spectral_newton.h"
#include "cuda/spectral_newton_invert.cuh"
#include "cuda/split_product.cuh"

namespace spectral_ext::cuda {
namespace {

constexpr int kArea = kTile * kTile;
constexpr int kGramBlocks = 256;   // blocks that the slices of R should give
constexpr int kSliceLength = 512;  // the least columns of G per slice
#ifndef SPECTRAL_EXT_CHUNK_FLOATS  // the emulation tests set it
#define SPECTRAL_EXT_CHUNK_FLOATS 8 << 20
#endif
constexpr int64_t kChunkFloats = SPECTRAL_EXT_CHUNK_FLOATS;  // of M, W, U and P that the steps of a chunk work on

// Tiles (row ≥ column) numbered row by row.
__host__ __device__ constexpr int tile_index(int row, int column) { return row * (row + 1) / 2 + column; }

struct TileAt {
  int row, column;
};

__device__ __forceinline__ TileAt tile_at(int index) {
  int row = 0;
  while (tile_index(row + 1, 0) <= index) ++row;
  return {row, index - tile_index(row, 0)};
}

// Where things are in the scratch, in floats.
struct Layout {
  int side, tiles, slices;  // tiles per side, tiles held, slices of the large side
  int64_t problems, chunk;  // matrices · poles, and how many of them at a time
  int64_t R, M, W, U, P, failures, size;
};

Layout layout_of(const NewtonSizes& s) {
  Layout l{};
  l.side = (s.n + kTile - 1) / kTile, l.tiles = tile_index(l.side, 0);
  const int64_t blocks = static_cast<int64_t>(l.tiles) * s.batch, most = (s.length + kSliceLength - 1) / kSliceLength;
  const int64_t wanted = (kGramBlocks + blocks - 1) / blocks;
  l.slices = static_cast<int>(wanted < most ? wanted : most);
  l.problems = static_cast<int64_t>(s.batch) * s.terms;
  const int64_t each = static_cast<int64_t>(l.tiles + 2 * l.side + 1) * kArea, fitting = kChunkFloats / each;
  l.chunk = fitting < 1 ? 1 : fitting < l.problems ? fitting : l.problems;
  const int64_t R = blocks * kArea, panel = l.chunk * l.side * kArea;
  l.M = R;  // slices beside the sum: where there is one, it is R itself
  if (l.slices > 1) l.M += R * l.slices;
  l.W = l.M + l.problems * l.tiles * kArea;
  l.U = l.W + panel, l.P = l.U + panel, l.failures = l.P + l.chunk * kArea, l.size = l.failures + l.problems;
  return l;
}

template <typename T>
constexpr bool kIsBFloat16 = false;
template <>
constexpr bool kIsBFloat16<__nv_bfloat16> = true;

// Grid (tiles, slices, batch). partials: (slices, batch, tiles, kArea).
template <typename T>
__global__ void __launch_bounds__(kThreads) gram(const T* G, NewtonSizes s, int64_t slice_length, float* partials) {
  __shared__ Planes planes;
  const TileAt tile = tile_at(blockIdx.x);
  const int64_t begin = blockIdx.y * slice_length;
  const int64_t end = begin + slice_length < s.length ? begin + slice_length : s.length;
  const T* slice = G + blockIdx.z * s.input.matrix + begin * s.input.large_side;
  const int columns = begin < end ? static_cast<int>(end - begin) : 0;
  const auto element = [&](int row, int column) {
    const bool inside = row < s.n && column < columns;
    return inside ? widen(slice[row * s.input.small_side + column * s.input.large_side]) : 0.0f;
  };
  const bool depth_contiguous = s.input.large_side == 1;
  Sum sum;
  split_product<kIsBFloat16<T>, kIsBFloat16<T>, true>(
      planes, (columns + kDepth - 1) / kDepth, [&](int) { return depth_contiguous; },
      [&](int step, int row, int depth) { return element(tile.row * kTile + row, step * kDepth + depth); },
      depth_contiguous,
      [&](int step, int row, int depth) { return element(tile.column * kTile + row, step * kDepth + depth); }, sum);
  float* target =
      partials + ((static_cast<int64_t>(blockIdx.y) * s.batch + blockIdx.z) * gridDim.x + blockIdx.x) * kArea;
  for_each(sum, [&](int row, int column, float value) { target[row * kTile + column] = value; });
}

// R = Σ of the slices. Grid (tiles · kArea/kThreads, batch).
__global__ void __launch_bounds__(kThreads) sum_slices(const float* partials, int slices, int64_t size, float* R) {
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * kThreads + threadIdx.x;
  float sum = 0;
#pragma unroll 4
  for (int slice = 0; slice < slices; ++slice) sum += partials[slice * size + i];
  R[i] = sum;
}

// The tiles of one M before a step: those of R, with the pole, before the first.
struct Matrix {
  const float* tiles;
  float pole;
  int n;
  bool first;

  __device__ __forceinline__ float get(int row_tile, int column_tile, int row, int column) const {
    const float value = tiles[static_cast<int64_t>(tile_index(row_tile, column_tile)) * kArea + row * kTile + column];
    if (!first || row_tile != column_tile || row != column) return value;
    return row_tile * kTile + row < n ? value + pole : 1.0f;
  }
};

__device__ __forceinline__ Matrix matrix_at(const float* R, const float* M, const NewtonSizes& s,
                                            const NewtonCoefficients& coefficients, int tiles, int problem, int step) {
  const bool first = step == 0;
  const int64_t held = first ? problem / s.terms : problem;
  return {(first ? R : M) + held * tiles * kArea, coefficients.poles[problem], s.n, first};
}

// Grid (problems of a chunk). P: (chunk, kArea); failures: 0, or 1 + the first bad pivot of the matrix.
using PivotConfig = Config<16, 8>;
__global__ void __launch_bounds__(PivotConfig::kThreads)
    pivot(const float* R, const float* M, NewtonSizes s, NewtonCoefficients coefficients, int tiles, int first,
          int step, float* P, int32_t* failures) {
  using C = PivotConfig;
  static_assert(C::kPad == kTile);
  __shared__ Quad row[2][C::kPad / 4], column[2][C::kPad / 4];
  const int problem = first + blockIdx.x, ty = threadIdx.x / C::kSide, tx = threadIdx.x % C::kSide;
  const Matrix matrix = matrix_at(R, M, s, coefficients, tiles, problem, step);
  float a[C::kFragment][C::kFragment];
#pragma unroll
  for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
    for (int j = 0; j < C::kFragment; ++j) a[i][j] = matrix.get(step, step, C::index(ty, i), C::index(tx, j));
  const int failed = invert<C>(a, C::kPad, ty, tx, row, column);
  float* target = P + static_cast<int64_t>(blockIdx.x) * kArea;
#pragma unroll
  for (int i = 0; i < C::kFragment; ++i)
#pragma unroll
    for (int j = 0; j < C::kFragment; ++j) target[C::index(ty, i) * kTile + C::index(tx, j)] = a[i][j];
  if (threadIdx.x != 0) return;
  if (step == 0)
    failures[problem] = failed;
  else if (failed != 0 && failures[problem] == 0)
    failures[problem] = step * kTile + failed;
}

// Grid (tiles per side, problems of a chunk). W, U: (chunk, side, kArea), all but block `step`.
__global__ void __launch_bounds__(kThreads)
    panel(const float* R, const float* M, NewtonSizes s, NewtonCoefficients coefficients, int tiles, int first,
          int step, const float* P, float* W, float* U) {
  __shared__ Planes planes;
  const int block = blockIdx.x, problem = first + blockIdx.y;
  if (block == step) return;
  const Matrix matrix = matrix_at(R, M, s, coefficients, tiles, problem, step);
  const float* pivots = P + static_cast<int64_t>(blockIdx.y) * kArea;
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * gridDim.x + block) * kArea;
  float *result = W + at, *copy = U + at;
  const bool below = block > step;  // else the tile is held as its transpose
  for (int i = threadIdx.x; i < kArea; i += kThreads) {
    const int fast = i % kTile, slow = i / kTile;
    if (below)
      copy[i] = matrix.get(block, step, slow, fast);
    else
      copy[fast * kTile + slow] = matrix.get(step, block, slow, fast);
  }
  __syncthreads();
  Sum sum;
  split_product<false, false, false>(
      planes, kTile / kDepth, [](int) { return true; },
      [&](int step_of, int row, int depth) { return copy[row * kTile + step_of * kDepth + depth]; }, true,
      [&](int step_of, int row, int depth) { return pivots[row * kTile + step_of * kDepth + depth]; }, sum);
  for_each(sum, [&](int row, int column, float value) { result[row * kTile + column] = value; });
}

// Grid (tiles, problems of a chunk).
__global__ void __launch_bounds__(kThreads)
    update(const float* R, float* M, NewtonSizes s, NewtonCoefficients coefficients, int side, int first, int step,
           const float* P, const float* W, const float* U) {
  __shared__ Planes planes;
  const TileAt tile = tile_at(blockIdx.x);
  const int64_t problem = first + blockIdx.y, own = blockIdx.y;
  const Matrix matrix = matrix_at(R, M, s, coefficients, gridDim.x, first + blockIdx.y, step);
  float* target = M + (problem * gridDim.x + blockIdx.x) * kArea;
  const float *left = W + (own * side + tile.row) * kArea, *right = U + (own * side + tile.column) * kArea;
  if (tile.row == step || tile.column == step) {
    const bool both = tile.row == tile.column, transposed = tile.row == step && !both;
    const float* source = both ? P + own * kArea : transposed ? W + (own * side + tile.column) * kArea : left;
    for (int i = threadIdx.x; i < kArea; i += kThreads) {
      const float value = source[transposed ? i % kTile * kTile + i / kTile : i];
      target[i] = both ? -value : value;
    }
    return;
  }
  Sum sum;
  split_product<false, false, false>(
      planes, kTile / kDepth, [](int) { return true; },
      [&](int step_of, int row, int depth) { return left[row * kTile + step_of * kDepth + depth]; }, true,
      [&](int step_of, int row, int depth) { return right[row * kTile + step_of * kDepth + depth]; }, sum);
  for_each(sum, [&](int row, int column, float value) {
    target[row * kTile + column] = matrix.get(tile.row, tile.column, row, column) - value;
  });
}

// f(R) to the place of the first pole's M. Grid (tiles · kArea/kThreads, batch).
__global__ void __launch_bounds__(kThreads)
    add(float* M, NewtonSizes s, NewtonCoefficients coefficients, int tiles, const int32_t* failures, int32_t* status) {
  const int matrix = blockIdx.y, element = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const TileAt tile = tile_at(element / kArea);
  const int row = element % kArea / kTile, column = element % kTile;
  const int64_t first = static_cast<int64_t>(matrix) * s.terms, size = static_cast<int64_t>(tiles) * kArea;
  float sum = tile.row == tile.column && row == column ? coefficients.constant[matrix] : 0.0f;
#pragma unroll 4
  for (int term = 0; term < s.terms; ++term)
    sum -= coefficients.weights[first + term] * M[(first + term) * size + element];
  M[first * size + element] = sum;
  if (element != 0) return;
  int bad = 0;
  for (int term = s.terms - 1; term >= 0; --term) bad = failures[first + term] != 0 ? failures[first + term] : bad;
  status[matrix] = bad;
}

// Grid (⌈length/128⌉, tiles per side, batch). f: as `add` leaves it.
template <typename T>
__global__ void __launch_bounds__(kThreads) apply(const T* G, const float* f, NewtonSizes s, int tiles,
                                                  const int32_t* status, float scale, float beta, T* out) {
  __shared__ Planes planes;
  const int matrix = blockIdx.z, block = blockIdx.y;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTile;
  const float* weights = f + static_cast<int64_t>(matrix) * s.terms * tiles * kArea;
  const T* input = G + matrix * s.input.matrix;
  T* output = out + matrix * s.output.matrix;
  const auto below = [&](int step) { return step * kDepth / kTile <= block; };  // else the tile's transpose is held
  Sum sum;
  split_product<false, kIsBFloat16<T>, true>(
      planes, status[matrix] == 0 ? (s.n + kDepth - 1) / kDepth : 0, below,
      [&](int step, int row, int depth) {
        const int other = step * kDepth / kTile, in_tile = step * kDepth % kTile + depth;
        return below(step) ? weights[static_cast<int64_t>(tile_index(block, other)) * kArea + row * kTile + in_tile]
                           : weights[static_cast<int64_t>(tile_index(other, block)) * kArea + in_tile * kTile + row];
      },
      s.input.large_side != 1,
      [&](int step, int row, int depth) {
        const int k = step * kDepth + depth;
        const int64_t column = first_column + row;
        const bool inside = k < s.n && column < s.length;
        return inside ? widen(input[k * s.input.small_side + column * s.input.large_side]) : 0.0f;
      },
      sum);
  for_each(sum, [&](int row, int column, float value) {
    const int r = block * kTile + row;
    const int64_t c = first_column + column;
    if (r >= s.n || c >= s.length) return;
    T& element = output[r * s.output.small_side + c * s.output.large_side];
    element = narrow<T>(beta == 0.0f ? scale * value : beta * widen(element) + scale * value);
  });
}

template <typename T>
cudaError_t run(const void* G, void* out, const NewtonSizes& s, const NewtonCoefficients& coefficients, float scale,
                float beta, int32_t* status, float* scratch, cudaStream_t stream) {
  const Layout l = layout_of(s);
  const T* input = static_cast<const T*>(G);
  float *R = scratch + l.R, *M = scratch + l.M, *W = scratch + l.W, *U = scratch + l.U, *P = scratch + l.P;
  int32_t* failures = reinterpret_cast<int32_t*>(scratch + l.failures);
  const int64_t size = static_cast<int64_t>(l.tiles) * s.batch * kArea;
  const int64_t length = ((s.length + l.slices - 1) / l.slices + kDepth - 1) / kDepth * kDepth;
  const unsigned elements = static_cast<unsigned>(l.tiles) * (kArea / kThreads);
  float* partials = l.slices > 1 ? R + size : R;
  cudaError_t error =
      launch(gram<T>, dim3(l.tiles, l.slices, s.batch), dim3(kThreads), 0, stream, input, s, length, partials);
  if (error == cudaSuccess && l.slices > 1)
    error = launch(sum_slices, dim3(elements, s.batch), dim3(kThreads), 0, stream, partials, l.slices, size, R);
  for (int64_t begin = 0; begin < l.problems; begin += l.chunk)
    for (int step = 0; step < l.side && error == cudaSuccess; ++step) {
      const int first = static_cast<int>(begin);
      const unsigned count = static_cast<unsigned>(l.problems - begin < l.chunk ? l.problems - begin : l.chunk);
      error = launch(pivot, dim3(count), dim3(PivotConfig::kThreads), 0, stream, R, M, s, coefficients, l.tiles, first,
                     step, P, failures);
      if (error == cudaSuccess)
        error = launch(panel, dim3(l.side, count), dim3(kThreads), 0, stream, R, M, s, coefficients, l.tiles, first,
                       step, P, W, U);
      if (error == cudaSuccess)
        error = launch(update, dim3(l.tiles, count), dim3(kThreads), 0, stream, R, M, s, coefficients, l.side, first,
                       step, P, W, U);
    }
  if (error == cudaSuccess)
    error =
        launch(add, dim3(elements, s.batch), dim3(kThreads), 0, stream, M, s, coefficients, l.tiles, failures, status);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((s.length + kTile - 1) / kTile), l.side, s.batch);
  return launch(apply<T>, grid, dim3(kThreads), 0, stream, input, M, s, l.tiles, status, scale, beta,
                static_cast<T*>(out));
}

}  // namespace

int64_t newton_blocked_scratch(const NewtonSizes& s) { return layout_of(s).size; }

cudaError_t launch_spectral_newton_blocked(const void* G, void* out, Dtype dtype, const NewtonSizes& sizes,
                                           const NewtonCoefficients& coefficients, float scale, float beta,
                                           int32_t* status, float* scratch, cudaStream_t stream) {
  if (sizes.batch == 0 || sizes.n == 0 || sizes.length == 0) return cudaSuccess;
  const int64_t problems = static_cast<int64_t>(sizes.batch) * sizes.terms;
  if (sizes.n > kNewtonBlockedMaxSide || sizes.terms < 1 || problems > 65535 || sizes.length > (int64_t{1} << 30))
    return cudaErrorInvalidValue;
  switch (dtype) {
    case Dtype::kFloat32:
      return run<float>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    case Dtype::kBFloat16:
      return run<__nv_bfloat16>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    case Dtype::kFloat16:
      return run<__half>(G, out, sizes, coefficients, scale, beta, status, scratch, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace spectral_ext::cuda
